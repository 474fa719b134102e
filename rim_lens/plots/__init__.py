"""Figures: plotly, one function a figure. They show what is in a result's tables and compute no statistics.

`figure_for(result)` is a result's main figure, and what `result.plot()` returns::

    table.plot()                                  # rates of the harmful requests
    table.plot(set_name="maths")
    heads.plot(contrast="empty_span")
"""

from collections.abc import Callable, Mapping
from typing import Any

import plotly.graph_objects as go

from rim_lens.behavior.measure import RimTable
from rim_lens.errors import RimLensError
from rim_lens.inference_time.cot_length import AttentionByLength
from rim_lens.inference_time.dose_test import HeadTest
from rim_lens.inference_time.interchange import InterchangeSweep
from rim_lens.inference_time.patching import PatchingSweep
from rim_lens.inference_time.probe import RefusalProbe
from rim_lens.inference_time.refusal_heads import RefusalHeads
from rim_lens.inference_time.span_attention import SpanAttention
from rim_lens.inference_time.sweep import AblationSweep
from rim_lens.inference_time.token_attention import TokenAttention
from rim_lens.inference_time.trace import RefusalTrace
from rim_lens.patterns.arm_divergence import ArmDivergence
from rim_lens.patterns.costs import PatternCosts
from rim_lens.patterns.finetune import FinetuneRun
from rim_lens.patterns.own_cots import OwnPatterns
from rim_lens.plots.arms import arm_changes, loss_curves
from rim_lens.plots.attention import attention_contrast, length_curve, segment_map
from rim_lens.plots.behavior import rates
from rim_lens.plots.forgetting import forgetting_scatter, predictors, ras_by_layer, ras_over_series
from rim_lens.plots.head_map import head_map
from rim_lens.plots.images import image_bytes, save_image
from rim_lens.plots.neurons import neuron_means, neurons_by_layer, ras_variants, shift_by_layer
from rim_lens.plots.paper import thinking_table
from rim_lens.plots.patterns import cost_by_category, cost_by_class, own_shares, shares_by_arm
from rim_lens.plots.prediction import predicted_against_actual, prediction_by_checkpoint
from rim_lens.plots.probe import cliff_heads, probe_map, trace_curve
from rim_lens.plots.series import maths_over_series, refusal_over_series
from rim_lens.plots.series_heads import head_order, heads_by_checkpoint
from rim_lens.plots.series_shift import shift_by_layer_and_checkpoint, shift_over_series
from rim_lens.plots.set_effects import dose_curve, set_effects
from rim_lens.plots.sweeps import ablation_map, interchange_map, patching_map, patching_together
from rim_lens.plots.tokens import token_view
from rim_lens.results import Result
from rim_lens.training_time.causal import NeuronTest
from rim_lens.training_time.compare_arms import ArmComparison
from rim_lens.training_time.forgetting import Forgetting
from rim_lens.training_time.neuron_table import NeuronTable
from rim_lens.training_time.prediction_check import PredictionCheck
from rim_lens.training_time.ras import Ras
from rim_lens.training_time.safety_neurons import SafetyNeurons
from rim_lens.training_time.series_behavior import SeriesBehavior
from rim_lens.training_time.series_heads import SeriesHeads
from rim_lens.training_time.series_maths import SeriesMaths
from rim_lens.training_time.series_shift import SeriesShift
from rim_lens.training_time.shift import ActivationShift

__all__ = [
    "ablation_map",
    "arm_changes",
    "attention_contrast",
    "cliff_heads",
    "cost_by_category",
    "cost_by_class",
    "dose_curve",
    "figure_for",
    "forgetting_scatter",
    "head_map",
    "head_order",
    "heads_by_checkpoint",
    "image_bytes",
    "interchange_map",
    "length_curve",
    "loss_curves",
    "maths_over_series",
    "neuron_means",
    "neurons_by_layer",
    "own_shares",
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
    "refusal_over_series",
    "save_image",
    "segment_map",
    "set_effects",
    "shares_by_arm",
    "shift_by_layer",
    "shift_by_layer_and_checkpoint",
    "shift_over_series",
    "thinking_table",
    "token_view",
    "trace_curve",
]

FIGURES: Mapping[type[Result], Callable[..., go.Figure]] = {
    RimTable: rates,
    SeriesBehavior: refusal_over_series,
    SeriesMaths: maths_over_series,
    ArmComparison: arm_changes,
    FinetuneRun: loss_curves,
    PatternCosts: cost_by_class,
    ArmDivergence: shares_by_arm,
    OwnPatterns: own_shares,
    SpanAttention: segment_map,
    AttentionByLength: length_curve,
    TokenAttention: token_view,
    RefusalHeads: attention_contrast,
    AblationSweep: ablation_map,
    PatchingSweep: patching_map,
    InterchangeSweep: interchange_map,
    HeadTest: dose_curve,
    RefusalProbe: probe_map,
    RefusalTrace: trace_curve,
    SafetyNeurons: neurons_by_layer,
    NeuronTest: set_effects,
    NeuronTable: neuron_means,
    ActivationShift: shift_by_layer,
    SeriesShift: shift_over_series,
    SeriesHeads: heads_by_checkpoint,
    PredictionCheck: prediction_by_checkpoint,
    Ras: ras_variants,
    Forgetting: forgetting_scatter,
}


def figure_for(result: Result, **options: Any) -> go.Figure:
    """The main figure of a result; options are those of its figure function.

    Raises:
        RimLensError: there is no figure for this kind of result.
    """
    for kind in type(result).__mro__:
        if kind in FIGURES:
            return FIGURES[kind](result, **options)
    raise RimLensError(f"There is no figure of a {type(result).__name__}; use its to_dataframe().")
