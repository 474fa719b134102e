"""What one gradient step on a fine-tuning set predicts for each neuron, next to what the arm's checkpoints then did.

    predicted   (F₁ − F₀) / F₀ of one step of length 1e-5 ‖θ‖ on a sample of the arm's data, see `predict_shift`
    actual      (F₁ − F₀) / F₀ from the reference to the checkpoint, on the same prompts

A trained checkpoint is hundreds of such steps away, where f has bent long since: sizes are not compared, only the
pattern over neurons, which does not depend on the length of the step. r is Pearson's correlation over the neurons of
the set, with a bootstrap interval over neurons and the same correlation within every matched control set: what is
predicted for safety neurons only would stand out of it. Neurons are not independent of each other, so the interval is a
lower bound of the uncertainty.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from jaxtyping import Int

from rim_lens.capture.neuron_activations import Measure
from rim_lens.capture.neuron_sets import NeuronRows, matched_controls, neuron_names, neuron_rows, of_sets
from rim_lens.chat.chat import Chat
from rim_lens.errors import RimLensError
from rim_lens.model.lens_model import LensModel
from rim_lens.results import Manifest, Result
from rim_lens.stats import benjamini_hochberg, empirical_p, percentile
from rim_lens.training_time.row_correlations import pearson, percentiles, spearman
from rim_lens.training_time.series_measures import AtCheckpoint
from rim_lens.training_time.shift import relative_change
from rim_lens.training_time.shift_prediction import PredictedShift, predict_shift

N_RESAMPLES = 2000
STEP = 1e-5  # ‖Δθ‖ / ‖θ‖ of the predicted step


@dataclass(frozen=True, eq=False)
class PredictionCheck(Result):
    """Predicted against actual shifts, arm by arm.

    `table`: one row per checkpoint of an arm with a prediction: the set's predicted change for a step of 1e-5 ‖θ‖, its
    actual change, r and Spearman's ρ over `n` neurons with intervals, the control sets' mean r and 95 % range,
    percentile, one-sided p against them and q. `neurons`: one row per arm, checkpoint and neuron. `steps`: one row an
    arm, with the number of examples, their loss and the step's curvature.
    """

    figure: ClassVar = "prediction:prediction_by_checkpoint"
    step: ClassVar = STEP

    table: pd.DataFrame
    neurons: pd.DataFrame
    steps: pd.DataFrame
    reference: str
    n_controls: int
    n_prompts: int

    def __repr__(self) -> str:
        return f"PredictionCheck({len(self.steps)} arms, {len(self.table)} checkpoints against {self.reference})"

    def caption(self) -> str:
        """What was predicted from what."""
        examples = " / ".join(f"{row.arm} {row.n_examples}" for row in self.steps.itertuples())
        return (
            f"First-order shift of the safety neurons under one gradient step on examples of each arm ({examples}), "
            f"against the shift at its checkpoints on the same {self.n_prompts} prompts"
        )


def prediction_check(
    model: LensModel,
    neurons: NeuronRows,
    data: Mapping[str, Sequence[Chat]],
    safety: Sequence[Chat],
    measurements: Sequence[AtCheckpoint],
    *,
    n_controls: int = 1000,
    measure: Measure = "magnitude",
    batch_size: int = 4,
    seed: int = 0,
    **options: Any,
) -> PredictionCheck:
    """Predict each arm's shift before training, and compare with the arm's checkpoints.

    Args:
        model: at the reference checkpoint; its weights are the same afterwards.
        neurons: `SafetyNeurons`, or rows.
        data: fine-tuning chats by arm, with their CoT and response.
        safety: the safety chats that `measurements` was measured on.
        measurements: what `measure_series` returned, the reference first, at the positions of `predict_shift`.
        n_controls: matched random sets.
        measure: "magnitude" or "signed".
        batch_size: fine-tuning chats per pass.
        seed: of controls and bootstraps.
        options: of `predict_shift`: step, positions.

    Raises:
        RimLensError: no checkpoint belongs to an arm with data.
    """
    first, rows = measurements[0], neuron_rows(neurons)
    controls = matched_controls(neurons, n_controls, base=first.safety, seed=seed, measure=measure)
    arms = [arm for arm in data if any(one.checkpoint.arm == arm for one in measurements[1:])]
    if not arms:
        raise RimLensError(
            f"No checkpoint belongs to an arm with fine-tuning data ({', '.join(data) or 'none given'})."
        )
    tables, points, steps = [], [], []
    for arm in arms:
        predicted = predict_shift(
            model, rows, data[arm], safety, before=first.safety, controls=controls, measure=measure,
            batch_size=batch_size, seed=seed, **options,
        )  # fmt: skip
        steps.append({"arm": arm, **{name: getattr(predicted, name) for name in ("n_examples", "loss", "curvature")}})
        for one in measurements[1:]:
            if one.checkpoint.arm == arm:
                row, per_neuron = compared(predicted, first, one, rows, controls, measure, seed)
                where = {"arm": arm, "checkpoint": one.checkpoint.name, "step": one.checkpoint.step}
                tables.append({**where, **row})
                points.append(per_neuron.assign(**where))
    table = pd.DataFrame(tables)
    table["q"] = benjamini_hochberg(table["control_p"].to_numpy())
    return PredictionCheck(
        table=table,
        neurons=pd.concat(points, ignore_index=True),
        steps=pd.DataFrame(steps),
        reference=first.checkpoint.name,
        n_controls=n_controls,
        n_prompts=len(safety),
        manifest=Manifest.collect(model, seed=seed, measure=measure),
    )


def compared(
    predicted: PredictedShift,
    first: AtCheckpoint,
    one: AtCheckpoint,
    rows: Int[np.ndarray, "neuron index"],
    controls: Int[np.ndarray, "set neuron index"],
    measure: Measure,
    seed: int,
) -> tuple[dict[str, Any], pd.DataFrame]:
    """One checkpoint's row, and its neurons."""
    scale = STEP / predicted.size
    f0, f1 = (side.safety.values(measure).astype(np.float64) for side in (first, one))
    ahead = relative_change(predicted.f_before, predicted.f_before + scale * (predicted.f_after - predicted.f_before))
    change = relative_change(f0, f1)
    mine = [values[tuple(rows.T)] for values in (ahead, change)]
    whole = [of_sets(values, rows[None]).mean() for values in (predicted.f_before, predicted.f_after, f0, f1)]
    forecast = float(relative_change(np.array(whole[0]), np.array(whole[0] + scale * (whole[1] - whole[0]))))
    drawn = np.random.default_rng(seed).integers(0, len(rows), size=(N_RESAMPLES, len(rows)))
    row: dict[str, Any] = {
        "n": len(rows),
        "weight_distance": one.weight_distance,
        "predicted": forecast,
        "actual": float(relative_change(np.array(whole[2]), np.array(whole[3]))),
    }
    for name, kind in (("r", pearson), ("rho", spearman)):
        low, high = percentiles(kind(mine[0][drawn], mine[1][drawn]), len(rows))
        row |= {name: float(kind(mine[0][None], mine[1][None])[0]), f"{name}_low": low, f"{name}_high": high}
    null = np.nan_to_num(pearson(of_sets(ahead, controls), of_sets(change, controls)))
    row |= {
        "control_r": float(null.mean()),
        "control_low": float(np.quantile(null, 0.025)),
        "control_high": float(np.quantile(null, 0.975)),
        "percentile": float(percentile(row["r"], null)),
        "control_p": float(empirical_p(row["r"], null, "greater")),
    }
    return row, pd.DataFrame({"neuron": neuron_names(rows), "predicted": mine[0], "actual": mine[1]})
