"""Mean of values measured on prompts × wordings, with an interval for new prompts *and* new wordings.

Wordings may be anything that is sampled beside the prompts, such as seeds of a training. The cell of prompt i and
wording j is taken as mean + prompt effect + wording effect + rest, and the half width of the interval is Howe's (1974),

    h² = max( t²_{n−1} (V_prompts − V_rest) + t²_{w−1} V_wordings,  t²_{n−1} V_prompts )

V_prompts and V_wordings from how far each prompt and wording moves the mean, V_rest from the residuals of the additive
fit. Each part has the quantile of its own degrees of freedom: with 3 wordings that differ, t₂; and what few wordings
happen to agree on is never known better than over prompts alone, these wordings given. (Satterthwaite's common degrees
of freedom are taken for many where few seeds happen to agree: p < 0.05 in 10 % over 3 seeds × 200 prompts.) The
interval is the mean ± h, no narrower than the percentiles of a resample stretched to h: prompts and wordings are
resampled independently, a cell weighted by the product of their counts (the pigeonhole bootstrap, McCullagh 2000, Owen
2007). p is the level at which the mean ± h reaches 0.

Where nothing varies a bootstrap has no spread. For values that are all 0 or all 1, and for zeros and ones that differ
in no prompt, the prompts then count as n trials: Wilson's interval for a mean, Tango's interval and McNemar's p for a
difference. A difference of such values with one cell per prompt is never given a narrower interval than Tango's. And no
difference of zeros and ones is known better than chance allows,

    V_chance = Σ_i s²_i (k_i / K² + l_i / L²)        s²_i: variance of prompt i's k_i + l_i cells on both sides, K and L
    in all

the variance if every prompt had one rate: one answer before training hides its noise where five after it show theirs
(no rare answer before, six of 160 after: p = 0.27 and not 0.01).

Samples of an answer, the third axis where there is one, are not a factor beside prompts and wordings: they are averaged
within their cell, whose spread over prompts holds their noise, and count one by one in V_chance alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from jaxtyping import Float
from scipy import optimize, special

from rim_lens.errors import RimLensError
from rim_lens.stats.intervals import Interval, mcnemar, normal_quantile, tango, wilson
from rim_lens.stats.permutation import Seed

_ROUNDING = 1e-12
_SMALLEST_P = 1e-15  # below which no distribution of few prompts is known


@dataclass(frozen=True)
class CrossedMean:
    """Mean over observed prompt × wording cells, its interval over both factors, and what it rests on.

    ``p`` is two-sided for "the mean is 0" and given for differences only. ``n_wordings`` of a difference is the smaller
    side's number. With one wording the interval speaks for that wording only.
    """

    value: float
    interval: Interval
    n_prompts: int
    n_wordings: int
    n_cells: int
    p: float | None = None

    def __str__(self) -> str:
        counts = f"{self.n_cells} cells, {self.n_prompts} prompts, {self.n_wordings} wordings"
        p = "" if self.p is None else f", p = {self.p:.2g}"
        return f"{self.value:.3g} {self.interval}{p} ({counts})"


def bootstrap_crossed(
    values: Float[np.ndarray, "prompt wording"] | Float[np.ndarray, "prompt wording sample"],
    n_resamples: int = 2000,
    seed: Seed = 0,
    level: float = 0.95,
) -> CrossedMean:
    """Mean of the observed cells with an interval over prompts and wordings; NaN marks an unobserved cell.

    n: at least 2 prompts. Raises RimLensError for an array that has not two or three axes, or no observed cell.
    """
    cells, rng = _Cells.of(values), np.random.default_rng(seed)
    if cells.constant:
        share = cells.mean
        binary = share in (0.0, 1.0)
        interval = wilson(int(share * cells.n_prompts), cells.n_prompts, level) if binary else _unknown(level)
        return CrossedMean(share, interval, *cells.counts)
    prompts = _resample(cells.n_prompts, n_resamples, rng)
    resampled = cells.means(prompts, _resample(cells.n_wordings, n_resamples, rng))
    interval = _interval(resampled, cells.mean, _Variances.of(cells.prompt_moves, [cells]), level)
    low, high = np.clip((interval.low, interval.high), *cells.span)
    return CrossedMean(cells.mean, Interval(float(low), float(high), level), *cells.counts)


def bootstrap_crossed_difference(
    a: Float[np.ndarray, "prompt wording_a"] | Float[np.ndarray, "prompt wording_a sample_a"],
    b: Float[np.ndarray, "prompt wording_b"] | Float[np.ndarray, "prompt wording_b sample_b"] | None,
    n_resamples: int = 2000,
    seed: Seed = 0,
    level: float = 0.95,
    answers: Sequence[Float[np.ndarray, "prompt wording ..."]] = (),
) -> CrossedMean:
    """Mean of ``a`` minus mean of ``b``: two classes of wordings on the same prompts, in the same order.

    A resample draws the prompts once for both sides and each side's wordings on its own. A side without wordings, such
    as thinking off, is given as one column. Where ``a`` holds differences already, ``b`` is None, and ``answers`` are
    the two sides' zeros and ones that it is the difference of, for V_chance. Raises RimLensError as
    :func:`bootstrap_crossed`, and for unequal rows.
    """
    first, rng = _Cells.of(a), np.random.default_rng(seed)
    second = _Cells.of(np.zeros((first.n_prompts, 1)) if b is None else b)
    n = first.n_prompts
    if n != second.n_prompts:
        raise RimLensError(f"A difference over shared prompts needs equal rows, got {n} and {second.n_prompts}.")
    value = first.mean - second.mean
    counts = (n, min(first.n_wordings, second.n_wordings), first.n_cells + second.n_cells)
    binary = first.binary and second.binary
    settled = first.settled and second.settled
    if binary and (settled or (abs(value) < _ROUNDING and _equal_rows(first, second))):
        only_a, only_b = n * round(max(value, 0)), n * round(max(-value, 0))  # the same in every prompt: 1, −1 or 0
        return CrossedMean(value, tango(only_a, only_b, n, level), *counts, p=mcnemar(only_a, only_b))
    prompts = _resample(n, n_resamples, rng)
    resampled = first.means(prompts, _resample(first.n_wordings, n_resamples, rng))
    resampled = resampled - second.means(prompts, _resample(second.n_wordings, n_resamples, rng))
    variances = _Variances.of(first.prompt_moves - second.prompt_moves, [first, second])
    if b is not None and binary:
        variances = replace(variances, by_chance=(_by_chance(first, second), n - 1))
    elif answers:
        sides = [_Cells.of(side) for side in answers]
        variances = replace(variances, by_chance=(_by_chance(*sides), n - 1))
    interval, p = _interval(resampled, value, variances, level), variances.p_of(value)
    if first.once_a_prompt and second.once_a_prompt:
        interval = _no_narrower(interval, first, second)
    return CrossedMean(value, interval, *counts, p=p)


def _by_chance(first: _Cells, second: _Cells) -> float:
    """Variance of the difference of zeros and ones if a prompt's answers all had its one rate, on both sides."""
    both = np.hstack([first.trials, second.trials])
    count, rate = (~np.isnan(both)).sum(axis=1), np.nansum(both, axis=1)
    rate = rate / np.maximum(count, 1)
    within = count * rate * (1 - rate) / np.maximum(count - 1, 1)
    weight = sum(
        answered.sum(axis=1) / answered.sum() ** 2 for answered in (~np.isnan(first.trials), ~np.isnan(second.trials))
    )
    return float((within * weight).sum())


