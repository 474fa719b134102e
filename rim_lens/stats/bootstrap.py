"""Bootstrap intervals of a mean and of any statistic of the rows.

Rows are resampled with replacement (Efron 1979); BCa corrects the percentiles for bias and skew (Efron 1987, through
scipy.stats.bootstrap). Percentiles of few rows are too narrow, as a normal quantile is against Student's t, so they are
taken at the normal tail probability of t_{n−1} √(n/(n−1)) (the expanded percentile interval, Hesterberg 2015), and the
interval of a mean is widened where Student's t of the same rows reaches further: BCa alone misses the tails of few
heavy-tailed values (n = 8: 92 % covered), t alone the side of skewed ones (90 %), both together cover 93 to 97 % from n
= 8 on; at n = 100 all three are alike. For values measured on prompts × wordings see :mod:`rim_lens.stats.crossed`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Shaped
from scipy import stats

from rim_lens.errors import RimLensError
from rim_lens.stats.intervals import Interval, normal_quantile
from rim_lens.stats.permutation import Seed

Method = Literal["BCa", "percentile", "basic"]
_BATCH_ELEMENTS = 4_000_000  # resampled float64 entries held at once: 32 MB


@dataclass(frozen=True, eq=False)
class Intervals:
    """Bounds of the values' trailing shape at confidence ``level``; ``low, high = intervals`` unpacks it."""

    low: Float[np.ndarray, "..."]
    high: Float[np.ndarray, "..."]
    level: float = 0.95

    def __iter__(self) -> Iterator[Float[np.ndarray, "..."]]:
        return iter((self.low, self.high))


def bootstrap_mean(
    values: Float[np.ndarray, "n"], n_resamples: int = 2000, seed: Seed = 0, level: float = 0.95
) -> Interval:
    """BCa interval of the mean of n independent values, at least as wide as Student's.

    The ends are NaN for n < 2 and equal for constant values.

    For rates use :func:`rim_lens.stats.wilson`: a bootstrap of 0 successes in n has no spread, whatever its
    uncertainty.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1:
        raise RimLensError(f"bootstrap_mean takes a flat array, got {values.shape}; see bootstrap_means.")
    low, high = bootstrap_means(values, n_resamples, seed, level)
    return Interval(float(low), float(high), level)


def bootstrap_means(
    values: Float[np.ndarray, "n ..."], n_resamples: int = 2000, seed: Seed = 0, level: float = 0.95
) -> Intervals:
    """:func:`bootstrap_mean` of every trailing element; all elements share their resampled rows."""
    values = _checked(np.asarray(values, dtype=np.float64), n_resamples, level)
    mean = values.mean(axis=0) if len(values) else np.full(values.shape[1:], np.nan)
    if len(values) < 2:
        return Intervals(np.full(values.shape[1:], np.nan), np.full(values.shape[1:], np.nan), level)
    with warnings.catch_warnings():
        # Constant elements have no BCa interval; they are given their mean below.
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        warnings.simplefilter("ignore", RuntimeWarning)
        result = stats.bootstrap(
            (values,),
            np.mean,
            n_resamples=n_resamples,
            batch=max(1, _BATCH_ELEMENTS // values.size),
            vectorized=True,
            axis=0,
            confidence_level=expanded_level(level, len(values)),
            method="BCa",
            rng=np.random.default_rng(seed),
        ).confidence_interval
    half = stats.t.ppf((1 + level) / 2, len(values) - 1) * values.std(axis=0, ddof=1) / math.sqrt(len(values))
    low, high = np.fmin(result.low, mean - half), np.fmax(result.high, mean + half)
    constant = np.ptp(values, axis=0) <= 1e-12 * np.abs(values).max(axis=0)
    return Intervals(np.where(constant, mean, low), np.where(constant, mean, high), level)


def bootstrap(
    statistic: Callable[..., float],
    *arrays: Shaped[np.ndarray, "n ..."],
    n_resamples: int = 2000,
    seed: Seed = 0,
    level: float = 0.95,
    method: Method = "BCa",
) -> Interval:
    """Interval of ``statistic(*arrays)``, resampling the n rows of all arrays together (row i belongs to row i).

    n: at least 2 independent rows. A statistic without a BCa interval (constant over resamples, or undefined
    on some) falls to NaN ends, which is what scipy reports; use ``method="percentile"`` for statistics that
    cannot be smooth.
    """
    if not arrays or len({len(array) for array in arrays}) != 1 or len(arrays[0]) < 2:
        raise RimLensError("A bootstrap needs at least 2 rows and the same number of rows in every array.")
    columns = [np.asarray(array) for array in arrays]
    _checked(columns[0], n_resamples, level)

    def on_rows(rows: np.ndarray) -> float:
        return float(statistic(*(column[rows.astype(np.intp)] for column in columns)))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        result = stats.bootstrap(
            (np.arange(len(columns[0])),),
            on_rows,
            n_resamples=n_resamples,
            vectorized=False,
            confidence_level=expanded_level(level, len(columns[0])),
            method=method,
            rng=np.random.default_rng(seed),
        ).confidence_interval
    return Interval(float(result.low), float(result.high), level)


def expanded_level(level: float, n: int) -> float:
    """The level at which percentiles of a bootstrap of n rows have about the coverage ``level``."""
    normal_quantile(level)
    reach = stats.t.ppf((1 + level) / 2, n - 1) * math.sqrt(n / (n - 1))
    return min(0.9999, float(1 - 2 * stats.norm.sf(reach)))


def _checked(values: np.ndarray, n_resamples: int, level: float) -> np.ndarray:
    normal_quantile(level)
    if values.ndim == 0 or n_resamples < 2:
        raise RimLensError("A bootstrap needs an array of rows and at least 2 resamples.")
    return values
