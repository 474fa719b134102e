"""Rates with their 95 % interval, and the difference of two rates measured on the same prompts.

Wilson's score interval for k successes in n independent trials (Wilson 1927; recommended for small n and
rates near 0 or 1 by Brown, Cai, DasGupta 2001):

    (p + z²/2n ± z √(p(1−p)/n + z²/4n²)) / (1 + z²/n)

McNemar's exact test asks whether b and c, the counts of prompts on which only one of two conditions holds,
could come from a fair coin (McNemar 1947). Tango's score interval inverts the matching score test of a paired
difference (Tango 1998, Statistics in Medicine 17): all δ whose score statistic, with the nuisance parameter
at its maximum likelihood value under δ, lies within ±z. Unlike Wald's interval it keeps its coverage for few
discordant prompts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy import optimize, stats

from rim_lens.errors import RimLensError


@dataclass(frozen=True)
class Interval:
    """A two-sided interval at confidence ``level``; ``low, high = interval`` unpacks it."""

    low: float
    high: float
    level: float = 0.95

    def __iter__(self) -> Iterator[float]:
        return iter((self.low, self.high))

    def __contains__(self, value: float) -> bool:
        return bool(self.low <= value <= self.high)

    def __str__(self) -> str:
        return f"[{self.low:.3g}, {self.high:.3g}]"


def normal_quantile(level: float) -> float:
    """Z such that a standard normal lies within ±z with probability ``level``."""
    if not 0 < level < 1:
        raise RimLensError(f"The confidence level must lie between 0 and 1, got {level}; 0.95 is usual.")
    return float(stats.norm.ppf((1 + level) / 2))


def wilson(k: int, n: int, level: float = 0.95) -> Interval:
    """Wilson score interval for k successes in n independent trials; NaN at both ends for n = 0.

    Raises RimLensError unless 0 <= k <= n.
    """
    if not 0 <= k <= n:
        raise RimLensError(f"A rate needs 0 <= k <= n, got k = {k}, n = {n}; check what was counted.")
    if n == 0:
        return Interval(math.nan, math.nan, level)
    return wilson_score(k / n, n, level)


def wilson_score(rate: float, n: float, level: float = 0.95) -> Interval:
    """Wilson's interval of a rate with the margin of error of n trials; n need not be whole; inf leaves no width."""
    if math.isinf(n):
        return Interval(rate, rate, level)
    centre, half = _score_ends(rate, n, normal_quantile(level))
    return Interval(0.0 if rate == 0 else max(0.0, centre - half), 1.0 if rate == 1 else min(1.0, centre + half), level)


def wilson_of_groups(
    hits: Float[np.ndarray, "group"], sizes: Float[np.ndarray, "group"], level: float = 0.95
) -> Interval:
    """Wilson's interval of a share whose trials come in independent groups, such as the sentences of several CoTs.

    n is the effective number of trials, p(1 − p) / V, at most Σ sizes, V the variance of the ratio Σ hits / Σ sizes
    over groups, and Student's t with (groups − 1) degrees of freedom stands for z (Korn and Graubard 1998). Where all
    trials agree each group counts as one. NaN ends for fewer than 2 groups. Raises RimLensError unless 0 <= hits <=
    sizes.
    """
    hits, sizes = (np.asarray(side, dtype=np.float64) for side in (hits, sizes))
    if hits.ndim != 1 or hits.shape != sizes.shape or (hits < 0).any() or (hits > sizes).any():
        raise RimLensError("A share over groups needs 0 <= hits <= size for every group; check what was counted.")
    hits, sizes = hits[sizes > 0], sizes[sizes > 0]
    groups = len(hits)
    if groups < 2:
        return Interval(math.nan, math.nan, level)
    total = float(sizes.sum())
    share = float(hits.sum()) / total
    if share in (0.0, 1.0):
        return wilson(int(share) * groups, groups, level)
    variance = float(((hits - share * sizes) / total).var(ddof=1)) * groups
    n = total if variance == 0 else min(total, share * (1 - share) / variance)
    t = float(stats.t.ppf((1 + level) / 2, groups - 1))
    centre, half = _score_ends(share, n, t)
    return Interval(max(0.0, centre - half), min(1.0, centre + half), level)


def _score_ends(rate: float, n: float, z: float) -> tuple[float, float]:
    """Middle and half width of Wilson's interval."""
    centre = (rate + z**2 / (2 * n)) / (1 + z**2 / n)
    return centre, z * math.sqrt(rate * (1 - rate) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)


