"""Figures: plotly, one function per figure. They show what is in a result's tables and compute no statistics.

They read the tables of results and import no measurement, so the room stands to the left of all of them. The main
figure of a result is the one that its class names, and what `result.plot()` returns::

    table.plot()                                  # rates of the harmful requests
    table.plot(set_name="maths")
    heads.plot(contrast="empty_span")
"""

from rim_lens.plots.arms import arm_changes, loss_curves
from rim_lens.plots.attention import attention_contrast, length_curve, segment_map
from rim_lens.plots.behavior import rates
from rim_lens.plots.cot import receiver_map, shaded_sentences
from rim_lens.plots.direct import attribution_map, direct_against_total
from rim_lens.plots.direction import direction_drift_curves, direction_effects, direction_map
from rim_lens.plots.forgetting import forgetting_scatter, predictors, ras_by_layer, ras_over_series
from rim_lens.plots.head_map import head_map
from rim_lens.plots.images import image_bytes, save_image
from rim_lens.plots.judge import judge_errors
from rim_lens.plots.mediation import mediated_effects, patched_paths
from rim_lens.plots.neurons import neuron_means, neurons_by_layer, ras_variants, shift_by_layer
from rim_lens.plots.paper import thinking_table
from rim_lens.plots.patterns import cost_by_category, cost_by_class, own_shares, shares_by_arm
from rim_lens.plots.prediction import predicted_against_actual, prediction_by_checkpoint
from rim_lens.plots.probe import cliff_heads, probe_map, trace_curve
from rim_lens.plots.routing import expert_loads
from rim_lens.plots.series import maths_over_series, refusal_over_series
from rim_lens.plots.series_heads import head_order, heads_by_checkpoint
from rim_lens.plots.series_shift import shift_by_layer_and_checkpoint, shift_over_series
from rim_lens.plots.set_effects import ablation_figure, compared_effects, dose_curve, set_effects
from rim_lens.plots.sweeps import ablation_map, interchange_map, patching_map, patching_together
from rim_lens.plots.tokens import token_view

__all__ = [
    "ablation_figure",
    "ablation_map",
    "arm_changes",
    "attention_contrast",
    "attribution_map",
    "cliff_heads",
    "compared_effects",
    "cost_by_category",
    "cost_by_class",
    "direct_against_total",
    "direction_drift_curves",
    "direction_effects",
    "direction_map",
    "dose_curve",
    "expert_loads",
    "forgetting_scatter",
    "head_map",
    "head_order",
    "heads_by_checkpoint",
    "image_bytes",
    "interchange_map",
    "judge_errors",
    "length_curve",
    "loss_curves",
    "maths_over_series",
    "mediated_effects",
    "neuron_means",
    "neurons_by_layer",
    "own_shares",
    "patched_paths",
    "patching_map",
    "patching_together",
    "predicted_against_actual",
    "prediction_by_checkpoint",
    "predictors",
    "probe_map",
    "ras_by_layer",
    "ras_over_series",
    "ras_variants",
    "rates",
    "receiver_map",
    "refusal_over_series",
    "save_image",
    "segment_map",
    "set_effects",
    "shaded_sentences",
    "shares_by_arm",
    "shift_by_layer",
    "shift_by_layer_and_checkpoint",
    "shift_over_series",
    "thinking_table",
    "token_view",
    "trace_curve",
]
