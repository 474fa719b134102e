"""Intervals and p-values over a series of checkpoints and over trainings with several seeds."""

from functools import cache

import numpy as np
from scipy.special import expit

from benchmarks.trust.simulated import Array, Calibration, Coverage, calibrates, calibration, coverage, covers
from rim_lens.stats import CrossedMean, bootstrap_crossed_difference, correlation_difference
from rim_lens.training_time.row_correlations import pearson, percentiles, spearman
from rim_lens.training_time.series_heads import kept_order
from rim_lens.training_time.shift import prompt_resamples

RESAMPLES, SPREAD = 400, 1.5  # spread: standard deviation of the prompts' log-odds
# What training does to the log-odds: mean shift, standard deviation over seeds, over prompts × seeds, and the rate
# before.
TRAININGS = {
    "nothing": (0.0, 0.0, 0.0, -1.5),
    "nothing, rare answers": (0.0, 0.0, 0.0, -4.0),
    "up or down by the seed": (None, 0.5, 0.0, -1.5),
    "up or down by the seed, much": (None, 1.0, 0.5, -1.5),
    "up, seeds alike": (1.0, 0.0, 0.0, -1.5),
    "up, seeds differ": (1.0, 0.5, 0.5, -1.5),
}


@cache
def mean_change(shift: float, over: float, base: float) -> float:
    """Mean change of the rate over all prompts and seeds."""
    prompts, moved = np.random.default_rng(0).normal(size=(2, 400_000))
    return float((expit(base + SPREAD * prompts + shift + over * moved) - expit(base + SPREAD * prompts)).mean())


@cache
def without_change(over: float, base: float) -> float:
    """The shift at which seeds that differ change the rate by nothing on average."""
    low, high = -2.0, 2.0
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (low, middle) if mean_change(middle, over, base) > 0 else (middle, high)
    return low


def trainings(rng: np.random.Generator, runs: int, n: int, seeds: int, name: str) -> tuple[list[CrossedMean], float]:
    """Differences of answers 0 and 1 over prompts × seeds, and their true mean. All seeds start from one model."""
    shift, by_seed, by_cell, base = TRAININGS[name]
    over = float(np.hypot(by_seed, by_cell))
    shift = without_change(over, base) if shift is None else shift
    found = []
    for i in range(runs):
        odds = base + rng.normal(0, SPREAD, (n, 1))
        moved = odds + shift + rng.normal(0, by_seed, (1, seeds)) + rng.normal(0, by_cell, (n, seeds))
        before, after = rng.random((n, 1)) < expit(odds), rng.random((n, seeds)) < expit(moved)
        found.append(bootstrap_crossed_difference(after, before, RESAMPLES, seed=i))
    return found, mean_change(shift, over, base) if name.startswith("up") and shift else 0.0


@covers
def changes_over_seeds(rng: np.random.Generator, runs: int) -> list[Coverage]:
    """Change of a rate over prompts and seeds of training; a new training would draw a new seed."""
    rows = []
    for seeds in (3, 5):
        for n in (32, 200):
            for name in TRAININGS:
                found, truth = trainings(rng, runs, n, seeds, name)
                names = ("change over prompts and seeds", "compare_arms", name, f"{n} × {seeds}")
                rows.append(coverage(names, truth, *np.array([tuple(one.interval) for one in found]).T))
    return rows


@calibrates
def changes_over_seeds_p(rng: np.random.Generator, runs: int) -> list[Calibration]:
    """Its p where trainings change nothing on average."""
    rows = []
    for seeds in (3, 5):
        for n in (32, 200):
            for name in TRAININGS:
                if not TRAININGS[name][0]:
                    found, _ = trainings(rng, runs, n, seeds, name)
                    names = ("change over prompts and seeds, t", "compare_arms", name, f"{n} × {seeds}")
                    rows.append(calibration(names, np.array([one.p for one in found])))
    return rows


@covers
def roles_of_heads(rng: np.random.Generator, runs: int) -> list[Coverage]:
    """Spearman's ρ over 24 heads of mean effects before and after; truth.

    Its mean over many draws of as many prompts.
    """
    rows, heads = [], 24
    before = rng.normal(size=heads)
    after = 0.7 * before + np.sqrt(1 - 0.49) * rng.normal(size=heads)
    for n in (16, 48):
        for noise, data in ((1.0, "noise of a prompt 1 ×"), (3.0, "noise of a prompt 3 ×")):
            sides = [mean + noise / np.sqrt(n) * rng.normal(size=(4000, heads)) for mean in (before, after)]
            truth, ends = float(spearman(*sides).mean()), []
            for i in range(runs):
                drawn = [mean + noise * rng.normal(size=(n, heads)) for mean in (before, after)]
                found = kept_order("rank", *drawn, prompt_resamples(n, RESAMPLES, i))
                ends.append((found["rank_low"], found["rank_high"]))
            names = ("Spearman's ρ over heads", "measure_series", f"{data} the spread of heads", str(n))
            rows.append(coverage(names, truth, *np.array(ends).T))
    return rows


@covers
def shifts_of_neurons(rng: np.random.Generator, runs: int) -> list[Coverage]:
    """Pearson and Spearman of predicted and actual shifts over neurons, which are independent here."""
    rows = []
    for n in (20, 100):
        for r in (0.0, 0.6):
            a = rng.normal(size=(runs, n))
            b = r * a + np.sqrt(1 - r**2) * rng.normal(size=(runs, n))
            for name, kind, truth in (
                ("Pearson's r", pearson, r),
                ("Spearman's ρ", spearman, 6 / np.pi * np.arcsin(r / 2)),
            ):
                ends = []
                for one, other in zip(a, b, strict=True):
                    drawn = rng.integers(0, n, size=(RESAMPLES, n))
                    ends.append(tuple(percentiles(kind(one[drawn], other[drawn]), n)))
                names = (f"{name} over neurons", "prediction_check", f"normal, r = {r:g}", str(n))
                rows.append(coverage(names, truth, *np.array(ends).T))
    return rows


@calibrates
def better_predictor(rng: np.random.Generator, runs: int) -> list[Calibration]:
    """Two predictors, equally good: the share of resamples in which one beats the other, as 2 min(share, 1 − share)."""
    rows = []
    for n in (8, 12):
        y = rng.normal(size=(runs, n))
        first, second = (0.7 * y + np.sqrt(1 - 0.49) * rng.normal(size=y.shape) for _ in range(2))
        share: Array = np.array(
            [
                correlation_difference(*one, n_resamples=RESAMPLES, seed=i).certainty
                for i, one in enumerate(zip(first, second, y, strict=True))
            ]
        )
        names = ("share of resamples ahead, as p", "measure_series", "both r = 0.7", str(n))
        rows.append(calibration(names, 2 * np.minimum(share, 1 - share)))
    return rows