def _equal_rows(first: _Cells, second: _Cells) -> bool:
    """Whether each prompt has one and the same value in all its answers on both sides."""
    both = np.hstack([first.trials, second.trials])
    low, high = (np.where(np.isnan(both), empty, both) for empty in (np.inf, -np.inf))
    return bool((low.min(axis=1) == high.max(axis=1)).all())


def _no_narrower(interval: Interval, first: _Cells, second: _Cells) -> Interval:
    """The interval, widened to Tango's over the prompts alone: resamples of a single hit do not spread beyond it."""
    shift = first.filled.sum(axis=1) - second.filled.sum(axis=1)
    over_prompts = tango(int((shift > 0).sum()), int((shift < 0).sum()), len(shift), interval.level)
    low, high = min(interval.low, over_prompts.low), max(interval.high, over_prompts.high)
    return Interval(low, high, interval.level)


@dataclass(frozen=True, eq=False)
class _Cells:
    """A prompt × wording table with 0 in missing cells, the observed cells (1.0), and every answer behind them."""

    filled: Float[np.ndarray, "prompt wording"]
    observed: Float[np.ndarray, "prompt wording"]
    trials: Float[np.ndarray, "prompt answer"]  # NaN where there is none

    @classmethod
    def of(cls, values: Float[np.ndarray, "prompt wording ..."]) -> _Cells:
        values = np.asarray(values, dtype=np.float64)
        if values.ndim not in (2, 3) or len(values) < 2 or np.isnan(values).all():
            raise RimLensError(
                "A crossed bootstrap needs values [prompt, wording] or [prompt, wording, sample] of at least 2 "
                f"prompts with an observed cell, got shape {values.shape}."
            )
        # A prompt or wording without any cell says nothing; as a column it would only be drawn in vain.
        values = values.reshape(*values.shape[:2], -1)
        values = values[:, (~np.isnan(values)).any(axis=(0, 2))]
        answered = ~np.isnan(values)
        count = answered.sum(axis=2)
        filled = np.where(answered, values, 0.0).sum(axis=2) / np.maximum(count, 1)
        return cls(filled, (count > 0).astype(np.float64), values.reshape(len(values), -1))

    @property
    def n_prompts(self) -> int:
        return self.filled.shape[0]

    @property
    def n_wordings(self) -> int:
        return self.filled.shape[1]

    @property
    def n_cells(self) -> int:
        return int(self.observed.sum())

    @property
    def counts(self) -> tuple[int, int, int]:
        return self.n_prompts, self.n_wordings, self.n_cells

    @property
    def span(self) -> tuple[float, float]:
        observed = self.filled[self.observed > 0]
        return float(observed.min()), float(observed.max())

    @property
    def once_a_prompt(self) -> bool:
        """Whether every prompt has one answer, and that is 0 or 1."""
        return self.binary and bool(((~np.isnan(self.trials)).sum(axis=1) == 1).all())

    @property
    def binary(self) -> bool:
        """Whether every answer is 0 or 1."""
        return bool(np.isin(self.trials[~np.isnan(self.trials)], (0.0, 1.0)).all())

    @property
    def settled(self) -> bool:
        """Whether all answers are alike."""
        answers = self.trials[~np.isnan(self.trials)]
        return bool(answers.min() == answers.max())

    @property
    def constant(self) -> bool:
        low, high = self.span
        return low == high

    @cached_property
    def mean(self) -> float:
        return float(self.span[0]) if self.constant else float(self.filled.sum() / self.observed.sum())

    @cached_property
    def moves(self) -> Float[np.ndarray, "prompt wording"]:
        """How far each cell moves the mean: (value − mean) / number of cells, 0 where there is none."""
        return (self.filled - self.mean * self.observed) / self.observed.sum()

    @property
    def prompt_moves(self) -> Float[np.ndarray, "prompt"]:
        return self.moves.sum(axis=1)

    @property
    def wording_moves(self) -> Float[np.ndarray, "wording"]:
        return self.moves.sum(axis=0)

    def rest_variance(self) -> float:
        """Variance of the mean that is due to neither prompts nor wordings; 0 where the additive fit leaves nothing."""
        rows, columns = self.observed.sum(axis=1, keepdims=True), self.observed.sum(axis=0, keepdims=True)
        freedom = self.n_cells - int((rows > 0).sum()) - self.n_wordings + 1
        if freedom <= 0:
            return 0.0
        rest = self.filled
        # Alternating means: exact after one round when every cell was observed, converging fast otherwise.
        for _ in range(20):
            rest = rest - self.observed * rest.sum(axis=1, keepdims=True) / np.maximum(rows, 1)
            rest = rest - self.observed * rest.sum(axis=0, keepdims=True) / columns
        return float((rest**2).sum() / freedom / self.n_cells)

    def means(
        self, prompts: Float[np.ndarray, "resample prompt"], wordings: Float[np.ndarray, "resample wording"]
    ) -> Float[np.ndarray, "resample"]:
        """Weighted means; NaN where a resample meets no observed cell."""
        total = ((prompts @ self.filled) * wordings).sum(axis=1)
        count = ((prompts @ self.observed) * wordings).sum(axis=1)
        return total / np.where(count > 0, count, np.nan)


