"""Patching sweep: which heads, given the output they have with thinking off, bring refusal back with thinking on.

    effect(l, h)    = score of the on-run with z(l, h) from the off-run  −  score of the on-run
    returned(l, h)  = mean effect / mean (score off − score on)          1: this head alone restores the score

Outputs are taken and put at the same offsets from the decision position: the decision position alone, or every position
from the close tag on. Only those columns differ from the clean run, so the rest comes from the KV cache.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import ClassVar, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Float64

from rim_lens.causal.effect_table import effect_table, grid, ranked_by
from rim_lens.causal.run_scores import (
    Metric,
    MetricFunction,
    RunScores,
    as_metric,
    cut_at_decision,
    heads_of,
    score_runs,
)
from rim_lens.chat.chat import Chat
from rim_lens.chat.positions import Positions, places, words_of
from rim_lens.errors import RimLensError
from rim_lens.intervene.recording import record_heads
from rim_lens.model.as_chats import answered_chats, as_chats
from rim_lens.model.batch import Batch
from rim_lens.model.fitting import over_batches
from rim_lens.model.lens_model import LensModel
from rim_lens.model.requests import Prompts
from rim_lens.processes import all_rows
from rim_lens.results import Manifest, Result
from rim_lens.stats.bootstrap import expanded_level
from rim_lens.units import Head

RESAMPLES, CLEAN_BATCH = 2000, 16


@dataclass(frozen=True, eq=False)
class PatchingSweep(Result):
    """Refusal that comes back when a head gets its think-off output, largest first.

    `table` has one row per head: mean `effect` over the n prompts with interval `low`, `high`, `p` (`stats.mean_test`)
    and Benjamini-Hochberg `q`; `returned`, the share of the gap off − on, with its interval `returned_low`,
    `returned_high` (ratio of means, prompts resampled). `together` has the same for the first 1, 2, … heads of the
    table patched jointly (chosen on these prompts, so it flatters them) and for all heads of the model.
    """

    figure: ClassVar = "sweeps:patching_map"

    table: pd.DataFrame
    together: pd.DataFrame
    effect: Float[np.ndarray, "prompt layer head"]
    score_off: Float64[np.ndarray, " prompt"]
    score_on: Float64[np.ndarray, " prompt"]
    metric: str
    positions: str
    n_positions: int
    method: str  # "exact" or "plain"
    why_plain: str

    @property
    def gap(self) -> float:
        """Mean score off − mean score on: what there is to return."""
        return float((self.score_off - self.score_on).mean())

    def ranked(self, k: int | None = None) -> list[Head]:
        """The k heads that bring most of the score back, best first; heads that lower it are left out."""
        rows = self.table[self.table["returned"] > 0]
        rows = rows.head(len(rows) if k is None else k)
        return Head.from_table(rows)

    def caption(self) -> str:
        """What was patched, on how many prompts, and the gap."""
        everything = self.together.iloc[-1]
        return (
            f"Heads' think-off outputs put into the think-on run at {self.n_positions} position(s) ({self.positions}), "
            f"n = {len(self.score_on)} prompts; {self.metric}; off {self.score_off.mean():.3f}, on "
            f"{self.score_on.mean():.3f}; all heads together return {everything['returned']:.0%} of the gap."
            + (f" Whole passes, since {self.why_plain}." if self.why_plain else "")
        )


def patching_sweep(
    model: LensModel,
    off_chats: Prompts,
    on_chats: Sequence[Chat],
    metric: Metric | None = None,
    *,
    positions: Positions = "decision",
    method: Literal["exact", "plain"] = "exact",
    n_together: int = 10,
    n_permutations: int = 2000,
    seed: int = 0,
) -> PatchingSweep:
    """Give each head of every think-on run the output it has in the think-off run of the same request.

    Args:
        model: the model.
        off_chats: the requests with thinking off.
        on_chats: the same requests, in the same order, with thinking on (after generation) or prefilled.
        metric: RefusalTokens, or a function from decision logits [row, vocab] to scores [row].
        positions: those that reach to the decision position, such as "decision" or "from think_close".
        method: "exact" (resumed at the patched layer) or "plain" (whole passes).
        n_together: how many of the first heads are also patched jointly.
        n_permutations: sign flips of the test.
        seed: of permutations and bootstrap.

    Raises:
        RimLensError: the chats are not of the same requests, or a chat has no close tag where it is asked for.

    """
    off_chats = as_chats(model, off_chats)
    on_chats = answered_chats(on_chats, "on_chats")
    begin = perf_counter()
    need_pairs(off_chats, on_chats, "think-off", "think-on", same_request=True)
    width = aligned_width([*off_chats, *on_chats], positions)
    recording = record_heads(model, off_chats, offsets=range(1 - width, 1))
    score, metric_name = as_metric(model, metric)
    heads = heads_of(model)

    def patched(sets: Sequence[Sequence[Head]]) -> RunScores:
        return score_runs(
            model, on_chats, sets, score, donated=recording, plain=method == "plain", description="patching heads"
        )

    singles = patched([[head] for head in heads])
    score_off = clean_scores(model, off_chats, score)
    gap = score_off - singles.clean
    table = effect_table(heads, singles.effect, n_tests=len(heads), n_permutations=n_permutations, seed=seed)
    table = pd.concat([table, returned_table(singles.effect, gap, seed)], axis=1)
    table = ranked_by(table, np.sign(gap.mean()) * table["effect"].to_numpy())
    order = Head.from_table(table)
    sets = [order[:k] for k in range(1, min(n_together, len(order)) + 1)] + [heads]
    joint = patched(sets)
    together = pd.DataFrame({"k": [len(one) for one in sets], "n": len(gap), "effect": joint.effect.mean(axis=0)})
    return PatchingSweep(
        table=table,
        together=pd.concat([together, returned_table(joint.effect, gap, seed)], axis=1),
        effect=grid(model, heads, singles.effect),
        score_off=score_off,
        score_on=singles.clean,
        metric=metric_name,
        positions=words_of(positions),
        n_positions=width,
        method="plain" if singles.how == "plain" else "exact",
        why_plain=singles.why,
        manifest=Manifest.collect(model, seed=seed, seconds={"patching_sweep": perf_counter() - begin}),
    )


def aligned_width(chats: Sequence[Chat], positions: Positions) -> int:
    """Number of positions, up to the decision position, that all the chats have in common.

    Raises:
        RimLensError: a chat without these positions, or positions that do not reach to the decision position.

    """
    widths = []
    for chat in chats:
        before = chat.decision_position + 1
        inside = places(chat, positions)[:before]
        if not inside.any():
            raise RimLensError(
                f"the chat {chat.request[:40]!r} has no token at {words_of(positions)!r}: patch at "
                "positions='decision'."
            )
        widths.append(before - int(inside.argmax()))
        if not inside[-widths[-1] :].all():
            raise RimLensError(f"{words_of(positions)!r} does not reach to the decision position: patch 'decision'.")
    return min(widths)


def need_pairs(
    first: Sequence[Chat], second: Sequence[Chat], one: str, other: str, *, same_request: bool = False
) -> None:
    """Raise a RimLensError unless the chats pair up."""
    if len(first) != len(second) or not first:
        raise RimLensError(
            f"{len(first)} {one} and {len(second)} {other} chats: give the same number of both, in order."
        )
    if same_request:
        for i, (a, b) in enumerate(zip(first, second, strict=True)):
            if a.request != b.request:
                raise RimLensError(f"pair {i} has two requests, {a.request[:40]!r} and {b.request[:40]!r}.")


def clean_scores(model: LensModel, chats: Sequence[Chat], score: MetricFunction) -> Float64[np.ndarray, " prompt"]:
    """Scores of unchanged runs."""
    values, order = np.empty(len(chats)), list[int]()

    @torch.no_grad()
    def scored(indices: list[int], batch: Batch) -> list[int]:
        values[indices] = score(model.decision_logits(batch)).double().cpu().numpy()
        return indices

    for indices in over_batches(model, [cut_at_decision(chat) for chat in chats], CLEAN_BATCH, scored, "clean scores"):
        order += indices
    return all_rows(values, order)


def returned_table(
    effect: Float[np.ndarray, "prompt set"], gap: Float[np.ndarray, " prompt"], seed: int
) -> pd.DataFrame:
    """Mean effect over mean gap with a 95 % percentile interval, effects and gaps resampled together.

    NaN bounds for one prompt; wide ones where the gap itself is not clearly different from 0.
    """
    n = len(gap)
    low = high = np.full(effect.shape[1], np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        if n > 1:
            drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=RESAMPLES)
            ratios = (drawn @ effect) / (drawn @ gap)[:, None]
            tail = (1 - expanded_level(0.95, n)) / 2
            low, high = np.nanquantile(ratios, (tail, 1 - tail), axis=0)
        share = effect.mean(axis=0) / gap.mean()
    return pd.DataFrame({"returned": share, "returned_low": low, "returned_high": high})
