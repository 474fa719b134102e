"""Calibration of every p-value that the package prints.

How often it falls below 0.05 and 0.01 where there is nothing.
"""

import numpy as np

from benchmarks.trust.simulated import SHAPES, Calibration, calibrates, calibration
from rim_lens.causal.set_effects import set_effect
from rim_lens.patterns.own_cots import fisher
from rim_lens.stats import (
    activation_strata,
    benjamini_hochberg,
    bootstrap_crossed_difference,
    correlation,
    empirical_p,
    matched_head_sets,
    matched_neuron_sets,
    mcnemar,
    mean_test,
    permutation_test,
    rank_correlation_test,
)

PERMUTATIONS = 999


@calibrates
def mcnemar_p(rng: np.random.Generator, runs: int) -> list[Calibration]:
    """Few discordant prompts: an exact test of counts stays below α."""
    rows = []
    for n, share in ((32, 0.2), (200, 0.2)):
        counts = rng.multinomial(n, (share / 2, share / 2, 1 - share), runs)
        p = np.array([mcnemar(int(a), int(b)) for a, b, _ in counts])
        rows.append(
            calibration(("McNemar, exact", "measure_rim, series_behavior", f"{share:.0%} discordant", str(n)), p)
        )
    return rows


@calibrates
def permutation_p(rng: np.random.Generator, runs: int) -> list[Calibration]:
    """Means of two groups, also of unequal size and spread."""
    rows = []
    for name, draw in SHAPES.items():
        for n, m in ((6, 6), (24, 8)):
            labels = np.arange(n + m) < n
            found = permutation_test(draw(rng, (n + m, runs)), labels, n_permutations=PERMUTATIONS)
            rows.append(calibration(("permutation, two groups", "find_refusal_heads", name, f"{n}+{m}"), found.p))
    uneven = np.concatenate([rng.normal(0, 1, (24, runs)), rng.normal(0, 3, (8, runs))])
    found = permutation_test(uneven, np.arange(32) < 24, n_permutations=PERMUTATIONS)
    names = ("permutation, two groups", "find_refusal_heads", "smaller group spread 3 ×", "24+8")
    rows.append(calibration(names, found.p))
    return rows


@calibrates
def mean_p(rng: np.random.Generator, runs: int) -> list[Calibration]:
    """Effects of heads whose mean is 0, and for comparison of normal ones whose mean is not.

    Sign flips alone beside.
    """
    rows = []
    for name, draw in SHAPES.items():
        for n in (8, 16, 32, 96):
            values = draw(rng, (n, runs))
            found = mean_test(values, PERMUTATIONS)
            names = ("mean effect", "sweeps, find_refusal_heads, trace_refusal, compare_arms", name, str(n))
            rows.append(calibration(names, found.p))
            names = ("sign flips alone, for comparison", "", name, str(n))
            rows.append(calibration(names, permutation_p_of(values)))
    return rows


@calibrates
def mean_power(rng: np.random.Generator, runs: int) -> list[Calibration]:
    """Not a null: how often a normal mean effect of 0.5 and 1 standard deviation is found, beside sign flips alone."""
    rows = []
    for n in (8, 16, 32):
        for mean in (0.5, 1.0):
            values = SHAPES["normal"](rng, (n, runs), mean)
            both = {
                "mean effect": mean_test(values, PERMUTATIONS).p,
                "sign flips alone": permutation_p_of(values),
            }
            for name, p in both.items():
                rows.append(calibration((f"{name}: power", "", f"normal, mean {mean:g} sd", str(n)), p))
    return rows


def permutation_p_of(values: np.ndarray) -> np.ndarray:
    """Sign flips of values against 0."""
    n = len(values)
    both = np.concatenate([values, np.zeros_like(values)])
    return permutation_test(both, np.arange(2 * n) < n, n_permutations=PERMUTATIONS, paired=True).p


@calibrates
def fisher_p(rng: np.random.Generator, runs: int) -> list[Calibration]:
    """Compliance with and without a pattern in the CoT, alike."""
    rows = []
    for n, other in ((12, 20), (40, 60)):
        hits = rng.binomial(n, 0.3, runs), rng.binomial(other, 0.3, runs)
        p = np.array([fisher(int(a), n, int(b), other)["p"] for a, b in zip(*hits, strict=True)])
        rows.append(calibration(("Fisher, exact", "own_patterns", "rate 0.3 in both", f"{n}+{other}"), p))
    return rows