@dataclass(frozen=True)
class _Variances:
    """Variances of the mean (or difference), each with its degrees of freedom.

    `parts`: due to the prompts alone, and to each side's wordings, the rest included; `over_prompts`: of the prompts,
    the rest included; `by_chance`: of zeros and ones whose prompts have one rate on both sides.
    """

    parts: list[tuple[float, int]]
    over_prompts: tuple[float, int]
    by_chance: tuple[float, int] = (0.0, 1)

    @classmethod
    def of(cls, prompt_moves: Float[np.ndarray, "prompt"], sides: list[_Cells]) -> _Variances:
        several = [side for side in sides if side.n_wordings > 1]
        whole, freedom = _variance(prompt_moves), len(prompt_moves) - 1
        alone = max(whole - sum(side.rest_variance() for side in several), 0.0)
        by_wording = [(_variance(side.wording_moves), side.n_wordings - 1) for side in several]
        return cls([(alone, freedom), *by_wording], (whole, freedom))

    def squared_half_width(self, tail: float) -> float:
        """h² of the interval that leaves `tail` out at each end."""
        return max(
            sum(part * float(special.stdtrit(freedom, tail)) ** 2 for part, freedom in parts)
            for parts in (self.parts, [self.over_prompts], [self.by_chance])
        )

    def p_of(self, value: float) -> float:
        """The smallest 1 − level at which value ± half width leaves 0 out; NaN where nothing varies."""
        if not any(part for part, _ in (*self.parts, self.over_prompts, self.by_chance)):
            return math.nan
        if value == 0:
            return 1.0

        def excess(log_p: float) -> float:
            return self.squared_half_width(math.exp(log_p) / 2) - value**2

        smallest = math.log(_SMALLEST_P)
        return math.exp(optimize.brentq(excess, smallest, 0.0)) if excess(smallest) > 0 else _SMALLEST_P


