"""Activation shift of a set of neurons between two states of a model (checkpoints, or thinking off and on).

    F_i(A) = mean over neurons a in A of f_i(a; D)
    loss  δ⁻(A) = max(0, (F₀ − F₁) / F₀)        gain  δ⁺(A) = max(0, (F₁ − F₀) / F₀)
    movement(A) = Σ_a |f₁(a) − f₀(a)| / Σ_a |f₀(a)|

In F neurons that rise cancel those that fall. Where fine-tuning is known to have changed a set of neurons and nothing
else, their F stays among that of random sets, and their movement is above all of them (docs/trust.md).
f(a; D) is the mean |a| ("magnitude") or the mean a ("signed") over the chosen positions of the prompts D. With
"signed", a negative F₀ counts strength in its own direction: −1 → −2 is a gain of 1, −1 → +1 a loss of 2. Where F₀ = 0
no relative shift is defined; it counts as 0, and the tables say how many neurons that concerns. Source: Yan et al.,
arXiv 2509.00544, section 4.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from rim_lens.capture.neuron_activations import Measure, NeuronActivations
from rim_lens.capture.neuron_sets import NeuronRows, neuron_rows, of_sets
from rim_lens.errors import RimLensError
from rim_lens.results import Manifest, Result
from rim_lens.stats import empirical_p, percentile
from rim_lens.stats.bootstrap import expanded_level
from rim_lens.units import columns_of

Pair = tuple[NeuronActivations, NeuronActivations]  # before, after


@dataclass(frozen=True, eq=False)
class ActivationShift(Result):
    """Shift of a set of neurons.

    `table`: one row for the set ("all") and one per layer: F before and after, the relative change with its bootstrap
    interval over prompts, loss, gain, movement with its interval, and, with control sets, their mean change, percentile
    and two-sided p, and the mean, spread and one-sided p of their movement. `neurons`: one row per neuron. `n_silent`
    neurons have F₀ = 0.
    """

    figure: ClassVar = "neurons:shift_by_layer"

    table: pd.DataFrame
    neurons: pd.DataFrame
    measure: str
    n_prompts: int
    n_controls: int
    n_silent: int
    states: tuple[str, str] = ("before", "after")

    def __repr__(self) -> str:
        first = self.table.iloc[0]
        return (
            f"ActivationShift({len(self.neurons)} neurons, {100 * first.change:+.1f} % "
            f"[{100 * first.low:+.1f}, {100 * first.high:+.1f}], {self.n_prompts} prompts)"
        )


def activation_shift(
    before: NeuronActivations,
    after: NeuronActivations,
    neurons: NeuronRows,
    *,
    controls: Int[np.ndarray, "set neuron index"] | None = None,
    measure: Measure = "magnitude",
    states: tuple[str, str] = ("before", "after"),
    n_resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> ActivationShift:
    """Loss and gain of a set between two measurements on the same prompts, with per-prompt values of these neurons.

    Args:
        before: activations at checkpoint 0 (or with thinking off).
        after: at checkpoint 1 (or with thinking on), on the same prompts in the same order.
        neurons: `SafetyNeurons`, or rows (layer, unit) or (layer, expert, unit).
        controls: matched random sets, see `matched_controls`.
        measure: "magnitude" or "signed".
        states: what both sides are called.
        n_resamples: bootstrap resamples of prompts.
        seed: of the bootstrap.
        level: of the intervals.

    Raises:
        RimLensError: other prompts on either side, or no values per prompt.
    """
    rows = neuron_rows(neurons)
    n = len_of((before, after))
    weights, tails = prompt_resamples(n, n_resamples, seed), tails_for(level, n)
    drawn = resampled_f((before, after), rows, weights, measure)
    f = [side.values(measure)[tuple(rows.T)].astype(np.float64) for side in (before, after)]
    scopes = {"all": np.ones(len(rows), dtype=bool)} | {
        f"L{layer}": rows[:, 0] == layer for layer in np.unique(rows[:, 0])
    }
    table = []
    for scope, inside in scopes.items():
        f0, f1 = (float(side[inside].mean()) for side in f)
        change = float(relative_change(np.array(f0), np.array(f1)))
        spread = relative_change(drawn[0][:, inside].mean(axis=1), drawn[1][:, inside].mean(axis=1))
        low, high = np.quantile(spread, tails)
        row = {"scope": scope, "n_neurons": int(inside.sum()), "f_before": f0, "f_after": f1, "change": change}
        row |= {"low": float(low), "high": float(high), "loss": max(0.0, -change), "gain": max(0.0, change)}
        moved = np.quantile(movement(drawn[0][:, inside], drawn[1][:, inside]), tails)
        row |= {"moved": float(movement(f[0][inside], f[1][inside]))}
        row |= {"moved_low": float(moved[0]), "moved_high": float(moved[1])}
        table.append(row | against_controls(row, (before, after), controls, rows, inside, measure))
    return ActivationShift(
        table=pd.DataFrame(table),
        neurons=neuron_changes(rows, f[0], f[1]),
        measure=measure,
        n_prompts=before.n_prompts,
        n_controls=0 if controls is None else len(controls),
        n_silent=int((f[0] == 0).sum()),
        states=states,
        manifest=Manifest.collect(
            None, seed=seed, measure=measure, before=before.manifest.model, after=after.manifest.model
        ),
    )


def relative_change(f0: Float[np.ndarray, "..."], f1: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """(F₁ − F₀) / F₀; 0 where F₀ = 0."""
    f0, f1 = np.asarray(f0, dtype=np.float64), np.asarray(f1, dtype=np.float64)
    return np.where(f0 == 0, 0.0, (f1 - f0) / np.where(f0 == 0, 1.0, f0))


def movement(f0: Float[np.ndarray, "... neuron"], f1: Float[np.ndarray, "... neuron"]) -> Float[np.ndarray, "..."]:
    """Σ |f₁ − f₀| / Σ |f₀| over neurons; 0 where all f₀ are 0."""
    size = np.abs(f0).sum(axis=-1)
    return np.where(size == 0, 0.0, np.abs(f1 - f0).sum(axis=-1) / np.where(size == 0, 1.0, size))


def loss_of(f0: Float[np.ndarray, "..."], f1: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """δ⁻ = max(0, (F₀ − F₁) / F₀)."""
    return np.maximum(0.0, -relative_change(f0, f1))


def gain_of(f0: Float[np.ndarray, "..."], f1: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """δ⁺ = max(0, (F₁ − F₀) / F₀)."""
    return np.maximum(0.0, relative_change(f0, f1))


def len_of(pair: Pair) -> int:
    """Number of prompts of both sides.

    Raises:
        RimLensError: the sides differ in prompts or neurons.
    """
    before, after = pair
    if before.n_prompts != after.n_prompts or before.mean.shape != after.mean.shape:
        raise RimLensError(
            f"A shift needs the same prompts and neurons on both sides, got {before.n_prompts} prompts of "
            f"{before.mean.shape} neurons before and {after.n_prompts} of {after.mean.shape} after."
        )
    return before.n_prompts


def prompt_resamples(n: int, n_resamples: int, seed: int) -> Float[np.ndarray, "resample prompt"]:
    """How often each of n prompts is drawn in each bootstrap resample."""
    if n < 2:
        raise RimLensError(f"A bootstrap over prompts needs at least 2 prompts, got {n}.")
    drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=n_resamples)
    return drawn.astype(np.float64)


def tails_for(level: float, n: int) -> tuple[float, float]:
    """Quantiles of n resampled prompts that have about the coverage `level`.

    Expanded as in `rim_lens.stats.bootstrap`.
    """
    wide = expanded_level(level, n)
    return (1 - wide) / 2, (1 + wide) / 2


def resampled_f(
    pair: Pair,
    rows: Int[np.ndarray, "neuron index"],
    weights: Float[np.ndarray, "resample prompt"],
    measure: Measure,
) -> tuple[Float[np.ndarray, "resample neuron"], Float[np.ndarray, "resample neuron"]]:
    """f(a; resampled prompts) on both sides, the same prompts drawn for both; tokens weigh alike, as in f itself."""
    sides = []
    for side in pair:
        token_weights = weights * side.prompt_tokens
        sides.append(token_weights @ side.of_prompts(rows, measure) / token_weights.sum(axis=1, keepdims=True))
    return sides[0], sides[1]


def against_controls(
    row: Mapping[str, float],
    pair: Pair,
    controls: Int[np.ndarray, "set neuron index"] | None,
    rows: Int[np.ndarray, "neuron index"],
    inside: np.ndarray,
    measure: Measure,
) -> dict[str, float]:
    """Where change and movement stand among control sets in the same layers; nothing without control sets."""
    if controls is None:
        return {}
    layers = set(rows[inside, 0].tolist())
    sets = controls[:, np.isin(controls[0, :, 0], list(layers))]
    f0, f1 = (of_sets(side.values(measure), sets).astype(np.float64) for side in pair)
    null, moved, change = relative_change(f0.mean(axis=1), f1.mean(axis=1)), movement(f0, f1), row["change"]
    return {
        "control_change": float(null.mean()),
        "control_sd": float(null.std(ddof=1)),
        "percentile": float(percentile(change, null)),
        "p": float(empirical_p(change, null)),
        "control_moved": float(moved.mean()),
        "control_moved_sd": float(moved.std(ddof=1)),
        "p_moved": float(empirical_p(row["moved"], moved, "greater")),
    }


def neuron_changes(
    rows: Int[np.ndarray, "neuron index"], f0: Float[np.ndarray, "neuron"], f1: Float[np.ndarray, "neuron"]
) -> pd.DataFrame:
    """One row per neuron: where it is, f before and after, and the relative change."""
    return pd.DataFrame({**columns_of(rows), "f_before": f0, "f_after": f1, "change": relative_change(f0, f1)})
