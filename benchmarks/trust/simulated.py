"""Data with a known truth, and how often an interval covers it or a p-value falls below α."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from rim_lens.stats import wilson

ALPHA = 0.05
Array = Float[np.ndarray, "..."]


@dataclass(frozen=True)
class Coverage:
    """How often a 95 % interval held the true value in `runs` simulated measurements.

    The rest lay below or above it.
    """

    interval: str
    printed_by: str
    data: str
    n: str
    runs: int
    covered: float
    below: float
    above: float

    @property
    def width(self) -> float:
        """Half width of the 95 % interval of `covered` itself."""
        low, high = wilson(round(self.covered * self.runs), self.runs)
        return (high - low) / 2


@dataclass(frozen=True)
class Calibration:
    """How often p ≤ 0.05 and p ≤ 0.01 under the null, and the power at a stated effect (None where not asked)."""

    test: str
    printed_by: str
    data: str
    n: str
    runs: int
    at_05: float
    at_01: float


CoverageStudy = Callable[[np.random.Generator, int], Sequence[Coverage]]
CalibrationStudy = Callable[[np.random.Generator, int], Sequence[Calibration]]
coverage_studies: list[CoverageStudy] = []
calibration_studies: list[CalibrationStudy] = []


def covers(function: CoverageStudy) -> CoverageStudy:
    """Register a study of an interval."""
    coverage_studies.append(function)
    return function


def calibrates(function: CalibrationStudy) -> CalibrationStudy:
    """Register a study of a p-value."""
    calibration_studies.append(function)
    return function


def coverage(names: tuple[str, str, str, str], truth: float, low: Array, high: Array) -> Coverage:
    """Counts; an interval with a NaN end covers nothing."""
    low, high = np.asarray(low, dtype=float), np.asarray(high, dtype=float)
    inside = (low <= truth + 1e-12) & (truth - 1e-12 <= high)
    return Coverage(*names, len(low), float(inside.mean()), float((high < truth).mean()), float((low > truth).mean()))


def calibration(names: tuple[str, str, str, str], p: Array) -> Calibration:
    """Counts; NaN never falls below α."""
    p = np.asarray(p, dtype=float)
    return Calibration(*names, len(p), float((p <= ALPHA + 1e-12).mean()), float((p <= 0.01 + 1e-12).mean()))


def normal(rng: np.random.Generator, shape: tuple[int, ...], mean: float = 0.0) -> Array:
    """Normal values of the given mean and standard deviation 1."""
    return rng.normal(mean, 1, shape)


def skewed(rng: np.random.Generator, shape: tuple[int, ...], mean: float = 0.0) -> Array:
    """Exponential values moved to the given mean, standard deviation 1: the skew of effects that few prompts carry."""
    return rng.exponential(1, shape) - 1 + mean


def heavy(rng: np.random.Generator, shape: tuple[int, ...], mean: float = 0.0) -> Array:
    """Student's t with 4 degrees of freedom, scaled to standard deviation 1: outlying prompts."""
    return rng.standard_t(4, shape) / np.sqrt(2) + mean


SHAPES = {"normal": normal, "skewed": skewed, "heavy-tailed": heavy}
