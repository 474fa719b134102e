"""p of "the mean is 0" over few prompts, for many heads at once: effects of ablation, paired differences.

Flipping signs (Fisher 1935) is exact for values that lie symmetrically about 0, and only for those: a mean of 0 made of
many small negative and a few large positive values comes out too often (exponential values, n = 8: p < 0.05 in 10 %).
Dividing by the standard error changes nothing, since t of flipped values rises with their mean. So the p of an element
is the largest of

- sign flips', exact when all 2ⁿ are enumerated: never below 2^(1−n), and drawn on for small p (`permutation.finer_p`);
- Student's t;
- the level at which the BCa interval of the mean reaches 0, without resampling (ABC, DiCiccio and Efron 1992): with d =
  x − mean, σ = √Σd² / n, a = Σd³ / (6 (Σd²)^{3/2}), a bound is mean + σ w / (1 − a w)², w = a + z, and z is t
  √(n/(n−1)) as in `rim_lens.stats.bootstrap`.

The last two are the test of the interval that `bootstrap_means` gives, so that p > 0.05 beside an interval without 0 is
rare. It costs power: against normal effects of 0.5 or 1 standard deviation 2 to 6 points at 8 and 16 values, 2 at 32
(docs/trust.md).

The family-wise p (Westfall and Young 1993) asks how often the largest |t| of any element under flipped signs exceeds
the |t| that has the element's p.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

from rim_lens.errors import RimLensError
from rim_lens.stats.permutation import FEW, ROUNDING, PermutationTest, Seed, Size, check_count, finer_p, sign_draws

_CHUNK_ELEMENTS = 4_000_000  # float64 entries of one chunk of flipped means: 32 MB


def mean_test(values: Float[np.ndarray, "n ..."], n_permutations: int = 2000, seed: Seed = 0) -> PermutationTest:
    """Two-sided test of "the mean over the n independent rows is 0" for every trailing element; NaN values give NaN.

    `exact` says that all signs were enumerated; p is then exact or cautious for values that lie symmetrically about 0.
    One row gives p = 1. Raises RimLensError for no rows.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim == 0 or len(values) == 0:
        raise RimLensError(f"A test of a mean needs at least one row, got shape {values.shape}; use more prompts.")
    check_count(n_permutations)
    n, x = len(values), values.reshape(len(values), -1)
    length = np.linalg.norm(x, axis=0)
    known = np.isfinite(length)
    unit = np.where(known & (length > 0), x, 0.0) / np.where(known & (length > 0), length, 1.0)
    observed = np.abs(unit.sum(axis=0)) / np.sqrt(n)  # |t| = r √((n − 1) / (1 − r²)) rises with r, at most 1
    alone = interval_p(np.where(known, x, 0.0))
    t = stats.t.isf(alone / 2, max(n - 1, 1))
    with np.errstate(invalid="ignore"):
        equivalent = np.where(np.isinf(t), 1.0, t / np.sqrt(t**2 + n - 1 if n > 1 else 1.0))
    equivalent = np.minimum(observed, equivalent)
    rng = np.random.default_rng(seed)
    draws, exact = sign_draws(n, n_permutations, rng)
    count, family_count, total = np.zeros(x.shape[1]), np.zeros(x.shape[1]), 0
    step = max(1, _CHUNK_ELEMENTS // max(1, x.shape[1]))
    for block in draws:
        for start in range(0, len(block), step):
            null = np.abs(block[start : start + step] @ unit) * np.sqrt(n)
            count += (null >= observed - ROUNDING).sum(axis=0)
            largest = np.sort(null.max(axis=1, initial=0.0))
            family_count += len(largest) - np.searchsorted(largest, equivalent - ROUNDING)
            total += len(null)
    added = 0 if exact else 1
    flipped = (count + added) / (total + added)
    if not exact:
        left = np.flatnonzero(known & (length > 0) & (count < FEW))

        def size_of(inside: Int[np.ndarray, "element"]) -> Size:
            return lambda signs: np.abs(signs @ unit[:, inside]) * np.sqrt(n)

        flipped[left] = finer_p(size_of, observed - ROUNDING, left, count, total, lambda most: sign_draws(n, most, rng))
    p = np.maximum(flipped, alone)
    family = np.maximum((family_count + added) / (total + added), p)
    shape = values.shape[1:]
    return PermutationTest(
        statistic=values.mean(axis=0),
        p=np.where(known, p, np.nan).reshape(shape),
        family_p=np.where(known, family, np.nan).reshape(shape),
        n=n,
        n_permutations=total,
        exact=exact,
    )


def interval_p(values: Float[np.ndarray, "n element"]) -> Float[np.ndarray, "element"]:
    """The larger of Student's p and that of the BCa interval.

    1 for values that are all 0 and for one row, 0 for other constants.
    """
    n, mean = len(values), values.mean(axis=0)
    if n < 2:
        return np.ones(values.shape[1])
    constant = np.ptp(values, axis=0) <= 1e-12 * np.abs(values).max(axis=0)
    moved = values - mean
    squares = np.where(constant, 1.0, (moved**2).sum(axis=0))
    student = 2 * stats.t.sf(np.abs(mean) * np.sqrt(n * (n - 1) / squares), n - 1)
    skew = (moved**3).sum(axis=0) / (6 * squares**1.5)
    place = -mean * n / np.sqrt(squares)  # of 0, in standard errors from the mean: w / (1 − a w)²
    inside = 1 + 4 * skew * place  # below 0 no bound of any level reaches 0
    w = 2 * place / (1 + 2 * skew * place + np.sqrt(np.maximum(inside, 0.0)))
    skewed = np.where(inside < 0, 0.0, 2 * stats.t.sf(np.abs(w - skew) * np.sqrt((n - 1) / n), n - 1))
    return np.where(constant, np.where(mean == 0, 1.0, 0.0), np.maximum(student, skewed))
