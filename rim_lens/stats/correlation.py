"""Correlation of a predictor with an outcome over few points (checkpoints), and which of two predictors is
better.

Pearson's r and Spearman's ρ with permutation p-values: exact over all n! orders up to n = 8, drawn beyond.
The interval of r is an expanded percentile bootstrap over the points (Hesterberg 2015): with 8 to 12 points plain
percentiles cover far less than they promise, so they are taken at the normal tail of t_{n−1} √(n/(n−1)). Ranks of
resampled points have ties that the points have not, so the interval of ρ is

    tanh(artanh ρ ± z √((1 + ρ²/2) / (n − 3)))        Bonett and Wright 2000

with |ρ| held half a step, 6/(n(n² − 1)), below 1: a perfect order of few points is not proof of one.
Fewer than 4 points are refused: no order of 3 points can reach p < 0.3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

from rim_lens.errors import RimLensError
from rim_lens.stats.bootstrap import expanded_level
from rim_lens.stats.intervals import Interval, normal_quantile
from rim_lens.stats.permutation import Seed, correlation_test, rank_correlation_test

Kind = Literal["pearson", "spearman"]
_PERMUTATIONS = 40_320  # 8!, so that up to 8 points every order is counted


@dataclass(frozen=True)
class Correlation:
    """Pearson and Spearman over n points, each with two-sided permutation p and 95 % interval."""

    n: int
    pearson: float
    pearson_p: float
    pearson_interval: Interval
    spearman: float
    spearman_p: float
    spearman_interval: Interval

    def __str__(self) -> str:
        return (
            f"r = {self.pearson:.2f} {self.pearson_interval}, p = {self.pearson_p:.2g}; "
            f"ρ = {self.spearman:.2f} {self.spearman_interval}, p = {self.spearman_p:.2g} (n = {self.n})"
        )


@dataclass(frozen=True)
class CorrelationDifference:
    """Correlation of the first predictor minus that of the second, with the same n points resampled for both.

    ``certainty`` is the share of resamples in which the first correlates more strongly in the expected
    (positive) direction, ties counted half: 0.5 means no preference.
    """

    n: int
    kind: Kind
    value: float
    interval: Interval
    certainty: float


def correlation(
    x: Float[np.ndarray, "point"],
    y: Float[np.ndarray, "point"],
    n_resamples: int = 2000,
    seed: Seed = 0,
    level: float = 0.95,
    n_permutations: int = _PERMUTATIONS,
) -> Correlation:
    """Correlation of x and y over their points, assumed independent; all orders are counted where they number at most
    `n_permutations`.

    Raises RimLensError for fewer than 4 points, NaN, or a side that is constant.
    """
    x, y = _points(x, y)
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, len(x), size=(n_resamples, len(x)))
    pearson = correlation_test(x[:, None], y, n_permutations, rng)
    spearman = rank_correlation_test(x[:, None], y, n_permutations, rng)
    low, high = spearman_interval(spearman.statistic[0], len(x), level)
    return Correlation(
        n=len(x),
        pearson=float(pearson.statistic[0]),
        pearson_p=float(pearson.p[0]),
        pearson_interval=_interval(_resampled(x, y, rows, "pearson"), len(x), level),
        spearman=float(spearman.statistic[0]),
        spearman_p=float(spearman.p[0]),
        spearman_interval=Interval(float(low), float(high), level),
    )


def spearman_interval(
    rho: Float[np.ndarray, "..."] | float, n: int, level: float = 0.95
) -> tuple[Float[np.ndarray, "..."], Float[np.ndarray, "..."]]:
    """Bounds of Spearman's ρ over n points, n at least 4; the bound beyond a perfect order is ±1."""
    rho = np.asarray(rho, dtype=np.float64)
    most = 1 - 6 / (n * (n**2 - 1))
    held = np.clip(rho, -most, most)
    half = normal_quantile(level) * np.sqrt((1 + held**2 / 2) / (n - 3))
    low, high = np.tanh(np.arctanh(held) - half), np.tanh(np.arctanh(held) + half)
    return np.where(rho < -most, -1.0, low), np.where(rho > most, 1.0, high)


def correlation_difference(
    x1: Float[np.ndarray, "point"],
    x2: Float[np.ndarray, "point"],
    y: Float[np.ndarray, "point"],
    kind: Kind = "pearson",
    n_resamples: int = 2000,
    seed: Seed = 0,
    level: float = 0.95,
) -> CorrelationDifference:
    """Which of two predictors of y correlates better over the same points, and with what certainty.

    Raises RimLensError as :func:`correlation` does.
    """
    if kind not in ("pearson", "spearman"):
        raise RimLensError(f"Unknown correlation {kind!r}; choose 'pearson' or 'spearman'.")
    (x1, y), (x2, _) = _points(x1, y), _points(x2, y)
    rows = np.random.default_rng(seed).integers(0, len(y), size=(n_resamples, len(y)))
    whole = np.arange(len(y))[None]
    value = _resampled(x1, y, whole, kind)[0] - _resampled(x2, y, whole, kind)[0]
    resampled = _resampled(x1, y, rows, kind) - _resampled(x2, y, rows, kind)
    known = resampled[np.isfinite(resampled)]
    certainty = float((known > 0).mean() + 0.5 * (known == 0).mean()) if len(known) else math.nan
    return CorrelationDifference(len(y), kind, float(value), _interval(resampled, len(y), level), certainty)


def _points(
    x: Float[np.ndarray, "point"], y: Float[np.ndarray, "point"]
) -> tuple[Float[np.ndarray, "point"], Float[np.ndarray, "point"]]:
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if x.ndim != 1 or x.shape != y.shape:
        raise RimLensError(f"A correlation needs two flat arrays of equal length, got {x.shape} and {y.shape}.")
    if len(x) < 4:
        raise RimLensError(
            f"A correlation over {len(x)} points says nothing; at least 4 are needed, so add checkpoints."
        )
    for side in (x, y):
        if not np.isfinite(side).all() or np.ptp(side) == 0:
            raise RimLensError("A correlation needs finite numbers that are not all equal on both sides.")
    return x, y


def _resampled(
    x: Float[np.ndarray, "point"],
    y: Float[np.ndarray, "point"],
    rows: Int[np.ndarray, "resample point"],
    kind: Kind,
) -> Float[np.ndarray, "resample"]:
    """Correlation within each resample of points; NaN where a side of the resample is constant."""
    first, second = x[rows], y[rows]
    if kind == "spearman":
        first, second = stats.rankdata(first, axis=1), stats.rankdata(second, axis=1)
    first, second = first - first.mean(axis=1, keepdims=True), second - second.mean(axis=1, keepdims=True)
    length = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    constant = (np.ptp(x[rows], axis=1) == 0) | (np.ptp(y[rows], axis=1) == 0)
    return np.clip((first * second).sum(axis=1) / np.where(constant, np.nan, length), -1, 1)


def _interval(resampled: Float[np.ndarray, "resample"], n: int, level: float) -> Interval:
    known = resampled[np.isfinite(resampled)]
    if len(known) == 0:
        return Interval(math.nan, math.nan, level)
    tail = (1 - expanded_level(level, n)) / 2
    low, high = np.quantile(known, (tail, 1 - tail))
    return Interval(float(low), float(high), level)
