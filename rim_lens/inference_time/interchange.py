"""Interchange sweep: head outputs exchanged at the decision position between a harmful request and its harmless twin.

    into_harmful(l, h)  = score of the harmful run with z(l, h) of its twin   −  score of the harmful run
    into_harmless(l, h) = score of the twin's run with z(l, h) of the harmful −  score of the twin's run
    interaction(a, b)   = effect of both together − effect of a − effect of b

Ablating one head misses a gate (it matters only where the request is harmful) and heads that do the same (each covers
for the other): arXiv 2604.04385. Exchange keeps outputs on their distribution, and pairs show redundancy: an
interaction of the sign of the effects means that both together do more than each alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from time import perf_counter
from typing import ClassVar, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float, Float64

from rim_lens.causal.effect_table import effect_table, grid, ranked_by
from rim_lens.causal.run_scores import (
    Metric,
    MetricFunction,
    RunScores,
    as_metric,
    heads_of,
    score_runs,
)
from rim_lens.chat.chat import Chat
from rim_lens.inference_time.patching import need_pairs
from rim_lens.intervene.recording import HeadRecording, record_heads
from rim_lens.model.as_chats import as_chats
from rim_lens.model.lens_model import LensModel
from rim_lens.model.requests import Prompts
from rim_lens.results import Manifest, Result
from rim_lens.stats import benjamini_hochberg, bootstrap_means, mean_test
from rim_lens.units import Head

DIRECTIONS = ("into_harmful", "into_harmless")


@dataclass(frozen=True, eq=False)
class InterchangeSweep(Result):
    """What exchanging each head between a harmful request and its harmless twin does to the score.

    `table` has one row per head and `direction`: mean `effect` over the n pairs, bootstrap `low`, `high`, `p`
    (`stats.mean_test`), Benjamini-Hochberg `q` over heads; ranked by the smaller of the two directions' effects towards
    the other run, so that a head comes first that both breaks refusal and makes it. `pairs` has one row per pair of the
    top heads and `intervention` ("interchange" in the harmful run, or "zero" at its decision position): the effects
    alone and together, and their `interaction` with interval, p and q over the pairs of that intervention.
    """

    figure: ClassVar = "sweeps:interchange_map"

    table: pd.DataFrame
    pairs: pd.DataFrame
    into_harmful: Float[np.ndarray, "prompt layer head"]
    into_harmless: Float[np.ndarray, "prompt layer head"]
    score_harmful: Float64[np.ndarray, " prompt"]
    score_harmless: Float64[np.ndarray, " prompt"]
    metric: str
    method: str  # "exact" or "plain"
    why_plain: str

    def ranked(self, k: int | None = None) -> list[Head]:
        """The k heads that carry most of the difference between the two requests, in both directions."""
        rows = self.table[self.table["direction"] == DIRECTIONS[0]]
        rows = rows.head(len(rows) if k is None else k)
        return Head.from_table(rows)

    def caption(self) -> str:
        """What was exchanged, on how many pairs, and the gap."""
        return (
            f"Head outputs exchanged at the decision position, n = {len(self.score_harmful)} pairs; {self.metric}; "
            f"harmful {self.score_harmful.mean():.3f}, harmless {self.score_harmless.mean():.3f}."
            + (f" Whole passes, since {self.why_plain}." if self.why_plain else "")
        )


def interchange_sweep(
    model: LensModel,
    harmful_chats: Prompts,
    harmless_twin_chats: Prompts,
    metric: Metric | None = None,
    *,
    method: Literal["exact", "plain"] = "exact",
    n_top: int = 6,
    n_permutations: int = 2000,
    seed: int = 0,
) -> InterchangeSweep:
    """Exchange every head between each harmful request and its twin, both ways, and the top heads in pairs.

    Args:
        model: the model.
        harmful_chats: harmful requests, in one thinking mode.
        harmless_twin_chats: their harmless twins, in the same order and mode; lengths may differ.
        metric: RefusalTokens, or a function from decision logits [row, vocab] to scores [row].
        method: "exact" (resumed at the changed layer) or "plain" (whole passes).
        n_top: the first heads of the ranking whose pairs are tested jointly.
        n_permutations: sign flips of the tests.
        seed: of permutations and bootstrap.

    Raises:
        RimLensError: the chats do not pair up.

    """
    harmful_chats = as_chats(model, harmful_chats)
    harmless_twin_chats = as_chats(model, harmless_twin_chats)
    begin = perf_counter()
    need_pairs(harmful_chats, harmless_twin_chats, "harmful", "harmless")
    score, metric_name = as_metric(model, metric)
    donors = [record_heads(model, chats) for chats in (harmless_twin_chats, harmful_chats)]
    heads, singles = heads_of(model), []
    for chats, donated in zip((harmful_chats, harmless_twin_chats), donors, strict=True):
        sets = [[head] for head in heads]
        singles.append(_scores(model, chats, sets, score, donated, method))
    harmful, harmless = singles
    test = {"n_permutations": n_permutations, "seed": seed}
    tables = [effect_table(heads, scores.effect, n_tests=len(heads), **test) for scores in singles]
    towards = np.sign((harmless.clean - harmful.clean).mean())
    order = np.minimum(towards * tables[0]["effect"], -towards * tables[1]["effect"]).to_numpy()
    for table, direction in zip(tables, DIRECTIONS, strict=True):
        table.insert(0, "direction", direction)
    ranked = [ranked_by(table, order) for table in tables]
    top = Head.from_table(ranked[0].head(n_top))
    pairs = [
        _pairs(_scores(model, harmful_chats, _sets(top), score, donated, method), top, name, **test)
        for name, donated in (("interchange", donors[0]), ("zero", None))
    ]
    return InterchangeSweep(
        table=pd.concat(ranked, ignore_index=True),
        pairs=pd.concat(pairs, ignore_index=True),
        into_harmful=grid(model, heads, harmful.effect),
        into_harmless=grid(model, heads, harmless.effect),
        score_harmful=harmful.clean,
        score_harmless=harmless.clean,
        metric=metric_name,
        method="plain" if harmful.how == "plain" else "exact",
        why_plain=harmful.why,
        manifest=Manifest.collect(model, seed=seed, seconds={"interchange_sweep": perf_counter() - begin}),
    )


def _scores(
    model: LensModel,
    chats: Sequence[Chat],
    sets: Sequence[Sequence[Head]],
    score: MetricFunction,
    donated: HeadRecording | None,
    method: str,
) -> RunScores:
    plain = method == "plain"
    return score_runs(
        model, chats, sets, score, positions="decision", donated=donated, plain=plain, description="exchanging heads"
    )


def _sets(top: Sequence[Head]) -> list[list[Head]]:
    """Each head alone, then every pair."""
    return [[one] for one in top] + [list(pair) for pair in combinations(top, 2)]


def _pairs(scores: RunScores, top: Sequence[Head], intervention: str, n_permutations: int, seed: int) -> pd.DataFrame:
    """One row per pair: effects alone and together, and their interaction, largest first."""
    alone, both = scores.effect[:, : len(top)], scores.effect[:, len(top) :]
    index = np.array(list(combinations(range(len(top)), 2))).reshape(-1, 2)
    interaction = both - alone[:, index[:, 0]] - alone[:, index[:, 1]]
    p = mean_test(interaction, n_permutations, seed).p
    interval = bootstrap_means(interaction, seed=seed)
    names = [str(head) for head in top]
    table = pd.DataFrame(
        {
            "intervention": intervention,
            "a": [names[i] for i, _ in index],
            "b": [names[j] for _, j in index],
            "n": len(interaction),
            "effect_a": alone.mean(axis=0)[index[:, 0]],
            "effect_b": alone.mean(axis=0)[index[:, 1]],
            "effect_both": both.mean(axis=0),
            "interaction": interaction.mean(axis=0),
            "low": interval.low,
            "high": interval.high,
            "p": p,
            "q": benjamini_hochberg(p),
        }
    )
    return ranked_by(table, table["interaction"].abs().to_numpy())
