"""RAS, reciprocal activation shift: what safety loses and reasoning gains in the same neurons.

    RAS(A) = 2 δ⁻_safety(A) δ⁺_task(A) / (δ⁻_safety(A) + δ⁺_task(A)),     0 when either is 0

δ⁻ and δ⁺ as in `shift`, from a safety set and a task (reasoning) set at the same two checkpoints. Whether the harmonic
mean matters is shown by geometric mean, minimum and arithmetic mean in its place; whether averaging over neurons first
matters, by RAS of each neuron averaged afterwards. Intervals: bootstrap over prompts, both sets resampled. p: share of
matched control sets with at least this RAS, (b + 1) / (m + 1). Source: Yan et al., arXiv 2509.00544, section 4.

Where entanglement is built in (`organisms`, `training-known`), RAS as published was 0 at 21 of 24 stages on the very
neurons that carry refusal, also where every refusal was lost: a 0 says little. The arithmetic mean over neurons first,
on neurons chosen by gradient × activation, told entangled from separate training in 12 of 12 pairs (docs/trust.md).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from rim_lens.capture.neuron_activations import Measure, NeuronActivations
from rim_lens.capture.neuron_sets import NeuronRows, matched_controls, neuron_rows, of_sets
from rim_lens.results import Manifest, Result
from rim_lens.stats import Interval, empirical_p, percentile
from rim_lens.training_time.shift import Pair, gain_of, len_of, loss_of, prompt_resamples, resampled_f, tails_for

Averaging = Literal["set", "neuron"]  # over neurons first, or RAS of each neuron first
Array = Float[np.ndarray, "..."]


def harmonic(loss: Array, gain: Array) -> Array:
    """2 l g / (l + g); 0 when either is 0."""
    total = np.where(loss + gain > 0, loss + gain, 1.0)
    return 2 * loss * gain / total


MEANS: dict[str, Callable[[Array, Array], Array]] = {
    "harmonic": harmonic,
    "geometric": lambda loss, gain: np.sqrt(loss * gain),
    "minimum": np.minimum,
    "arithmetic": lambda loss, gain: (loss + gain) / 2,
}
AVERAGING: tuple[Averaging, ...] = ("set", "neuron")


@dataclass(frozen=True, eq=False)
class Ras(Result):
    """RAS of one set in all variants.

    `table`: one row per averaging ("set": over neurons first; "neuron": RAS of each neuron first) and mean, with value,
    bootstrap interval, the control sets' mean and spread, percentile and one-sided p. `layers`: the harmonic RAS of the
    set's neurons in each layer. `null`: RAS of every control set, [set, variant] in the table's order.
    """

    figure: ClassVar = "neurons:ras_variants"

    table: pd.DataFrame
    layers: pd.DataFrame
    null: Float[np.ndarray, "set variant"]
    n_neurons: int
    n_safety: int
    n_task: int
    n_controls: int

    def __repr__(self) -> str:
        return f"Ras({self.value:.4f} {self.interval}, p = {self.p:.3g} against {self.n_controls} control sets)"

    @property
    def value(self) -> float:
        """RAS as defined: harmonic mean of the set's shifts."""
        return float(self.table["ras"].iloc[0])

    @property
    def p(self) -> float:
        """Its one-sided p against the control sets."""
        return float(self.table["p"].iloc[0])

    @property
    def interval(self) -> Interval:
        """Its bootstrap interval over prompts."""
        first = self.table.iloc[0]
        return Interval(float(first["low"]), float(first["high"]))

    @property
    def control(self) -> float:
        """Mean RAS of the control sets."""
        return float(self.table["control_mean"].iloc[0])


