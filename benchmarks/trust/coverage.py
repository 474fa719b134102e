"""Coverage of every kind of 95 % interval that the package prints.

The share of simulated measurements whose interval holds the truth.
"""

import numpy as np

from benchmarks.trust.simulated import SHAPES, Coverage, coverage, covers
from rim_lens.causal.set_effects import recovered_share
from rim_lens.inference_time.contrast import group_contrast, pair_contrast, rank_contrast
from rim_lens.inference_time.patching import returned_table
from rim_lens.inference_time.probe_fit import auroc_interval
from rim_lens.stats import (
    auroc,
    bootstrap_crossed,
    bootstrap_crossed_difference,
    bootstrap_means,
    correlation,
    correlation_difference,
    tango,
    wilson,
)
from rim_lens.stats.line import fitted_line

RATES = "measure_rim, series_behavior, compare_arms, arm_divergence"


@covers
def wilson_of_a_rate(rng: np.random.Generator, runs: int) -> list[Coverage]:
    """Rates near the border and in the middle."""
    rows = []
    for n in (16, 32, 200):
        for rate in (0.03, 0.2, 0.5):
            found = np.array([tuple(wilson(k, n)) for k in range(n + 1)])[rng.binomial(n, rate, runs)]
            rows.append(coverage(("Wilson", RATES, f"rate {rate:g}", str(n)), rate, *found.T))
    return rows


@covers
def tango_of_paired_rates(rng: np.random.Generator, runs: int) -> list[Coverage]:
    """Few and many discordant prompts."""
    rows = []
    for n in (32, 200):
        for only_a, only_b in ((0.02, 0.05), (0.05, 0.25)):
            counts = rng.multinomial(n, (only_a, only_b, 1 - only_a - only_b), runs)
            found = np.array([tuple(tango(int(a), int(b), n)) for a, b, _ in counts])
            data = f"discordant {only_a:g} and {only_b:g}"
            rows.append(coverage(("Tango, paired difference", RATES, data, str(n)), only_a - only_b, *found.T))
    return rows


@covers
def mean_of_scores(rng: np.random.Generator, runs: int) -> list[Coverage]:
    """Effects of heads, refusal scores, drops: one value per prompt."""
    rows = []
    for n in (4, 8, 16, 32, 96):
        for name, draw in SHAPES.items():
            low, high = bootstrap_means(draw(rng, (n, runs), 0.3), seed=int(rng.integers(1 << 30)))
            where = "sweeps, ablation_test, measure_series, trace_refusal, attention_by_length"
            rows.append(coverage(("mean, bootstrap over prompts", where, name, str(n)), 0.3, low, high))
    return rows


@covers
def ratio_of_means(rng: np.random.Generator, runs: int) -> list[Coverage]:
    """The share of a gap that patching returns: mean effect over mean gap, truth 0.4."""
    rows = []
    for n in (8, 16, 48):
        for gap_mean, data in ((3.0, "gap 3 sd from 0"), (1.0, "gap 1 sd from 0")):
            gap = rng.normal(gap_mean, 1, (n, runs))
            effect = 0.4 * gap + rng.normal(0, 0.4, (n, runs))
            tables = [returned_table(effect[:, [i]], gap[:, i], seed=i) for i in range(runs)]
            low, high = (np.array([float(one[f"returned_{end}"].iloc[0]) for one in tables]) for end in ("low", "high"))
            names = ("share of a gap, ratio of means", "patching_sweep", data, str(n))
            rows.append(coverage(names, 0.4, low, high))
            if n == 16:  # the same by another function, which takes longer
                zero = np.zeros(n)
                ends = [tuple(recovered_share(zero, effect[:, i], gap[:, i], i)[1]) for i in range(runs)]
                names = ("share of a gap, recovered", "restore_refusal", data, str(n))
                rows.append(coverage(names, 0.4, *np.array(ends).T))
    return rows


@covers
def standardised_effects(rng: np.random.Generator, runs: int) -> list[Coverage]:
    """Cohen's d of two groups and d_z of pairs, truth 0 and 1."""
    rows = []
    for name in ("normal", "skewed"):
        draw = SHAPES[name]
        for d in (0.0, 1.0):
            for n in (8, 16, 48):
                values = np.concatenate([draw(rng, (n, runs), d), draw(rng, (n, runs))])
                found = group_contrast(values, np.arange(2 * n) < n, n_permutations=1)
                where = "find_refusal_heads"
                rows.append(coverage(("Cohen's d", where, f"{name}, d = {d:g}", f"{n}+{n}"), d, found.low, found.high))
                found = pair_contrast(draw(rng, (n, runs), d), np.zeros((n, runs)), n_permutations=1)
                names = ("d_z of pairs", f"{where}, trace_refusal", f"{name}, d = {d:g}", str(n))
                rows.append(coverage(names, d, found.low, found.high))
    return rows


@covers
def rank_correlations(rng: np.random.Generator, runs: int) -> list[Coverage]:
    """Spearman's ρ of normal pairs: ρ = 6/π arcsin(r/2)."""
    rows = []
    for n in (10, 32, 96):
        for r in (0.0, 0.7):
            low, high = [], []
            outcome = rng.normal(size=(n, runs))
            values = r * outcome + np.sqrt(1 - r**2) * rng.normal(size=(n, runs))
            for i in range(runs):
                found = rank_contrast(values[:, [i]], outcome[:, i], n_permutations=1)
                low.append(found.low[0])
                high.append(found.high[0])
            truth = 6 / np.pi * np.arcsin(r / 2)
            names = ("Spearman's ρ over prompts", "find_refusal_heads(outcome=)", f"normal, r = {r:g}", str(n))
            rows.append(coverage(names, truth, np.array(low), np.array(high)))
    return rows


