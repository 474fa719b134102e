"""Correlation within each row of two arrays: over neurons of many control sets, or over heads in many resamples."""

import numpy as np
from jaxtyping import Float
from scipy.stats import rankdata

from rim_lens.stats import Interval


def pearson(a: Float[np.ndarray, "row item"], b: Float[np.ndarray, "row item"]) -> Float[np.ndarray, "row"]:
    """Pearson's r within each row; NaN where a side does not vary."""
    a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    length = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return (a * b).sum(axis=1) / np.where(length == 0, np.nan, length)


def spearman(a: Float[np.ndarray, "row item"], b: Float[np.ndarray, "row item"]) -> Float[np.ndarray, "row"]:
    """Spearman's ρ within each row; NaN where a side does not vary."""
    return pearson(rankdata(a, axis=1), rankdata(b, axis=1))


def percentiles(values: Float[np.ndarray, "resample"], level: float = 0.95) -> Interval:
    """The interval that holds `level` of the resampled values; NaN ends where none is known."""
    known = values[np.isfinite(values)]
    low, high = np.quantile(known, ((1 - level) / 2, (1 + level) / 2)) if len(known) else (np.nan, np.nan)
    return Interval(float(low), float(high), level)
