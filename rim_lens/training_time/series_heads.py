"""Do refusal heads move during fine-tuning?

Measured are effect and attention of chosen heads at every checkpoint, against random heads.

effect      refusal score without the head at the decision position − with it, mean over prompts (negative: it supports
refusal) attention   mass from the decision position to the empty think span, or to the CoT where the chats have one

Random heads are drawn from the chosen ones' layers. Whether heads keep their roles is told by Spearman's correlation
over heads with the reference checkpoint: of effects over chosen and random heads, of attention over all heads.
Intervals: a bootstrap over prompts, both checkpoints on the same prompts, for the correlation that as many prompts show
(`row_correlations.about`). Two measurements of one thing correlate less than perfectly; how much the reference
correlates with itself, one random half of the prompts against the other, is given beside.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float

from rim_lens.chat.segments import SEGMENTS
from rim_lens.errors import RimLensError
from rim_lens.model.lens_model import LensModel
from rim_lens.results import Manifest, Result
from rim_lens.stats import bootstrap_mean
from rim_lens.training_time.row_correlations import about, spearman
from rim_lens.training_time.series_measures import AtCheckpoint
from rim_lens.training_time.shift import prompt_resamples
from rim_lens.units import AnyHead, Head, heads_from

FEWEST = 4  # heads or prompts below which a rank correlation says nothing
N_HALVES = 100


@dataclass(frozen=True, eq=False)
class SeriesHeads(Result):
    """Heads over a series of checkpoints.

    `table`: one row per checkpoint, with the mean effect and attention of the `chosen` and of the `random` heads
    (interval over prompts), the chosen heads' change from the reference (paired interval), and the rank correlations
    over heads with the reference (intervals). `heads`: one row per checkpoint and head. `halves`: rank correlation of
    effects and of attention between halves of the prompts at the reference.
    """

    figure: ClassVar = "series_heads:heads_by_checkpoint"

    table: pd.DataFrame
    heads: pd.DataFrame
    reference: str
    segment: str
    n_chosen: int
    n_random: int
    n_heads: int
    n_prompts: int
    halves: dict[str, float]

    def __repr__(self) -> str:
        return f"SeriesHeads({self.n_chosen} heads and {self.n_random} random ones at {len(self.table)} checkpoints)"

    def caption(self) -> str:
        """What was followed, and on how many prompts."""
        return (
            f"{self.n_chosen} chosen heads and {self.n_random} random ones of the same layers at {len(self.table)} "
            f"checkpoints, {self.n_prompts} prompts; attention to the {self.segment}"
        )


def followed(
    model: LensModel, heads: Sequence[AnyHead], n_random: int | None = None, seed: int = 0
) -> list[list[Head]]:
    """The chosen heads and random ones of their layers, each a set of its own.

    Raises:
        RimLensError: no heads, or layers without other ones.
    """
    if not heads:
        raise RimLensError("There are no heads to follow; pass at least one (layer, head).")
    chosen = heads_from(heads)
    wanted = 2 * len(chosen) if n_random is None else n_random
    rng, free = np.random.default_rng(seed), {}
    for layer in sorted({layer for layer, _ in chosen}):
        others = [head for head in range(model.n_heads) if (layer, head) not in chosen]
        free[layer] = [Head(layer, int(head)) for head in rng.permutation(others)]
    if wanted < 1 or not any(free.values()):
        raise RimLensError(f"No random heads can be drawn: the layers {list(free)} have none but the chosen ones.")
    drawn: list[Head] = []
    while len(drawn) < wanted and any(free.values()):
        for layer, _ in chosen:  # as many from each layer, as far as it has any
            if free[layer] and len(drawn) < wanted:
                drawn.append(free[layer].pop())
    return [[head] for head in [*chosen, *drawn]]


def series_heads(
    model: LensModel | None,
    measurements: Sequence[AtCheckpoint],
    n_chosen: int,
    sets: Sequence[Sequence[Head]],
    span: Literal["CoT", "empty think span"],
    *,
    n_resamples: int = 1000,
    seed: int = 0,
) -> SeriesHeads:
    """Heads from what `measure_series(..., heads=)` returned, the reference first; the first sets are chosen ones."""
    n_prompts = len(measurements[0].refusal)
    if n_prompts < FEWEST or len(sets) < FEWEST:
        raise RimLensError(f"Following heads takes at least {FEWEST} prompts and {FEWEST} heads, chosen and random.")
    names = [str(head) for (head,) in sets]
    effects = [effect_of(measurement) for measurement in measurements]
    attention = [span_mass(measurement, span) for measurement in measurements]
    layers, numbers = np.array([one[0] for one in sets]).T
    mine = [mass[:, layers, numbers] for mass in attention]
    every = [mass.reshape(len(mass), -1) for mass in attention]
    weights = prompt_resamples(n_prompts, n_resamples, seed)
    table, rows = [], []
    for i, one in enumerate(measurements):
        where = {"checkpoint": one.checkpoint.name, "arm": one.checkpoint.arm, "step": one.checkpoint.step}
        row: dict[str, Any] = {**where, "n": n_prompts}
        for name, values in (("effect", effects), ("attention", mine)):
            row |= interval(f"{name}", values[i][:, :n_chosen].mean(axis=1), seed)
            row |= interval(f"{name}_random", values[i][:, n_chosen:].mean(axis=1), seed)
            row |= interval(f"{name}_change", (values[i] - values[0])[:, :n_chosen].mean(axis=1), seed)
        for name, values in (("effect", effects), ("attention", every)):
            row |= kept_order(f"{name}_rank", values[0], values[i], weights)
        table.append(row)
        for h, name in enumerate(names):
            about = {"head": name, "chosen": h < n_chosen} | interval("effect", effects[i][:, h], seed)
            rows.append({**where, **about, **interval("attention", mine[i][:, h], seed)})
    halves = {"effect": by_halves(effects[0], seed), "attention": by_halves(every[0], seed)}
    return SeriesHeads(
        table=pd.DataFrame(table),
        heads=pd.DataFrame(rows),
        reference=measurements[0].checkpoint.name,
        segment=span,
        n_chosen=n_chosen,
        n_random=len(sets) - n_chosen,
        n_heads=every[0].shape[1],
        n_prompts=n_prompts,
        halves=halves,
        manifest=Manifest.collect(model, seed=seed, heads=names),
    )


def effect_of(one: AtCheckpoint) -> Float[np.ndarray, "prompt head"]:
    """Refusal score without each head minus with all."""
    assert one.head_scores is not None  # measured with heads=
    return (one.head_scores - one.refusal).T


def span_mass(one: AtCheckpoint, span: str) -> Float[np.ndarray, "prompt layer head"]:
    """Attention from the decision position to the empty think span or the CoT."""
    assert one.attention is not None  # measured with heads=
    names = ("cot",) if span == "CoT" else ("think_open", "think_close")
    return np.nan_to_num(one.attention[..., [SEGMENTS.index(name) for name in names]].sum(axis=-1))


def interval(name: str, values: Float[np.ndarray, "prompt"], seed: int) -> dict[str, float]:
    """Mean over prompts with its bootstrap interval, as columns."""
    low, high = bootstrap_mean(values, seed=seed)
    return {name: float(values.mean()), f"{name}_low": low, f"{name}_high": high}


def kept_order(
    name: str,
    before: Float[np.ndarray, "prompt head"],
    after: Float[np.ndarray, "prompt head"],
    weights: Float[np.ndarray, "resample prompt"],
) -> dict[str, float]:
    """Spearman's correlation over heads of the means before and after, and where it lies with as many other prompts."""
    value = float(spearman(before.mean(axis=0)[None], after.mean(axis=0)[None])[0])
    low, high = about(value, spearman(weights @ before, weights @ after), len(before))
    return {name: value, f"{name}_low": low, f"{name}_high": high}


def by_halves(values: Float[np.ndarray, "prompt head"], seed: int) -> float:
    """Mean rank correlation over heads between random halves of the prompts."""
    rng, half = np.random.default_rng(seed), len(values) // 2
    halves = []
    for _ in range(N_HALVES):
        order = rng.permutation(len(values))
        sides = [values[part].mean(axis=0)[None] for part in (order[:half], order[half : 2 * half])]
        halves.append(spearman(*sides)[0])
    return float(np.nanmean(halves)) if np.isfinite(halves).any() else float("nan")
