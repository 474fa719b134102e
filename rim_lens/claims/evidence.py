"""Evidence for one claim: an effect, its bounds at any level, p of "no effect" and of "as large as the margin".

A bound at level a is one-sided: the true effect lies beyond it with probability a. The p-value of a null value is the
level at which a bound reaches it, so that p-values and bounds never disagree.

    shares of the same prompts     Tango's score bounds; p no smaller than McNemar's exact one
    wordings, samples, trainings   `stats.bootstrap_crossed_difference`
    means over prompts             the larger of Student's p and that of the BCa interval (`stats.mean_test.interval_p`)
    rank correlations              Fisher's z with Bonett and Wright's variance; p no smaller than the permutations'
    several contrasts              the weakest of them counts (intersection-union); its upper bound is at level
                                   a / their number
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float
from scipy import optimize, stats

from rim_lens.stats import bootstrap_crossed_difference, rank_correlation_test, tango
from rim_lens.stats.correlation import spearman_interval
from rim_lens.stats.mean_test import interval_p
from rim_lens.stats.shares import Outcomes

SMALLEST = 1e-9  # level below which no bound is asked for
Bounds = Callable[[float], tuple[float, float]]


@dataclass(frozen=True)
class Evidence:
    """An effect in the claimed direction.

    `bounds(a)`: low and high, each with one-sided level a. `n` of what is `counted`. `least_p`: a one-sided p of "no
    effect" that a second test sets (an exact one, control sets), which the bounds' own is not allowed to undercut.
    `second` says which test that is, where more prompts would not help it. `where` names the result that it is read
    from. `hindrance`: why the claim cannot be supported, if anything.
    """

    effect: float
    bounds: Bounds
    n: int
    where: str
    counted: str = "prompts"
    least_p: float = 0.0
    second: str = ""
    hindrance: str = ""
    correlation: bool = False

    def p_of_none(self) -> float:
        """One-sided p of "the effect is 0 or against the claim"."""
        return max(level_at(lambda a: self.bounds(a)[0], 0.0, self.effect, rising=True), self.least_p)

    def p_of_margin(self, margin: float) -> float:
        """One-sided p of "the effect is as large as the margin or larger"."""
        return level_at(lambda a: self.bounds(a)[1], margin, self.effect, rising=False)

    def n_needed(self, margin: float, low: float, high: float, level: float = 0.025) -> int:
        """The n at which the interval is narrower than the margin: it then cannot hold both 0 and the margin.

        The spread is the observed one. Widths fall with t_{n−1} / √n at the bounds' one-sided level; of correlations
        with 1 / √(n − 3) on the scale of Fisher's z.
        """
        if self.correlation:
            most = 1 - 1e-6
            width = np.arctanh(min(high, most)) - np.arctanh(max(low, -most))
            return math.ceil(3 + (self.n - 3) * float(width / np.arctanh(margin)) ** 2)
        n = self.n
        unit = (high - low) * math.sqrt(n) / float(stats.t.isf(level, max(n - 1, 1)))
        while unit * float(stats.t.isf(level, n - 1 or 1)) / math.sqrt(n) > margin and n < 10**9:
            z = float(stats.t.isf(level, n - 1 or 1))
            n = max(n + 1, min(2 * n, math.ceil((unit * z / margin) ** 2)))
        while n - 1 > self.n and unit * float(stats.t.isf(level, n - 2)) / math.sqrt(n - 1) <= margin:
            n -= 1
        return n


def level_at(bound: Callable[[float], float], value: float, effect: float, *, rising: bool) -> float:
    """The one-sided level at which a bound reaches a value; above ½ where the estimate is beyond it."""
    if (effect <= value) if rising else (effect >= value):
        return 1.0
    sign = 1.0 if rising else -1.0

    def excess(log_level: float) -> float:
        return sign * (bound(math.exp(log_level)) - value)

    smallest, largest = math.log(SMALLEST), math.log(0.49)
    if not excess(largest) > 0:
        return 0.49
    if excess(smallest) >= 0:
        return SMALLEST
    return math.exp(optimize.brentq(excess, smallest, largest, xtol=1e-4))


def shares(before: Outcomes, after: Outcomes, where: str, **about: object) -> Evidence:
    """How many points the share in `before` is above that in `after`, on the same prompts in the same order."""
    single = before.shape[1:] == after.shape[1:] == (1, 1)
    if single and np.isin(before, (0, 1)).all() and np.isin(after, (0, 1)).all():
        first, second = before[:, 0, 0].astype(bool), after[:, 0, 0].astype(bool)
        lost, gained, n = int((first & ~second).sum()), int((second & ~first).sum()), len(first)
        exact = float(stats.binom.sf(lost - 1, lost + gained, 0.5)) if lost + gained else 1.0

        def bounds(a: float) -> tuple[float, float]:
            low, high = tango(lost, gained, n, 1 - 2 * a)
            return 100 * low, 100 * high

        return Evidence(100 * (lost - gained) / n, lru_cache(bounds), n, where, least_p=exact, **about)  # type: ignore[arg-type]
    return crossed(before, after, where, 100.0, **about)


def crossed(before: Outcomes, after: Outcomes, where: str, scale: float = 1.0, **about: object) -> Evidence:
    """Mean of `before` minus mean of `after` over prompts and a second factor (wordings, trainings), times `scale`."""
    difference = bootstrap_crossed_difference(before, after)

    def bounds(a: float) -> tuple[float, float]:
        low, high = bootstrap_crossed_difference(before, after, level=1 - 2 * a).interval
        return scale * low, scale * high

    about = {"n": difference.n_prompts} | about
    return Evidence(scale * difference.value, lru_cache(bounds), where=where, **about)  # type: ignore[arg-type]


def means(values: Float[np.ndarray, "prompt"], where: str, **about: object) -> Evidence:
    """The mean of one value per prompt."""
    mean, spread = float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else math.inf

    def one_sided(null: float) -> float:
        return float(interval_p((values - null)[:, None])[0]) / 2

    def end(a: float, sign: int) -> float:
        if spread == 0 or not math.isfinite(spread):
            return mean if spread == 0 else sign * math.inf
        far = mean + sign * spread
        for _ in range(200):
            if one_sided(far) < a:
                return float(optimize.brentq(lambda null: one_sided(null) - a, mean, far))
            far += sign * spread
        return sign * math.inf

    return Evidence(mean, lru_cache(lambda a: (end(a, -1), end(a, 1))), len(values), where, **about)  # type: ignore[arg-type]


def rank_correlation(
    x: Float[np.ndarray, "point"], y: Float[np.ndarray, "point"], where: str, **about: object
) -> Evidence:
    """Spearman's ρ of x with y over independent points, at least 4."""
    test = rank_correlation_test(np.asarray(x, dtype=float)[:, None], y, n_permutations=40_320)
    rho, n = float(test.statistic[0]), len(y)
    # half of the two-sided p on the claimed side
    least = float(test.p[0]) / 2 if rho > 0 else 1.0

    def bounds(a: float) -> tuple[float, float]:
        low, high = spearman_interval(rho, n, 1 - 2 * a)
        return float(low), float(high)

    return Evidence(rho, lru_cache(bounds), n, where, least_p=least, correlation=True, **about)  # type: ignore[arg-type]


def weakest(parts: Sequence[Evidence]) -> Evidence:
    """Evidence that every one of several effects is there: the smallest counts."""
    if len(parts) == 1:
        return parts[0]
    first = min(parts, key=lambda part: part.effect)

    def bounds(a: float) -> tuple[float, float]:
        return min(part.bounds(a)[0] for part in parts), min(part.bounds(a / len(parts))[1] for part in parts)

    return Evidence(
        first.effect,
        lru_cache(bounds),
        min(part.n for part in parts),
        first.where,
        first.counted,
        max(part.least_p for part in parts),
        first.second,
        next((part.hindrance for part in parts if part.hindrance), ""),
        first.correlation,
    )
