"""Rates by a judge that errs, corrected for its errors, and which differences its errors alone could make.

With sensitivity Se and specificity Sp of the judge, a true rate P is seen as r = P Se + (1 − P)(1 − Sp), so that

    P̂ = (r + Sp − 1) / (Se + Sp − 1)                                            clipped to [0, 1]

(Rogan and Gladen 1978, Am J Epidemiol 107). The interval holds both sources of error: that of r, as its own interval
[l, u], and that of Se and Sp, counted on m₊ and m₋ labelled answers. As Lang and Reiczigel (2014, Prev Vet Med 113) do,
one success and one failure are added to either count (Se', Sp', m' = m + 2), and the middle is moved by their d:

    P' + d ± sqrt( (P' − P'(l or u))² + z² V ),    P'(r) = (r + Sp' − 1) / (Se' + Sp' − 1)
    V = ( P'² Se'(1 − Se')/m₊' + (1 − P')² Sp'(1 − Sp')/m₋' ) / (Se' + Sp' − 1)²
    d = 2 z² ( P' Se'(1 − Se')/m₊' − (1 − P') Sp'(1 − Sp')/m₋' )

Their interval takes Agresti and Coull's for r; here r brings its own (Wilson's, or one over prompts and wordings),
added in squares (MOVER; Donner and Zou 2012), so that a judge without errors leaves an interval as it was.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import optimize, stats

from rim_lens.errors import RimLensError
from rim_lens.stats.intervals import Interval, normal_quantile, wilson_score

LEVEL = 0.95


@dataclass(frozen=True)
class Share:
    """A share with the number of independent trials of the same precision, which need not be whole; inf.

    Known exactly.
    """

    value: float
    trials: float
    spread: bool = False  # whether it is of groups that may differ

    @classmethod
    def of_groups(cls, hits: Float[np.ndarray, "group"], sizes: Float[np.ndarray, "group"]) -> Share:
        """The share among trials of several groups, with the trials that say as much of *another* group's share.

        Groups may differ beyond chance: with the variance between groups σ² by analysis of variance (Searle, Casella
        and McCulloch 1992), the share of a new group lies around the mean with V = (t/z)² σ² (1 + Σ n_i²/N²) + p(1 −
        p)/N, t of (groups − 1) degrees of freedom, and trials = p(1 − p)/V. One group speaks for itself: N trials.
        Raises RimLensError unless 0 <= hits <= sizes with one trial.
        """
        hits, sizes = (np.asarray(side, dtype=np.float64) for side in (hits, sizes))
        if hits.shape != sizes.shape or (hits < 0).any() or (hits > sizes).any() or not sizes.sum():
            raise RimLensError("A share over groups needs 0 <= hits <= size for every group, and at least one trial.")
        hits, sizes = hits[sizes > 0], sizes[sizes > 0]
        n, groups = float(sizes.sum()), len(sizes)
        p = float(hits.sum()) / n
        if groups == 1 or p in (0.0, 1.0):
            return cls(p, n)
        each = hits / sizes
        within = float((sizes * each * (1 - each)).sum()) / max(n - groups, 1)
        between = float((sizes * (each - p) ** 2).sum()) / (groups - 1)
        usual = (n - float((sizes**2).sum()) / n) / (groups - 1)
        few = (float(stats.t.ppf((1 + LEVEL) / 2, groups - 1)) / normal_quantile(LEVEL)) ** 2
        another = few * max(0.0, (between - within) / usual) * (1 + float((sizes**2).sum()) / n**2)
        variance = another + p * (1 - p) / n
        return cls(p, p * (1 - p) / variance, spread=True)

    @property
    def interval(self) -> Interval:
        """Wilson's interval.

        Of other groups' shares no narrower than the beta distribution with this mean and variance.
        """
        low, high = wilson_score(self.value, self.trials, LEVEL)
        if self.spread and 0 < self.value < 1:
            a, b = (max(self.trials - 1, 0.01) * share for share in (self.value, 1 - self.value))
            drawn = stats.beta.ppf(((1 - LEVEL) / 2, (1 + LEVEL) / 2), a, b)
            low, high = min(low, float(drawn[0])), max(high, float(drawn[1]))
        return Interval(low, high, LEVEL)

    def with_two_more(self) -> tuple[float, float]:
        """The share with one success and one failure added, and its variance."""
        if math.isinf(self.trials):
            return self.value, 0.0
        share = (self.value * self.trials + 1) / (self.trials + 2)
        return share, share * (1 - share) / (self.trials + 2)


@dataclass(frozen=True)
class Misclassification:
    """How a judge errs on one label: `sensitivity` where the label is right, `specificity` where it is not.

    Raises RimLensError where Se + Sp <= 1: such a judge says nothing of the label.
    """

    sensitivity: Share
    specificity: Share

    def __post_init__(self) -> None:
        if self.youden <= 0:
            raise RimLensError(
                f"Sensitivity {self.sensitivity.value:.2f} and specificity {self.specificity.value:.2f} are no "
                "better than chance; rates of this judge cannot be corrected."
            )

    @property
    def youden(self) -> float:
        """Se + Sp − 1: how much of a true difference is left in the rates."""
        return self.sensitivity.value + self.specificity.value - 1

    def corrected(self, rate: float, interval: Interval) -> tuple[float, Interval]:
        """The true rate by Rogan and Gladen, and its interval at the level of the rate's own, which is 95 %."""
        value = float(np.clip((rate + self.specificity.value - 1) / self.youden, 0, 1))
        z = normal_quantile(interval.level)
        (se, var_se), (sp, var_sp) = self.sensitivity.with_two_more(), self.specificity.with_two_more()
        youden = se + sp - 1
        if youden <= 0:
            return value, Interval(0.0, 1.0, interval.level)
        middle, low, high = ((one + sp - 1) / youden for one in (rate, interval.low, interval.high))
        spread = z**2 * (middle**2 * var_se + (1 - middle) ** 2 * var_sp) / youden**2
        moved = middle + 2 * z**2 * (middle * var_se - (1 - middle) * var_sp)
        low, high = (
            moved - math.hypot(middle - low, math.sqrt(spread)),
            moved + math.hypot(high - middle, math.sqrt(spread)),
        )
        low, high = (float(np.clip(end, 0, 1)) for end in (low, high))
        return value, Interval(min(low, value), max(high, value), interval.level)

    def corrected_difference(self, difference: float, interval: Interval) -> tuple[float, Interval]:
        """A difference of two rates on which the judge errs alike, divided by Se + Sp − 1, and its interval.

        Its ends are where difference − x (Se + Sp − 1) has 0 as an end of its own interval, both errors added in
        squares (MOVER of a ratio; Donner and Zou 2012). All are clipped to [−1, 1].
        """
        (se, _), (sp, _) = self.sensitivity.with_two_more(), self.specificity.with_two_more()
        below = math.hypot(se - self.sensitivity.interval.low, sp - self.specificity.interval.low)
        above = math.hypot(self.sensitivity.interval.high - se, self.specificity.interval.high - sp)
        youden = se + sp - 1

        def end(sign: int, reach: float) -> float:
            def excess(x: float) -> float:
                error = above if x * sign < 0 else below
                return sign * (difference - x * youden) + math.hypot(reach, x * error)

            return float(optimize.brentq(excess, -1, 1)) if excess(-1) * excess(1) < 0 else float(sign)

        value = float(np.clip(difference / self.youden, -1, 1))
        low, high = end(-1, difference - interval.low), end(+1, interval.high - difference)
        return value, Interval(min(low, value), max(high, value), interval.level)

    def possible(self, rate: float) -> Interval:
        """All true rates that give `rate` for some sensitivity and specificity inside their 95 % intervals.

        NaN for none.
        """
        ends = [
            (rate + sp - 1) / (se + sp - 1)
            for se in self.sensitivity.interval
            for sp in self.specificity.interval
            if se + sp > 1
        ]
        if not ends or min(self.sensitivity.interval) + min(self.specificity.interval) <= 1:
            return Interval(0.0, 1.0)
        return Interval(*(float(np.clip(end, 0, 1)) for end in (min(ends), max(ends))))

    def could_make(self, a: float, b: float) -> bool:
        """Whether two different rates may come of one true rate, each judged with some Se and Sp of their intervals."""
        first, second = self.possible(a), self.possible(b)
        return a != b and first.low <= second.high and second.low <= first.high
