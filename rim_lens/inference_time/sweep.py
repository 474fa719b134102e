"""Ablation sweep: the effect of zeroing each head, alone, on the refusal score (design 3.3).

    effect(l, h) = score with z(l, h) ← 0  −  score of the clean run           negative: the head supports refusal

exact     every head, each run resumed at the ablated layer (`causal.resume`)
screened  attribution estimates for all heads, then exact for those most likely to matter (`attribution`). Where 7.5 %
of the
          heads are measured, 8.4 of the ten largest effects are found on average (7 to 9, ten single prompts of a
          135M-parameter model that refuses; fewer where no head matters much); a larger `n_exact` finds more
plain     every head by a whole pass: slow, for every model; chosen by itself where runs cannot be resumed

A head that is one of several doing the same, or a gate, shows little here: see `patching` and `interchange`.
"""

import math
from dataclasses import dataclass
from time import perf_counter
from typing import ClassVar, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float, Float64

from rim_lens.causal.effect_table import effect_table, few_prompts, grid, ranked_by
from rim_lens.causal.run_scores import (
    CleanPasses,
    Metric,
    as_metric,
    heads_of,
    score_runs,
)
from rim_lens.chat.positions import Positions, words_of
from rim_lens.errors import RimLensError
from rim_lens.inference_time.attribution import head_attributions
from rim_lens.model.as_chats import as_chats
from rim_lens.model.lens_model import LensModel
from rim_lens.model.requests import Prompts
from rim_lens.results import Manifest, Result
from rim_lens.units import Head

SCREENED_SHARE, SCREENED_LEAST = 0.075, 12  # heads measured exactly after screening


@dataclass(frozen=True, eq=False)
class AblationSweep(Result):
    """Effect of zeroing each head on the score at the decision position, largest first.

    `table` has one row per measured head: mean `effect` over the n prompts in the metric's units, bootstrap interval
    `low`, `high` (NaN for one prompt), `p` (`stats.mean_test`) and Benjamini-Hochberg `q` over all heads of the model.
    """

    figure: ClassVar = "sweeps:ablation_map"

    table: pd.DataFrame
    effect: Float[np.ndarray, "prompt layer head"]  # NaN where a head was not measured
    clean: Float64[np.ndarray, " prompt"]  # scores of the clean runs
    estimate: Float[np.ndarray, "prompt layer head"] | None  # attribution, where screened
    metric: str
    method: str  # "exact", "screened" or "plain"
    positions: str
    why_plain: str  # empty unless `method` is "plain"

    def ranked(self, k: int | None = None, sign: Literal["any", "supports", "opposes"] = "any") -> list[Head]:
        """The k heads of largest effect; `supports`: ablation lowers the score, `opposes`: it raises the score."""
        rows = self.table
        if sign != "any":
            rows = rows[(rows["effect"] < 0) if sign == "supports" else (rows["effect"] > 0)]
        rows = rows.head(len(rows) if k is None else k)
        return Head.from_table(rows)

    def caption(self) -> str:
        """What was measured, on how many prompts, and how."""
        n_heads = int(np.prod(self.effect.shape[1:]))
        how = f"{self.method}" + (f", since {self.why_plain}" if self.why_plain else "")
        return (
            f"Zero ablation at {self.positions} positions, {len(self.table)} of {n_heads} heads ({how}), "
            f"n = {len(self.clean)} prompts; {self.metric}; clean mean {self.clean.mean():.3f}"
            f"{few_prompts(len(self.clean), n_heads, len(self.table))}."
        )


def ablation_sweep(
    model: LensModel,
    chats: Prompts,
    metric: Metric | None = None,
    method: Literal["exact", "screened", "plain"] = "exact",
    *,
    positions: Positions = "all",
    n_exact: int | None = None,
    n_permutations: int = 2000,
    seed: int = 0,
) -> AblationSweep:
    """Zero each head alone and score every prompt.

    Args:
        model: the model.
        chats: prompts, up to the decision position.
        metric: RefusalTokens (by default those of common refusal openings), or a function from decision logits
            [row, vocab] to scores [row]; for "screened" it must be differentiable.
        method: "exact", "screened" or "plain"; see the module.
        positions: where heads are zeroed (`rim_lens.chat.positions`); what lies before the first of them is computed
            once.
        n_exact: heads measured exactly after screening, by default 7.5 % of them and at least 12.
        n_permutations: sign flips of the test.
        seed: of permutations and bootstrap.

    Raises:
        RimLensError: no chats, an unknown method, or a chat without a token at the positions.

    """
    chats = as_chats(model, chats)
    if method not in ("exact", "screened", "plain"):
        raise RimLensError(f"unknown method {method!r}: use 'exact', 'screened' or 'plain'.")
    begin = perf_counter()
    score, metric_name = as_metric(model, metric)
    heads, estimate, clean = heads_of(model), None, CleanPasses()
    n_heads = len(heads)
    if method == "screened":
        attribution = head_attributions(model, chats, score, positions=positions, cache=clean)
        keep = max(SCREENED_LEAST, math.ceil(SCREENED_SHARE * n_heads)) if n_exact is None else n_exact
        heads = sorted(sorted(heads, key=lambda one: -attribution.priority[one])[:keep])
        estimate = attribution.estimate
    scores = score_runs(
        model,
        chats,
        [[one] for one in heads],
        score,
        positions=positions,
        plain=method == "plain",
        kept=clean,
        description="ablating heads",
    )
    table = effect_table(heads, scores.effect, n_tests=n_heads, n_permutations=n_permutations, seed=seed)
    return AblationSweep(
        table=ranked_by(table, table["effect"].abs().to_numpy()),
        effect=grid(model, heads, scores.effect),
        clean=scores.clean,
        estimate=estimate,
        metric=metric_name,
        method="plain" if scores.how == "plain" and method == "exact" else method,
        positions=words_of(positions),
        why_plain=scores.why,
        manifest=Manifest.collect(model, seed=seed, seconds={"ablation_sweep": perf_counter() - begin}),
    )
