"""Correlation within each row of two arrays: over neurons of many control sets, or over heads in many resamples."""

import numpy as np
from jaxtyping import Float
from scipy.stats import rankdata

from rim_lens.stats import Interval
from rim_lens.stats.bootstrap import expanded_level

_MOST = 1 - 1e-9  # a correlation of 1 has no place on Fisher's scale


def pearson(a: Float[np.ndarray, "row item"], b: Float[np.ndarray, "row item"]) -> Float[np.ndarray, "row"]:
    """Pearson's r within each row; NaN where a side does not vary."""
    a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    length = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return (a * b).sum(axis=1) / np.where(length == 0, np.nan, length)


def spearman(a: Float[np.ndarray, "row item"], b: Float[np.ndarray, "row item"]) -> Float[np.ndarray, "row"]:
    """Spearman's ρ within each row; NaN where a side does not vary."""
    return pearson(rankdata(a, axis=1), rankdata(b, axis=1))


def percentiles(values: Float[np.ndarray, "resample"], n: int, level: float = 0.95) -> Interval:
    """Expanded percentiles of a correlation over n resampled items; NaN ends where none is known."""
    known = values[np.isfinite(values)]
    wide = expanded_level(level, n)
    low, high = np.quantile(known, ((1 - wide) / 2, (1 + wide) / 2)) if len(known) else (np.nan, np.nan)
    return Interval(float(low), float(high), level)


def about(value: float, resampled: Float[np.ndarray, "resample"], n: int, level: float = 0.95) -> Interval:
    """Interval of a correlation whose items are means over n resampled prompts; NaN ends where none is known.

    Means of resampled prompts hold the prompts' noise twice, so their correlations lie too low as a whole. What they
    tell is the spread: percentiles of the deviation from their mean, on Fisher's scale, around the observed value.
    """
    known = np.arctanh(np.clip(resampled[np.isfinite(resampled)], -_MOST, _MOST))
    if not len(known) or not np.isfinite(value):
        return Interval(np.nan, np.nan, level)
    wide = expanded_level(level, n)
    ends = np.quantile(known - known.mean(), ((1 - wide) / 2, (1 + wide) / 2))
    low, high = np.tanh(np.arctanh(np.clip(value, -_MOST, _MOST)) + ends)
    return Interval(float(min(low, value)), float(max(high, value)), level)
