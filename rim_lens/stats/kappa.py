"""Cohen's kappa, agreement beyond chance (Cohen 1960), with a bootstrap interval over independent groups of items.

κ = (p_o − p_e) / (1 − p_e),  p_o the share of equal labels,  p_e = Σ_label p_a(label) p_b(label)
"""

import numpy as np
from jaxtyping import Float

from rim_lens.errors import RimLensError
from rim_lens.stats.intervals import Interval


def kappa(counts: Float[np.ndarray, "*draw label label"]) -> Float[np.ndarray, "*draw"]:
    """Kappa of tables of counts; NaN where chance alone makes all labels equal."""
    counts = np.asarray(counts, dtype=float)
    n = counts.sum(axis=(-2, -1))
    with np.errstate(invalid="ignore", divide="ignore"):
        observed = np.trace(counts, axis1=-2, axis2=-1) / n
        expected = (counts.sum(axis=-1) * counts.sum(axis=-2)).sum(axis=-1) / n**2
        return np.where(expected < 1, (observed - expected) / (1 - expected), np.nan)


def kappa_interval(
    counts: Float[np.ndarray, "group label label"], n_resamples: int = 2000, seed: int = 0, level: float = 0.95
) -> Interval:
    """Percentile bootstrap over groups of items, such as all answers to one request; NaN where κ is, or for one group.

    A resample in which everybody gives one label agrees wholly: its κ counts as 1. Raises RimLensError for a wrong
    shape.
    """
    counts = np.asarray(counts, dtype=float)
    if counts.ndim != 3 or counts.shape[1] != counts.shape[2]:
        raise RimLensError(f"Kappa needs counts [group, label, label], got shape {counts.shape}.")
    if len(counts) < 2 or np.isnan(kappa(counts.sum(axis=0))):
        return Interval(np.nan, np.nan, level)
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(len(counts), np.full(len(counts), 1 / len(counts)), size=n_resamples)
    drawn = np.nan_to_num(kappa(np.tensordot(draws, counts, axes=1)), nan=1.0)
    low, high = np.quantile(drawn, ((1 - level) / 2, (1 + level) / 2))
    return Interval(float(low), float(high), level)