@dataclass(frozen=True)
class Rate:
    """k of n trials. n = 0 is allowed and has the value NaN, so that an empty group shows as empty, not as 0 %."""

    k: int
    n: int
    level: float = 0.95

    def __post_init__(self) -> None:
        wilson(self.k, self.n, self.level)

    @property
    def value(self) -> float:
        """K / n, a share between 0 and 1."""
        return self.k / self.n if self.n else math.nan

    @property
    def interval(self) -> Interval:
        """Wilson's interval of the share."""
        return wilson(self.k, self.n, self.level)

    def __str__(self) -> str:
        if self.n == 0:
            return "n = 0"
        low, high = self.interval
        return f"{self.k}/{self.n} = {100 * self.value:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def mcnemar(b: int, c: int) -> float:
    """Exact two-sided p-value that b against c discordant prompts come from a fair coin; 1 when b + c = 0.

    n is b + c: prompts on which both conditions agree carry no information. Assumes prompts are independent.
    """
    if b < 0 or c < 0:
        raise RimLensError(f"Discordant counts cannot be negative, got b = {b}, c = {c}; check what was counted.")
    return 1.0 if b + c == 0 else float(stats.binomtest(int(b), int(b + c), 0.5).pvalue)


@dataclass(frozen=True)
class PairedDifference:
    """Rate of ``a`` minus rate of ``b`` on the same n prompts, with Tango's interval and McNemar's exact p.

    ``only_a`` and ``only_b`` are the discordant counts. Interval and p come from different tests, so at the
    border one may reach 0 when the other does not: the exact test is the stricter one.
    """

    a: Rate
    b: Rate
    only_a: int
    only_b: int
    interval: Interval
    p: float

    @property
    def n(self) -> int:
        """Number of prompts, each measured under both conditions."""
        return self.a.n

    @property
    def value(self) -> float:
        """Rate of ``a`` minus rate of ``b``, a share between −1 and 1."""
        return (self.only_a - self.only_b) / self.n if self.n else math.nan

    def __str__(self) -> str:
        if self.n == 0:
            return "n = 0"
        low, high = self.interval
        return (
            f"{100 * self.value:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}], "
            f"{self.only_a} against {self.only_b} of {self.n}, p = {self.p:.2g}"
        )


def paired_difference(
    a: Bool[np.ndarray, "prompt"], b: Bool[np.ndarray, "prompt"], level: float = 0.95
) -> PairedDifference:
    """Difference of two rates measured on the same prompts, in the same order.

    Raises RimLensError when the lengths differ or the entries are not booleans (0 and 1 are taken as
    booleans).
    """
    first, second = _booleans(a), _booleans(b)
    if first.shape != second.shape:
        raise RimLensError(
            f"A paired difference needs one entry per prompt on both sides, got {len(first)} and {len(second)}."
        )
    n = len(first)
    only_a, only_b = int((first & ~second).sum()), int((second & ~first).sum())
    return PairedDifference(
        a=Rate(int(first.sum()), n, level),
        b=Rate(int(second.sum()), n, level),
        only_a=only_a,
        only_b=only_b,
        interval=tango(only_a, only_b, n, level),
        p=mcnemar(only_a, only_b),
    )


def tango(only_a: int, only_b: int, n: int, level: float = 0.95) -> Interval:
    """Tango's score interval for the paired difference (only_a − only_b) / n; NaN at both ends for n = 0."""
    z = normal_quantile(level)
    if only_a < 0 or only_b < 0 or only_a + only_b > n:
        raise RimLensError(f"Discordant counts {only_a} and {only_b} do not fit into n = {n} prompts.")
    if n == 0:
        return Interval(math.nan, math.nan, level)
    estimate = (only_a - only_b) / n

    def end(sign: int) -> float:
        # The statistic falls monotonically in δ, from the estimate (where it is 0) to the border of [−1, 1].
        if estimate == -sign:
            return float(estimate)
        return float(optimize.brentq(lambda d: _tango_z(only_a, only_b, n, d) - sign * z, estimate, -sign))

    return Interval(end(+1), end(-1), level)


def _tango_z(only_a: int, only_b: int, n: int, delta: float) -> float:
    """Score statistic of H0: paired difference = delta (Tango 1998, equations 6 and 7)."""
    linear = -only_a - only_b + (2 * n - only_a + only_b) * delta
    constant = -only_b * delta * (1 - delta)
    nuisance = (math.sqrt(max(0.0, linear**2 - 8 * n * constant)) - linear) / (4 * n)
    variance = n * (2 * nuisance + delta * (1 - delta))
    excess = only_a - only_b - n * delta
    if variance <= 0:
        return 0.0 if excess == 0 else math.copysign(math.inf, excess)
    return excess / math.sqrt(variance)


def _booleans(values: Bool[np.ndarray, "prompt"]) -> Bool[np.ndarray, "prompt"]:
    array = np.asarray(values)
    if array.ndim != 1 or not np.isin(array, (0, 1)).all():
        raise RimLensError("A paired difference needs two flat arrays of booleans, one entry per prompt.")
    return array.astype(bool)