@covers
def areas(rng: np.random.Generator, runs: int) -> list[Coverage]:
    """AUROC of normal scores d apart: Φ(d / √2)."""
    from scipy.stats import norm

    rows = []
    for n_plus, n_minus in ((8, 8), (24, 8), (32, 32)):
        for d in (0.0, 1.0, 2.5):
            scores = np.concatenate([rng.normal(d, 1, (n_plus, runs)), rng.normal(0, 1, (n_minus, runs))])
            area = auroc(scores, np.arange(n_plus + n_minus) < n_plus)
            truth = float(norm.cdf(d / np.sqrt(2)))
            names = ("AUROC", "probe_refusal", f"normal, true AUROC {truth:.2f}", f"{n_plus}+{n_minus}")
            rows.append(coverage(names, truth, *auroc_interval(area, n_plus, n_minus)))
    return rows


@covers
def crossed_means(rng: np.random.Generator, runs: int) -> list[Coverage]:
    """Prompts × wordings: both vary, and a difference of two classes of wordings on the same prompts."""
    rows = []
    for n_prompts, n_wordings in ((32, 4), (32, 8)):
        found, between = [], []
        for i in range(runs):
            prompt, rest = rng.normal(0, 0.7, (n_prompts, 1)), rng.normal(0, 0.7, (n_prompts, 2 * n_wordings))
            values = prompt + rng.normal(0, 0.3, (1, 2 * n_wordings)) + rest
            first, second = values[:, :n_wordings], values[:, n_wordings:]
            found.append(tuple(bootstrap_crossed(first, 1000, seed=i).interval))
            between.append(tuple(bootstrap_crossed_difference(first, second, 1000, seed=i).interval))
        n = f"{n_prompts} × {n_wordings}"
        for name, intervals in (("mean", found), ("difference", between)):
            names = (f"{name} over prompts and wordings", "measure_rim, pattern_costs", "normal, wordings vary", n)
            rows.append(coverage(names, 0.0, *np.array(intervals).T))
    return rows


@covers
def crossed_rates(rng: np.random.Generator, runs: int) -> list[Coverage]:
    """The same on a logit scale with answers 0 and 1; the truth is the mean over many prompts and wordings."""
    n_prompts, n_wordings, found, between = 32, 4, [], []
    logit = rng.normal(0.5, np.sqrt(1.5**2 + 0.5**2), 4_000_000)
    truth = float((1 / (1 + np.exp(-logit))).mean())
    for i in range(runs):
        logits = 0.5 + rng.normal(0, 1.5, (n_prompts, 1)) + rng.normal(0, 0.5, (1, 2 * n_wordings))
        answers = (rng.random((n_prompts, 2 * n_wordings)) < 1 / (1 + np.exp(-logits))).astype(float)
        first, second = answers[:, :n_wordings], answers[:, n_wordings:]
        found.append(tuple(bootstrap_crossed(first, 1000, seed=i).interval))
        between.append(tuple(bootstrap_crossed_difference(first, second, 1000, seed=i).interval))
    n = f"{n_prompts} × {n_wordings}"
    return [
        coverage(
            (f"{name} over prompts and wordings", "measure_rim, pattern_costs", "answers 0 and 1", n),
            value,
            *np.array(x).T,
        )
        for name, value, x in (("rate", truth, found), ("difference", 0.0, between))
    ]


@covers
def correlations_over_checkpoints(rng: np.random.Generator, runs: int) -> list[Coverage]:
    """Pearson's r of normal points."""
    rows = []
    for n in (5, 8, 12):
        for r in (0.0, 0.6, 0.9):
            x = rng.normal(size=(runs, n))
            y = r * x + np.sqrt(1 - r**2) * rng.normal(size=(runs, n))
            found = [
                correlation(a, b, 1000, seed=i, n_permutations=1) for i, (a, b) in enumerate(zip(x, y, strict=True))
            ]
            truths = {"Pearson's r": r, "Spearman's ρ": 6 / np.pi * np.arcsin(r / 2)}
            for (name, truth), field in zip(truths.items(), ("pearson_interval", "spearman_interval"), strict=True):
                ends = np.array([tuple(getattr(one, field)) for one in found])
                names = (f"{name} over checkpoints", "measure_series, predict_shift", f"normal, r = {r:g}", str(n))
                rows.append(coverage(names, truth, *ends.T))
    return rows


@covers
def differences_of_correlations(rng: np.random.Generator, runs: int) -> list[Coverage]:
    """Two predictors, equally good."""
    rows = []
    for n in (8, 12):
        y = rng.normal(size=(runs, n))
        x1, x2 = (0.7 * y + np.sqrt(1 - 0.49) * rng.normal(size=y.shape) for _ in range(2))
        found = [
            correlation_difference(a, b, c, n_resamples=1000, seed=i).interval
            for i, (a, b, c) in enumerate(zip(x1, x2, y, strict=True))
        ]
        names = ("difference of two r", "measure_series", "normal, both r = 0.7", str(n))
        rows.append(coverage(names, 0.0, *np.array([tuple(one) for one in found]).T))
    return rows


@covers
def lines(rng: np.random.Generator, runs: int) -> list[Coverage]:
    """The band of a fitted line at the right end of the range."""
    x, low, high = np.linspace(0, 1, 8), [], []
    for _ in range(runs):
        line = fitted_line(x, 1 + 2 * x + rng.normal(0, 0.5, 8))
        low.append(line.low[-1])
        high.append(line.high[-1])
    names = ("band of a line", "measure_series().forgetting().plot()", "normal residuals", "8")
    return [coverage(names, 3.0, np.array(low), np.array(high))]
