"""Permutation p-values for many heads or neurons at once, with a family-wise one.

Every statistic here is computed from a vector of row weights: statistic = weights · scores, with scores the
values or their ranks. Permuting the labels permutes the weights, so m permutations for F elements are one
matrix product [m, n] × [n, F], done in chunks. Two-sided p = (b + 1) / (m + 1), b permutations at least as
extreme as the observed labelling (Phipson and Smyth 2010: never 0); when all labellings number at most m they
are enumerated instead and p = b / (their number), the observed one included.

Two groups' means are compared by Welch's t, whose permutations keep their level also where the groups differ in spread
and size (Janssen 1997); the plain difference of means does not (a smaller group of three times the spread: p < 0.05 in
20 % instead of 5 %). It takes one more product, with the squared values.

The family-wise p compares each element with the largest statistic of any element in the same permutation
(Westfall and Young 1993), after dividing by each element's permutation standard deviation so that no element
dominates by scale.

m permutations cannot give a p below 1 / (m + 1), which no correction over thousands of heads forgives. So elements
that fewer than `FEW` permutations reach are compared with more, up to 200 times the number of elements, until `FEW` do
(sequential Monte Carlo, Besag and Clifford 1991): one true head among 4,096 can then reach q < 0.05. What remains is
the floor of the data: 2^(1−n) from n pairs (14 for 270 heads, 16 for 1,152, 18 for 4,096), 1 / C(n, k) from groups.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import stats

from rim_lens.errors import RimLensError
from rim_lens.stats.effects import two_classes

Seed = int | np.random.Generator
Size = Callable[[Float[np.ndarray, "draw row"]], Float[np.ndarray, "draw element"]]
Statistic = Literal["mean_difference", "auroc"]
_CHUNK_ELEMENTS = 4_000_000  # float64 entries of one chunk of null statistics: 32 MB
FEW = 10  # permutations at least as extreme, below which more are drawn
_MORE_PER_ELEMENT, _MOST = 200, 1_000_000
ROUNDING = 1e-10  # statistics closer than this, relative to the element's scale, count as equal


@dataclass(frozen=True, eq=False)
class PermutationTest:
    """``statistic``, two-sided ``p`` and family-wise ``family_p``, each of the values' trailing shape.

    ``n`` rows (pairs if paired), ``n_permutations`` labellings compared for every element (more for small p), ``exact``
    if these are all there are.
    """

    statistic: Float[np.ndarray, "..."]
    p: Float[np.ndarray, "..."]
    family_p: Float[np.ndarray, "..."]
    n: int
    n_permutations: int
    exact: bool


def permutation_test(
    values: Float[np.ndarray, "n ..."],
    labels: Bool[np.ndarray, "n"],
    statistic: Statistic = "mean_difference",
    n_permutations: int = 2000,
    seed: Seed = 0,
    paired: bool = False,
) -> PermutationTest:
    """Test of "labels and values are unrelated" for every trailing element; NaN values give NaN for their element.

    Unpaired: rows are exchangeable under the null. Paired: the i-th positive row belongs to the i-th negative row (same
    prompt, say) and labels are swapped within pairs only, which supposes differences that lie symmetrically about 0;
    see :func:`rim_lens.stats.mean_test` for a mean of any differences. The statistic is positive minus negative mean,
    or the AUROC. Raises RimLensError when a class is empty or, if paired, the classes differ in size.
    """
    values, labels = two_classes(values, labels)
    if statistic not in ("mean_difference", "auroc"):
        raise RimLensError(f"Unknown statistic {statistic!r}; choose 'mean_difference' or 'auroc'.")
    check_count(n_permutations)
    rng = np.random.default_rng(seed)
    positive, negative = int(labels.sum()), int((~labels).sum())
    scores = values.reshape(len(values), -1)
    offset = 0.0
    if statistic == "auroc":
        # A mean-rank difference of n/2 is complete separation: AUROC = 1/2 + difference / n.
        scores, offset = stats.rankdata(scores, axis=0) / len(scores), 0.5
    scores = _centred(scores)
    if paired:
        if positive != negative:
            raise RimLensError(f"A paired test needs pairs, got {positive} positive and {negative} negative rows.")
        scores = scores[labels] - scores[~labels]
        observed = np.full(positive, 1 / positive)
        draws, exact = sign_draws(positive, n_permutations, rng)
    else:
        observed = np.where(labels, 1 / positive, -1 / negative)
        exact = math.comb(len(labels), positive) <= n_permutations
        draws = _all_labellings(labels, observed) if exact else _random_orders(observed, n_permutations, rng)
    welch = statistic == "mean_difference" and not paired and min(positive, negative) > 1
    size_of = partial(_welch, positive=positive, negative=negative) if welch else None

    def more(most: int) -> tuple[Iterable[Float[np.ndarray, "draw row"]], bool]:
        return sign_draws(positive, most, rng) if paired else (_random_orders(observed, most, rng), False)

    return _compare(observed, draws, scores, values.shape[1:], offset, exact, more, size_of)


def permutation_p(
    values: Float[np.ndarray, "n ..."],
    labels: Bool[np.ndarray, "n"],
    statistic: Statistic = "mean_difference",
    n_permutations: int = 2000,
    seed: Seed = 0,
    paired: bool = False,
) -> Float[np.ndarray, "..."]:
    """The two-sided p-values of :func:`permutation_test` alone."""
    return permutation_test(values, labels, statistic, n_permutations, seed, paired).p


def rank_correlation_test(
    values: Float[np.ndarray, "n ..."],
    outcome: Float[np.ndarray, "n"],
    n_permutations: int = 2000,
    seed: Seed = 0,
) -> PermutationTest:
    """Spearman's ρ of every trailing element with ``outcome``, ties at average rank; NaN for a constant element.

    n: at least 3 rows, exchangeable under the null "values and outcome are unrelated".
    """
    values, outcome = _as_columns(values, outcome)
    ranks = stats.rankdata(values.reshape(len(values), -1), axis=0)
    return _correlate(ranks, stats.rankdata(outcome), values.shape[1:], n_permutations, seed)


def correlation_test(
    values: Float[np.ndarray, "n ..."],
    outcome: Float[np.ndarray, "n"],
    n_permutations: int = 2000,
    seed: Seed = 0,
) -> PermutationTest:
    """Pearson's r of every trailing element with ``outcome``; as :func:`rank_correlation_test` otherwise."""
    values, outcome = _as_columns(values, outcome)
    return _correlate(values.reshape(len(values), -1), outcome, values.shape[1:], n_permutations, seed)


