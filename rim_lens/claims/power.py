"""power: what an audit of this size can find, before it starts.

    shares       exact McNemar: discordant prompts ~ Bin(n, d), of which a share (1 + δ / d) / 2 goes the claimed way
    means        Student's t over prompts, noncentral
    correlations t test of Pearson's r: r²/(1 − r²) χ²_{n−1} is the squared noncentrality (bivariate normal values)
    trainings    Student's t over seeds
    floors       the smallest p that a test can give: 2^(1−n) from signs, 1 / C(n, k) from labels, 1 / (m + 1) from
                 m sets

Tests are two-sided at 5 % divided by the number of claims (the first of Holm's steps, so that power is no smaller).
Spreads are assumptions, which the table names.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from scipy import optimize, stats

from rim_lens.claims.claims import CLAIMS, margins_of
from rim_lens.errors import RimLensError
from rim_lens.results import Manifest, Result

WANTED = 0.8
AGAINST = 0.05  # share of prompts that change against the claim
SPREAD = 1.0  # nats, of a set's effect over prompts
SEED_SPREAD = 10.0  # points, of trainings about their arm
LARGEST = 100_000


@dataclass(frozen=True, eq=False)
class Power(Result):
    """What each claim's test can find.

    `table`: one row per claim: `test`, `n` of what is `counted`, `margin`, `power` to call an effect of the margin
    supported, `detectable` (the effect with a power of 80 %), `n_needed` (for 80 % at the margin), what is `assumed`.
    `floors`: one row per test by permutation or control sets: the smallest p, the one that q < 0.05 for a single true
    unit takes, whether it is `reachable`, and the n from which on it is.
    """

    table: pd.DataFrame
    floors: pd.DataFrame

    def __str__(self) -> str:
        lines = [f"{'claim':<36} {'finds (80 %)':>14} {'margin':>7} {'power':>6} {'n':>5} {'takes':>6}"]
        for row in self.table.itertuples():
            finds = "-" if math.isinf(row.detectable) else f"{row.detectable:.3g} {row.unit}"
            needed = "-" if pd.isna(row.n_needed) else str(row.n_needed)
            lines.append(f"{row.words:<36} {finds:>14} {row.margin:>7g} {row.power:>6.0%} {row.n:>5} {needed:>6}")
        return "\n".join(lines)

    @property
    def warnings(self) -> list[str]:
        """One sentence for each claim whose margin is found with less than 80 % power, and each floor out of reach."""
        weak = [
            f"{row.words}: {row.n} {row.counted} find an effect of {row.margin:g} {row.unit} with {row.power:.0%} "
            "power; " + ("no n up to 4,096 finds it" if pd.isna(row.n_needed) else f"80 % take {row.n_needed}") + "."
            for row in self.table.itertuples()
            if row.power < WANTED
        ]
        return weak + self.floor_warnings

    @property
    def floor_warnings(self) -> list[str]:
        """One sentence for each test whose smallest p is too large for a single true unit among all."""
        return [
            f"{row.test}: the smallest p is {row.smallest_p:.2g}, but one true unit among {row.units} takes "
            f"{row.needed_p:.2g}; use {row.n_needed} {row.counted} or more."
            for row in self.floors.itertuples()
            if not row.reachable
        ]


def power(
    n: int = 32,
    *,
    heads: int = 270,
    controls: int = 100,
    shift_controls: int = 1000,
    checkpoints: int = 8,
    trainings: int = 1,
    claims: int = len(CLAIMS),
    margins: Mapping[str, float] | None = None,
) -> Power:
    """What can be found with n prompts.

    Args:
        n: prompts of each set.
        heads: heads of the model, over which permutation tests are corrected.
        controls: random sets per causal test.
        shift_controls: random sets that the shift of neurons is compared with.
        checkpoints: independent trainings over which RAS is correlated with forgetting.
        trainings: seeds of each arm.
        claims: how many claims are corrected together.
        margins: smallest effects of interest by claim.

    Raises:
        RimLensError: fewer than 4 prompts, or an unknown claim.
    """
    if n < 4 or min(heads, controls, claims, trainings) < 1:
        raise RimLensError(f"Power needs at least 4 prompts and one of everything else, got n = {n}.")
    wanted, level = margins_of(margins), 0.05 / claims
    by_claim = {
        "thinking": (n, "prompts", McNemar),
        "effort_cot": (n, "prompts", McNemar),
        "attention": (n, "chats", OfCorrelation),
        "heads": (n, "prompts", OfMean),
        "reasoning_data": (trainings, "trainings per arm", OfTrainings) if trainings > 1 else (n, "prompts", McNemar),
        "effort_data": (trainings, "trainings per arm", OfTrainings) if trainings > 1 else (n, "prompts", McNemar),
        "safety_neurons": (n, "prompts", OfMean),
        "neuron_shift": (shift_controls, "control sets", OfControls),
        "ras": (checkpoints, "trainings", OfCorrelation),
    }
    rows = []
    for claim in CLAIMS:
        size, counted, test = by_claim[claim.name]
        margin = wanted[claim.name]
        rows.append(
            {
                "claim": claim.name,
                "words": claim.words,
                "test": test.name,
                "n": size,
                "counted": counted,
                "margin": margin,
                "unit": claim.unit,
                "power": test.power(margin, size, level),
                "detectable": detectable(partial(by_effect, test, size, level), test.most),
                "n_needed": enough(partial(by_n, test, margin, level), test.fewest),
                "assumed": test.assumed,
            }
        )
    table = pd.DataFrame(rows).astype({"n_needed": "Int64"})
    return Power(table=table, floors=floors(n, heads, controls, claims), manifest=Manifest.collect(None))


def by_effect(test: Any, n: int, level: float, effect: float) -> float:
    """Power as a function of the effect."""
    return test.power(effect, n, level)


def by_n(test: Any, effect: float, level: float, n: int) -> float:
    """Power as a function of n."""
    return test.power(effect, n, level)


def floors(n: int, heads: int, controls: int, claims: int) -> pd.DataFrame:
    """The smallest p-values of tests by permutation, for one true head of all, and of control sets, for one claim."""
    pairs = [("paired signs over heads", heads, n, "prompts", lambda k: 2.0 ** (1 - k))]
    groups = [("labels of two equal groups over heads", heads, n, "prompts", lambda k: 2 / math.comb(k, k // 2))]
    sets = [("control sets, counted", claims, controls, "control sets", lambda k: 1 / (k + 1))]
    rows = []
    for name, units, size, counted, smallest in (*pairs, *groups, *sets):
        takes = 0.05 / units
        n_needed = next(k for k in range(2, LARGEST) if smallest(k) <= takes)
        rows.append(
            {"test": name, "units": units, "n": size, "counted": counted, "smallest_p": smallest(size)}
            | {"needed_p": takes, "reachable": smallest(size) <= takes, "n_needed": n_needed}
        )
    return pd.DataFrame(rows)


class McNemar:
    """Two shares of the same prompts; effects in points."""

    name, most, fewest = "McNemar, exact", 99.0, 4
    assumed = f"{AGAINST:.0%} of the prompts change against the claim"

    @staticmethod
    def power(effect: float, n: int, level: float) -> float:
        """Probability of p <= level in the claimed direction."""
        return mcnemar_power(effect / 100, n, level)


class OfMean:
    """A mean over prompts; effects in nats."""

    name, most, fewest = "mean over prompts, Student's t", math.inf, 3
    assumed = f"a standard deviation of {SPREAD:g} nat over prompts"

    @staticmethod
    def power(effect: float, n: int, level: float) -> float:
        """See `McNemar.power`."""
        return mean_power(effect / SPREAD, n, level)


class OfTrainings:
    """A mean over trainings; effects in points."""

    name, most, fewest = "mean over trainings, Student's t", math.inf, 2
    assumed = f"trainings spread by {SEED_SPREAD:g} points, prompts by less"

    @staticmethod
    def power(effect: float, n: int, level: float) -> float:
        """See `McNemar.power`."""
        return mean_power(effect / SEED_SPREAD, n, level)


class OfControls:
    """A shift against control sets; effects in %."""

    name, most, fewest = "place among control sets", math.inf, 2
    assumed = "a standard deviation of 2 % over random sets"

    @staticmethod
    def power(effect: float, n: int, level: float) -> float:
        """See `McNemar.power`."""
        if 1 / (n + 1) > level / 2:
            return 0.0
        return float(stats.norm.sf(stats.norm.isf(level / 2) - effect / 2.0))


class OfCorrelation:
    """A correlation over independent points."""

    name, most, fewest = "correlation, t test", 0.999, 4
    assumed = "independent points, bivariate normal"

    @staticmethod
    def power(effect: float, n: int, level: float) -> float:
        """See `McNemar.power`."""
        return correlation_power(effect, n, level)


def mcnemar_power(difference: float, n: int, level: float = 0.05, discordant: float | None = None) -> float:
    """Probability that McNemar's exact test gives p <= level in the claimed direction.

    `difference` is the share lost minus the share gained, `discordant` their sum; by default 5 % of the prompts change
    against the claim, as far as the difference leaves so many.
    """
    both = min(1.0, difference + 2 * AGAINST) if discordant is None else discordant
    if not difference <= both <= 1:
        raise RimLensError(f"A difference of {difference} does not go with {both} of the prompts changing.")
    changing = np.arange(1, n + 1)
    fewest = stats.binom.isf(level / 2, changing, 0.5) + 1  # of so many changing prompts, for p <= level
    found = stats.binom.sf(fewest - 1, changing, (1 + difference / both) / 2)
    return float((stats.binom.pmf(changing, n, both) * found).sum())


def mean_power(effect: float, n: int, level: float = 0.05) -> float:
    """Power of Student's t test of a mean of `effect` standard deviations over n values."""
    if n < 2:
        return 0.0
    return float(stats.nct.sf(stats.t.isf(level / 2, n - 1), n - 1, effect * math.sqrt(n)))


def correlation_power(r: float, n: int, level: float = 0.05) -> float:
    """Power of the t test of a correlation r over n points."""
    if n < 4:
        return 0.0
    reach, slope = stats.t.isf(level / 2, n - 2), r / math.sqrt(1 - r**2)
    shares = [(i + 0.5) / 200 for i in range(200)]
    lengths = stats.chi2.ppf(shares, n - 1) ** 0.5
    return float(stats.nct.sf(reach, n - 2, slope * lengths).mean())


def detectable(power: Callable[[float], float], most: float) -> float:
    """The effect that is found with 80 % power; infinite where none up to `most` is."""
    top = most if math.isfinite(most) else 1.0
    while not math.isfinite(most) and power(top) < WANTED and top < 1e4:
        top *= 2
    if power(top) < WANTED:
        return math.inf
    return float(optimize.brentq(lambda effect: power(effect) - WANTED, 1e-9, top, xtol=1e-3))


def enough(power: Callable[[int], float], fewest: int) -> int | None:
    """The smallest n with 80 % power; None above 4,096."""
    high = fewest
    while power(high) < WANTED:
        high *= 2
        if high > 4096:
            return None
    low = max(fewest, high // 2)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle) >= WANTED else (middle, high)
    return high