def _variance(moves: Float[np.ndarray, "unit"]) -> float:
    """Variance of a sum of n independent moves."""
    return float(moves.var(ddof=1) * len(moves))


def _interval(resampled: Float[np.ndarray, "resample"], value: float, variances: _Variances, level: float) -> Interval:
    """Mean ± half width, no narrower than the resample's percentile deviations stretched to that half width."""
    deviations = resampled[np.isfinite(resampled)] - value
    spread, half = deviations.std(), math.sqrt(variances.squared_half_width((1 - level) / 2))
    if half == 0 or (spread == 0 and not variances.by_chance[0]):
        return _unknown(level)
    if spread == 0:
        return Interval(value - half, value + half, level)
    low, high = np.quantile(deviations, ((1 - level) / 2, (1 + level) / 2)) * half / normal_quantile(level) / spread
    return Interval(float(value + min(low, -half)), float(value + max(high, half)), level)


def _unknown(level: float) -> Interval:
    return Interval(math.nan, math.nan, level)


def _resample(n: int, n_resamples: int, rng: np.random.Generator) -> Float[np.ndarray, "resample n"]:
    """How often each of n units is drawn in each resample of size n."""
    if n_resamples < 2:
        raise RimLensError(f"A bootstrap needs at least 2 resamples, got {n_resamples}.")
    return rng.multinomial(n, np.full(n, 1 / n), size=n_resamples).astype(np.float64)