def _correlate(
    scores: Float[np.ndarray, "n element"],
    outcome: Float[np.ndarray, "n"],
    shape: tuple[int, ...],
    n_permutations: int,
    seed: Seed,
) -> PermutationTest:
    check_count(n_permutations)
    n, rng = len(outcome), np.random.default_rng(seed)
    weights, scores = _unit_columns(outcome[:, None])[:, 0], _unit_columns(scores)
    exact = math.factorial(n) <= n_permutations
    draws = iter([weights[_all_orders(n)]]) if exact else _random_orders(weights, n_permutations, rng)
    return _compare(weights, draws, scores, shape, 0.0, exact, lambda most: (_random_orders(weights, most, rng), False))


def _compare(
    observed: Float[np.ndarray, "row"],
    draws: Iterable[Float[np.ndarray, "draw row"]],
    scores: Float[np.ndarray, "row element"],
    shape: tuple[int, ...],
    offset: float,
    exact: bool,
    more: Callable[[int], tuple[Iterable[Float[np.ndarray, "draw row"]], bool]],
    size_of: Callable[[Float[np.ndarray, "row element"]], Size] | None = None,
) -> PermutationTest:
    """Counts, per element and for the largest element, the draws at least as extreme as the observed weights.

    `size_of` makes, for scores, the function from weights to what is compared; by default |weights · scores|, each
    element over its own scale. `more` draws up to so many labellings, and says whether these are all.
    """
    statistic = observed @ scores
    # All labellings give weights of one length, so the column's length is its permutation scale up to a constant.
    scale = np.linalg.norm(scores, axis=0)
    known = np.isfinite(scale)
    alive = known & (scale > 0)
    inverse = np.zeros_like(scale)
    inverse[alive] = 1 / scale[alive]
    clean = np.where(known, scores, 0.0) * inverse
    if size_of is None:
        scaled = np.where(known, np.abs(statistic) * inverse, 0.0)
        threshold = scaled - ROUNDING * np.linalg.norm(observed)
    else:
        threshold = size_of(scores)(observed[None])[0] * (1 - ROUNDING)
    size = _plain_size(clean) if size_of is None else size_of(scores)
    count = np.zeros(len(threshold))
    family_count = np.zeros(len(threshold))
    total = 0
    step = max(1, _CHUNK_ELEMENTS // max(1, clean.shape[1]))
    for block in draws:
        for start in range(0, len(block), step):
            null = size(block[start : start + step])
            count += (null >= threshold).sum(axis=0)
            largest = np.sort(null.max(axis=1, initial=0.0))
            family_count += len(largest) - np.searchsorted(largest, threshold)
            total += len(null)
    added = 0 if exact else 1
    p, family = (count + added) / (total + added), (family_count + added) / (total + added)
    if not exact:
        left = np.flatnonzero(alive & (count < FEW))

        def size_left(inside: Int[np.ndarray, "element"]) -> Size:
            return _plain_size(clean[:, inside]) if size_of is None else size_of(scores[:, inside])

        p[left] = finer_p(size_left, threshold, left, count, total, more)
        family = np.maximum(family, p)
    return PermutationTest(
        statistic=(statistic + offset).reshape(shape),
        p=np.where(known, p, np.nan).reshape(shape),
        family_p=np.where(known, family, np.nan).reshape(shape),
        n=len(observed),
        n_permutations=total,
        exact=exact,
    )


def _plain_size(clean: Float[np.ndarray, "row element"]) -> Size:
    """|weights · scores|."""
    return lambda weights: np.abs(weights @ clean)


def finer_p(
    size_of: Callable[[Int[np.ndarray, "element"]], Size],
    threshold: Float[np.ndarray, "element"],
    left: Int[np.ndarray, "left"],
    count: Float[np.ndarray, "element"],
    total: int,
    more: Callable[[int], tuple[Iterable[Float[np.ndarray, "draw row"]], bool]],
) -> Float[np.ndarray, "left"]:
    """P-values of the elements `left`, from more permutations, until `FEW` reach the threshold or enough were drawn.

    Where `more` enumerates all there are, p is exact.
    """
    draws, exact = more(min(_MOST, max(total, _MORE_PER_ELEMENT * len(threshold))))
    counts, totals = (
        (np.zeros(len(left)), np.zeros(len(left))) if exact else (count[left], np.full(len(left), 1.0 * total))
    )
    going = np.arange(len(left))
    size = size_of(left) if len(left) else None
    for block in draws:
        if size is None or not len(going):
            break
        step = max(1, _CHUNK_ELEMENTS // len(going))
        for start in range(0, len(block), step):
            null = size(block[start : start + step])
            counts[going] += (null >= threshold[left[going]]).sum(axis=0)
            totals[going] += len(null)
        if not exact and (counts[going] >= FEW).any():
            going = going[counts[going] < FEW]
            size = size_of(left[going]) if len(going) else None
    added = 0 if exact else 1
    return (counts + added) / (totals + added)


def _welch(
    scores: Float[np.ndarray, "row element"], positive: int, negative: int
) -> Callable[[Float[np.ndarray, "draw row"]], Float[np.ndarray, "draw element"]]:
    """|t| of Welch for centred scores and weights of 1/positive and −1/negative.

    0 where means agree, constant ones included.
    """
    length = np.linalg.norm(scores, axis=0)
    known = np.isfinite(length) & (length > 0)
    unit = np.where(known, scores, 0.0) / np.where(known, length, 1.0)
    squares, n = unit**2, positive + negative

    def size(weights: Float[np.ndarray, "draw row"]) -> Float[np.ndarray, "draw element"]:
        difference = weights @ unit
        inside = (weights > 0).astype(np.float64) @ squares
        # The scores' sum is 0, so the difference gives both means.
        first = (inside - positive * (difference * negative / n) ** 2) / (positive - 1) / positive
        second = (
            (squares.sum(axis=0) - inside - negative * (difference * positive / n) ** 2) / (negative - 1) / negative
        )
        error = np.sqrt(np.maximum(first + second, 0.0))
        difference = np.abs(difference)
        with np.errstate(divide="ignore", invalid="ignore"):
            # A variance below rounding is none: complete separation of constants is infinitely large.
            return np.where(difference < ROUNDING, 0.0, difference / np.where(error < ROUNDING, 0.0, error))

    return size


def _random_orders(
    weights: Float[np.ndarray, "row"], n_draws: int, rng: np.random.Generator
) -> Iterator[Float[np.ndarray, "draw row"]]:
    for size in _sizes(n_draws, len(weights)):
        yield rng.permuted(np.tile(weights, (size, 1)), axis=1)


@lru_cache(maxsize=4)
def _all_orders(n: int) -> Int[np.ndarray, "order n"]:
    """All n! orders of n rows, for the few rows for which they are counted out."""
    return np.array(list(itertools.permutations(range(n))), dtype=np.int8)


def sign_draws(
    n_pairs: int, n_permutations: int, rng: np.random.Generator
) -> tuple[Iterator[Float[np.ndarray, "draw pair"]], bool]:
    """Weights of ±1/n in blocks, and whether these are all 2ⁿ."""
    if 2**n_pairs <= n_permutations:
        return _all_signs(n_pairs), True
    return _random_signs(n_pairs, n_permutations, rng), False


def _random_signs(n_pairs: int, n_draws: int, rng: np.random.Generator) -> Iterator[Float[np.ndarray, "draw pair"]]:
    for size in _sizes(n_draws, n_pairs):
        yield (2.0 * rng.integers(0, 2, size=(size, n_pairs)) - 1) / n_pairs


def _all_signs(n_pairs: int) -> Iterator[Float[np.ndarray, "draw pair"]]:
    return _chunked(itertools.product((1 / n_pairs, -1 / n_pairs), repeat=n_pairs), n_pairs)


def _all_labellings(
    labels: Bool[np.ndarray, "row"], weights: Float[np.ndarray, "row"]
) -> Iterator[Float[np.ndarray, "draw row"]]:
    high, low, rows = weights[labels][0], weights[~labels][0], range(len(labels))
    chosen = (set(rows_chosen) for rows_chosen in itertools.combinations(rows, int(labels.sum())))
    return _chunked(([high if row in rows_chosen else low for row in rows] for rows_chosen in chosen), len(labels))


def _chunked(rows: Iterable[Iterable[float]], width: int) -> Iterator[Float[np.ndarray, "draw row"]]:
    rows = iter(rows)
    while chunk := list(itertools.islice(rows, max(1, _CHUNK_ELEMENTS // (8 * width)))):
        yield np.array([tuple(row) for row in chunk], dtype=np.float64)


def _sizes(n_draws: int, width: int) -> Iterator[int]:
    step = max(1, _CHUNK_ELEMENTS // max(1, width))
    return (min(step, n_draws - start) for start in range(0, n_draws, step))


def _centred(values: Float[np.ndarray, "n element"]) -> Float[np.ndarray, "n element"]:
    """Columns minus their mean; exactly 0 where a column is constant up to rounding."""
    centred = values - values.mean(axis=0)
    rounding = 1e-12 * np.abs(values).max(axis=0)
    return np.where(np.abs(centred).max(axis=0) <= rounding, 0.0, centred)


def _unit_columns(values: Float[np.ndarray, "n element"]) -> Float[np.ndarray, "n element"]:
    """Columns centred and of length 1; NaN for constant columns."""
    centred = _centred(values)
    length = np.linalg.norm(centred, axis=0)
    return centred / np.where(length == 0, np.nan, length)


def _as_columns(
    values: Float[np.ndarray, "n ..."], outcome: Float[np.ndarray, "n"]
) -> tuple[Float[np.ndarray, "n ..."], Float[np.ndarray, "n"]]:
    values, outcome = np.asarray(values, dtype=np.float64), np.asarray(outcome, dtype=np.float64)
    if outcome.ndim != 1 or values.ndim == 0 or len(values) != len(outcome):
        raise RimLensError(f"A correlation needs one outcome per row, got {outcome.shape} for values {values.shape}.")
    if len(outcome) < 3:
        raise RimLensError(f"A correlation needs at least 3 rows, got {len(outcome)}; use more prompts.")
    if not np.isfinite(outcome).all() or np.ptp(outcome) == 0:
        raise RimLensError("A correlation needs finite outcomes that are not all equal; check the outcome column.")
    return values, outcome


def check_count(n_permutations: int) -> None:
    """Raise for fewer than one permutation."""
    if n_permutations < 1:
        raise RimLensError(f"The number of permutations must be at least 1, got {n_permutations}.")