@calibrates
def correlation_p(rng: np.random.Generator, runs: int) -> list[Calibration]:
    """Over prompts (ranks, many heads at once) and over checkpoints (exact up to 8)."""
    found = rank_correlation_test(rng.normal(size=(32, runs)), rng.normal(size=32), n_permutations=PERMUTATIONS)
    rows = [calibration(("rank correlation, permutation", "find_refusal_heads(outcome=)", "normal", "32"), found.p)]
    for n in (4, 8, 12):
        pairs = [
            correlation(*rng.normal(size=(2, n)), 2, n_permutations=40_320 if n <= 8 else PERMUTATIONS)
            for _ in range(runs)
        ]
        for kind in ("pearson", "spearman"):
            p = np.array([getattr(one, f"{kind}_p") for one in pairs])
            rows.append(calibration((f"{kind}, permutation", "measure_series, predict_shift", "normal", str(n)), p))
    return rows


@calibrates
def crossed_p(rng: np.random.Generator, runs: int) -> list[Calibration]:
    """Two classes of wordings on the same prompts that do not differ."""
    rows = []
    for data in ("normal, wordings vary", "answers 0 and 1"):
        p = []
        for i in range(runs):
            logits = rng.normal(0, 1, (32, 1)) + rng.normal(0, 0.4, (1, 8))
            noisy = logits + rng.normal(0, 0.7, (32, 8))
            values = (
                noisy if data.startswith("normal") else (rng.random((32, 8)) < 1 / (1 + np.exp(-logits))).astype(float)
            )
            p.append(bootstrap_crossed_difference(values[:, :4], values[:, 4:], 200, seed=i).p)
        rows.append(calibration(("difference over wordings, t", "measure_rim", data, "32 × 4+4"), np.array(p)))
    return rows


@calibrates
def control_p(rng: np.random.Generator, runs: int) -> list[Calibration]:
    """A set drawn as the controls are, among sets of a model whose heads all matter a little (skewed)."""
    rows = []
    for n_controls in (40, 100):
        draws = rng.exponential(size=(n_controls + 1, runs))
        for alternative in ("two-sided", "greater"):
            p = empirical_p(draws[0], draws[1:], alternative)
            names = (
                f"place among controls, {alternative}",
                "ablation_test, ras",
                "exchangeable",
                str(n_controls),
            )
            rows.append(calibration(names, p))
    for n_heads, k in ((16, 1), (9, 4), (16, 4), (9, 8)):
        p = []
        for i in range(runs):
            effect = rng.exponential(size=(12, n_heads))
            heads = [(int(layer), int(rng.integers(n_heads))) for layer in rng.choice(12, k, replace=False)]
            sets = matched_head_sets(heads, n_heads, n_heads - 1 if k == 1 else 100, seed=i)
            total = [[sum(effect[one] for one in heads) for heads in group] for group in ([heads], sets)]
            one = set_effect(
                np.zeros(2), np.full(2, total[0][0]), np.repeat(total[1], 2).reshape(-1, 2), is_share=False
            )
            p.append(one["p"])
        names = (
            "place among matched head sets",
            "ablation_test",
            f"random, {k} heads, {n_heads} per layer",
            str(len(sets)),
        )
        rows.append(calibration(names, np.array(p)))
    return rows


@calibrates
def neuron_control_p(rng: np.random.Generator, runs: int) -> list[Calibration]:
    """Random sets of neurons, some of which crowd one stratum, among matched ones."""
    rows = []
    for size, crowd in ((30, 1.0), (60, 0.1)):
        p = []
        for i in range(runs):
            base, effect = rng.exponential(size=(2, 4, 200))
            weight = np.where(activation_strata(base) == 4, 1.0, crowd).ravel()
            chosen = rng.choice(800, size, replace=False, p=weight / weight.sum())
            neurons = np.stack(np.unravel_index(chosen, base.shape), axis=1)
            sets = matched_neuron_sets(neurons, base, 100, seed=i)
            null = effect[tuple(np.moveaxis(sets, -1, 0))].mean(axis=1)
            p.append(empirical_p(effect[tuple(neurons.T)].mean(), null, "greater"))
        data = f"random, {size} of 800" + (", crowded" if crowd < 1 else "")
        names = ("place among matched neuron sets", "ablation_test, ras, activation_shift", data, "100")
        rows.append(calibration(names, np.array(p)))
    return rows


@calibrates
def many_heads(rng: np.random.Generator, runs: int) -> list[Calibration]:
    """The share of whole tables with any false head, 144 correlated heads: q < 0.05 and family-wise p."""
    smallest_q, smallest_family = [], []
    for i in range(runs):
        common = rng.normal(size=(24, 1))
        found = permutation_test(
            0.5 * common + rng.normal(size=(24, 144)), np.arange(24) < 12, n_permutations=PERMUTATIONS, seed=i
        )
        smallest_q.append(benjamini_hochberg(found.p).min())
        smallest_family.append(found.family_p.min())
    where = "find_refusal_heads, sweeps"
    return [
        calibration(("smallest q of 144 heads", where, "no head differs", "12+12"), np.array(smallest_q)),
        calibration(
            ("smallest family-wise p", "find_refusal_heads", "no head differs", "12+12"), np.array(smallest_family)
        ),
    ]
