"""A straight line through few points, and how far it could lie elsewhere.

    y = a + b x by least squares; band at x₀: ŷ ± t_{0.975, n−2} s √(1/n + (x₀ − x̄)² / Σ(x − x̄)²),  s² = RSS / (n − 2)

The band holds the line, not the points, with the given confidence at each x₀; residuals are assumed normal and alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import stats

from rim_lens.errors import RimLensError


@dataclass(frozen=True, eq=False)
class FittedLine:
    """The line over a grid of x with its confidence band; n points."""

    slope: float
    intercept: float
    x: Float[np.ndarray, "grid"]
    y: Float[np.ndarray, "grid"]
    low: Float[np.ndarray, "grid"]
    high: Float[np.ndarray, "grid"]
    n: int


def fitted_line(
    x: Float[np.ndarray, "point"], y: Float[np.ndarray, "point"], n_grid: int = 50, level: float = 0.95
) -> FittedLine:
    """Least-squares line over the range of x, with its band.

    Raises RimLensError for fewer than 4 points or x that does not vary.
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if len(x) < 4 or np.ptp(x) == 0:
        raise RimLensError(
            f"A line needs at least 4 points at different x, got {len(x)} over a range of {np.ptp(x):g}."
        )
    fit = stats.linregress(x, y)
    at = np.linspace(x.min(), x.max(), n_grid)
    middle = fit.intercept + fit.slope * at
    rest = y - fit.intercept - fit.slope * x
    spread = np.sqrt((rest**2).sum() / (len(x) - 2))
    away = np.sqrt(1 / len(x) + (at - x.mean()) ** 2 / ((x - x.mean()) ** 2).sum())
    reach = stats.t.ppf((1 + level) / 2, len(x) - 2) * spread * away
    return FittedLine(float(fit.slope), float(fit.intercept), at, middle, middle - reach, middle + reach, len(x))