def ras(
    safety_before: NeuronActivations,
    safety_after: NeuronActivations,
    task_before: NeuronActivations,
    task_after: NeuronActivations,
    neurons: NeuronRows,
    *,
    controls: Int[np.ndarray, "set neuron index"] | None = None,
    n_controls: int = 1000,
    measure: Measure = "magnitude",
    n_resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Ras:
    """RAS of a set between two checkpoints, or between thinking off and on at one.

    Args:
        safety_before: activations on safety prompts at checkpoint 0, with values per prompt of these neurons.
        safety_after: the same at checkpoint 1.
        task_before: activations on reasoning prompts at checkpoint 0.
        task_after: the same at checkpoint 1.
        neurons: `SafetyNeurons`, or rows (layer, unit) or (layer, expert, unit).
        controls: matched random sets; drawn from `safety_before` where not given.
        n_controls: how many are drawn.
        measure: "magnitude" or "signed".
        n_resamples: bootstrap resamples of prompts.
        seed: of the bootstrap and the draw.
        level: of the intervals.

    Raises:
        RimLensError: before and after were measured on other prompts, or values per prompt are missing.
    """
    rows = neuron_rows(neurons)
    safety, task = (safety_before, safety_after), (task_before, task_after)
    if controls is None:
        controls = matched_controls(neurons, n_controls, base=safety_before, seed=seed, measure=measure)
    n_safety, n_task = len_of(safety), len_of(task)
    tails = tails_for(level, min(n_safety, n_task))
    observed = f_of_sets(safety, task, rows[None], measure)
    drawn = [
        *resampled_f(safety, rows, prompt_resamples(n_safety, n_resamples, seed), measure),
        *resampled_f(task, rows, prompt_resamples(n_task, n_resamples, seed + 1), measure),
    ]
    null_f = f_of_sets(safety, task, controls, measure)
    table, nulls = [], []
    for averaging in AVERAGING:
        for mean in MEANS:
            value = float(ras_of(observed, averaging, mean)[0])
            null = ras_of(null_f, averaging, mean)
            low, high = np.quantile(ras_of(drawn, averaging, mean), tails)
            row = {"averaging": averaging, "mean": mean, "ras": value, "low": float(low), "high": float(high)}
            table.append(row | placed(value, null))
            nulls.append(null)
    return Ras(
        table=pd.DataFrame(table),
        layers=layer_table([side[0] for side in observed], rows, null_f, controls),
        null=np.stack(nulls, axis=1),
        n_neurons=len(rows),
        n_safety=n_safety,
        n_task=n_task,
        n_controls=len(controls),
        manifest=Manifest.collect(
            None, seed=seed, measure=measure, before=safety_before.manifest.model, after=safety_after.manifest.model
        ),
    )


def f_of_sets(
    safety: Pair, task: Pair, sets: Int[np.ndarray, "set neuron index"], measure: Measure
) -> list[Float[np.ndarray, "set neuron"]]:
    """F of every set's neurons: safety before and after, task before and after."""
    return [of_sets(side.values(measure), sets) for side in (*safety, *task)]


def ras_of(f: list[Float[np.ndarray, "set neuron"]], averaging: Averaging, mean: str) -> Float[np.ndarray, "set"]:
    """RAS of each row of f = [safety before, safety after, task before, task after]."""
    s0, s1, t0, t1 = (side.mean(axis=1) for side in f) if averaging == "set" else f
    values = MEANS[mean](loss_of(s0, s1), gain_of(t0, t1))
    return values if averaging == "set" else values.mean(axis=1)


def placed(value: float, null: Float[np.ndarray, "set"]) -> dict[str, float]:
    """Where a value stands among the control sets'."""
    return {
        "control_mean": float(null.mean()),
        "control_sd": float(null.std(ddof=1)),
        "percentile": float(percentile(value, null)),
        "p": float(empirical_p(value, null, "greater")),
    }


def layer_table(
    observed: list[Float[np.ndarray, "neuron"]],
    rows: Int[np.ndarray, "neuron index"],
    null_f: list[Float[np.ndarray, "set neuron"]],
    controls: Int[np.ndarray, "set neuron index"],
) -> pd.DataFrame:
    """Safety loss, task gain and RAS of the set's neurons in each layer, beside the controls' in that layer."""
    table = []
    for layer in np.unique(rows[:, 0]).tolist():
        s0, s1, t0, t1 = (side[rows[:, 0] == layer].mean() for side in observed)
        inside = controls[0, :, 0] == layer  # control sets have the same layers in the same places
        null = ras_of([side[:, inside] for side in null_f], "set", "harmonic")
        loss, gain = loss_of(s0, s1), gain_of(t0, t1)
        value = float(harmonic(loss, gain))
        row = {"layer": layer, "n_neurons": int((rows[:, 0] == layer).sum()), "safety_loss": float(loss)}
        table.append(row | {"task_gain": float(gain), "ras": value} | placed(value, null))
    return pd.DataFrame(table)
