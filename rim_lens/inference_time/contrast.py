"""How strongly a quantity of every head (or layer) goes with refusal: effect, interval, AUROC, permutation p, BH q.

Three designs, the same columns:

- groups: d = (mean of the plus rows − mean of the minus rows) / pooled standard deviation (Cohen 1988); AUROC; labels
  permuted over rows.
- pairs: d_z = mean / standard deviation of the differences; AUROC of one side against the other; signs permuted, with p
  no smaller than that of the mean difference's interval (`rim_lens.stats.mean_test`), since signs alone suppose
  symmetry.
- ranks: Spearman's ρ with a continuous outcome; the outcome permuted over rows.

Intervals of d and d_z: `rim_lens.stats.effects`; of ρ: `rim_lens.stats.correlation`.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

from rim_lens.errors import RimLensError
from rim_lens.stats import auroc, benjamini_hochberg, cohens_d, mean_test, permutation_test, rank_correlation_test
from rim_lens.stats.correlation import spearman_interval
from rim_lens.stats.effects import standardised_interval

Design = Literal["groups", "pairs", "ranks"]


@dataclass(frozen=True, eq=False)
class Contrast:
    """Statistics of the trailing shape; `n_plus` and `n_minus` rows (both the number of pairs, or of rows for ranks).

    `mean_plus` and `mean_minus` are in the values' own unit; for ranks they are the means above and below the median
    outcome. `auroc` is NaN for ranks.
    """

    design: Design
    effect: Float[np.ndarray, "..."]
    low: Float[np.ndarray, "..."]
    high: Float[np.ndarray, "..."]
    auroc: Float[np.ndarray, "..."]
    p: Float[np.ndarray, "..."]
    q: Float[np.ndarray, "..."]
    family_p: Float[np.ndarray, "..."]
    mean_plus: Float[np.ndarray, "..."]
    mean_minus: Float[np.ndarray, "..."]
    n_plus: int
    n_minus: int


def group_contrast(
    values: Float[np.ndarray, "n ..."],
    plus: Bool[np.ndarray, "n"],
    *,
    n_permutations: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Contrast:
    """Plus rows against minus rows. Raises RimLensError for a group of fewer than 2 rows."""
    values = np.asarray(values, dtype=np.float64)
    effect = cohens_d(values, plus)
    test = permutation_test(values, plus, n_permutations=n_permutations, seed=seed)
    share = plus.mean()
    low, high = standardised_interval([values[plus], values[~plus]], (share, 1 - share), level)
    return Contrast(
        "groups",
        effect,
        low,
        high,
        auroc(values, plus),
        test.p,
        benjamini_hochberg(test.p),
        test.family_p,
        values[plus].mean(axis=0),
        values[~plus].mean(axis=0),
        int(plus.sum()),
        int((~plus).sum()),
    )


def pair_contrast(
    plus: Float[np.ndarray, "pair ..."],
    minus: Float[np.ndarray, "pair ..."],
    *,
    n_permutations: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Contrast:
    """Row i of `plus` against row i of `minus`, two measurements of the same prompt. At least 2 pairs."""
    plus, minus = np.asarray(plus, dtype=np.float64), np.asarray(minus, dtype=np.float64)
    if plus.shape != minus.shape or len(plus) < 2:
        raise RimLensError(
            f"A paired contrast needs the same two or more prompts on both sides, got {plus.shape} and {minus.shape}."
        )
    values = np.concatenate([plus, minus])
    labels = np.arange(len(values)) < len(plus)
    difference = plus - minus
    rounding = 1e-12 * np.abs(values).max(axis=0)
    test = mean_test(np.where(np.abs(difference) <= rounding, 0.0, difference), n_permutations, seed)
    low, high = standardised_interval([difference], (1.0,), level)
    return Contrast(
        "pairs",
        ratio(difference.mean(axis=0), difference.var(axis=0, ddof=1), np.abs(values).max(axis=0)),
        low,
        high,
        auroc(values, labels),
        test.p,
        benjamini_hochberg(test.p),
        test.family_p,
        plus.mean(axis=0),
        minus.mean(axis=0),
        len(plus),
        len(plus),
    )


def rank_contrast(
    values: Float[np.ndarray, "n ..."],
    outcome: Float[np.ndarray, "n"],
    *,
    n_permutations: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Contrast:
    """Rank correlation with an outcome; positive where the value rises with it. At least 4 rows."""
    values, outcome = np.asarray(values, dtype=np.float64), np.asarray(outcome, dtype=np.float64)
    n = len(outcome)
    if n < 4:
        raise RimLensError(f"A rank correlation with an interval needs at least 4 prompts, got {n}; use more.")
    test = rank_correlation_test(values, outcome, n_permutations=n_permutations, seed=seed)
    rho = np.clip(test.statistic, -1, 1)
    low, high = spearman_interval(rho, n, level)
    upper = outcome > np.median(outcome)
    means = [values[side].mean(axis=0) if side.any() else np.full(rho.shape, np.nan) for side in (upper, ~upper)]
    nothing = np.full(rho.shape, np.nan)
    q = benjamini_hochberg(test.p)
    return Contrast("ranks", rho, low, high, nothing, test.p, q, test.family_p, means[0], means[1], n, n)


def ratio(
    mean: Float[np.ndarray, "..."], variance: Float[np.ndarray, "..."], scale: Float[np.ndarray, "..."]
) -> Float[np.ndarray, "..."]:
    """Mean over standard deviation; rounding noise of constant values (1e-9 of their size) counts as none."""
    noise = 1e-9 * scale
    spread = np.where(variance <= noise**2, 0.0, np.sqrt(variance))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where((spread == 0) & (np.abs(mean) <= noise), 0.0, mean / spread)
