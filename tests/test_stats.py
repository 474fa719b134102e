"""Rates, effects and permutation tests against closed forms, scipy and exact enumeration."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from rim_lens.errors import RimLensError
from rim_lens.stats import (
    Interval,
    Rate,
    auroc,
    benjamini_hochberg,
    cohens_d,
    correlation_test,
    d_prime,
    hedges_g,
    mcnemar,
    paired_difference,
    permutation_p,
    permutation_test,
    rank_correlation_test,
    tango,
    wilson,
    wilson_of_groups,
)

BRUTE = {
    "mean_difference": lambda v, y: v[y].mean() - v[~y].mean(),
    "auroc": lambda v, y: (np.sign(v[y][:, None] - v[~y][None]).mean() + 1) / 2 - 0.5,
}


def welch(v, y):
    with np.errstate(divide="ignore"):
        return stats.ttest_ind(v[y], v[~y], equal_var=False).statistic


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.sampled_from([0.8, 0.95]))
def test_wilson_is_scipys(counts, level):
    k, n = counts
    reference = stats.binomtest(k, n).proportion_ci(level, method="wilson")
    assert tuple(wilson(k, n, level)) == pytest.approx((reference.low, reference.high), abs=1e-12)


def test_wilson_covers_on_average():
    n, rates = 40, np.linspace(0.01, 0.99, 99)
    ends = np.array([tuple(wilson(k, n)) for k in range(n + 1)])
    inside = (ends[:, :1] <= rates) & (rates <= ends[:, 1:])
    coverage = (stats.binom.pmf(np.arange(n + 1)[:, None], n, rates) * inside).sum(axis=0)
    assert coverage.mean() == pytest.approx(0.95, abs=0.01)
    assert coverage.min() > 0.88


def test_rate_prints_counts_percent_and_interval():
    assert str(Rate(43, 48)) == "43/48 = 89.6 % [77.8, 95.5]"
    assert str(Rate(0, 0)) == "n = 0"
    assert math.isnan(Rate(0, 0).value)
    assert all(math.isnan(end) for end in Rate(0, 0).interval)


@pytest.mark.parametrize(("k", "n"), [(3, 2), (-1, 2), (0, -1)])
def test_impossible_counts_are_refused(k, n):
    with pytest.raises(RimLensError, match="0 <= k <= n"):
        Rate(k, n)


def test_interval_unpacks_and_contains():
    low, high = Interval(0.2, 0.4)
    assert (low, high) == (0.2, 0.4)
    assert 0.3 in Interval(0.2, 0.4)
    assert 0.5 not in Interval(0.2, 0.4)


@pytest.mark.parametrize(("b", "c"), [(0, 0), (5, 0), (3, 12), (7, 7)])
def test_mcnemar_counts_fair_coins(b, c):
    tosses = np.array(list(itertools.product([0, 1], repeat=b + c))).sum(axis=1)
    extreme = np.abs(tosses - (b + c) / 2) >= abs(b - (b + c) / 2)
    assert mcnemar(b, c) == pytest.approx(extreme.mean())


def _score_statistic(b, c, n, delta):
    """Tango's statistic with the nuisance parameter found by numerical maximum likelihood."""

    def loss(q):  # P(only b) = q, P(only a) = q + delta, P(agree) = the rest
        cells = np.array([q + delta, q, 1 - 2 * q - delta])
        counts = np.array([b, c, n - b - c])
        return -np.sum(counts * np.log(np.maximum(cells, 1e-300)))

    bounds = (max(0, -delta), (1 - delta) / 2)
    q = optimize.minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-12}).x
    return (b - c - n * delta) / math.sqrt(n * (2 * q + delta - delta**2))


@pytest.mark.parametrize(("b", "c", "n"), [(12, 2, 50), (1, 9, 30), (5, 5, 20), (20, 1, 200)])
def test_tango_inverts_the_score_test(b, c, n):
    low, high = tango(b, c, n)
    z = stats.norm.ppf(0.975)
    assert _score_statistic(b, c, n, low) == pytest.approx(z, abs=1e-4)
    assert _score_statistic(b, c, n, high) == pytest.approx(-z, abs=1e-4)


def test_tango_without_discordant_prompts_has_its_closed_form():
    z2 = stats.norm.ppf(0.975) ** 2
    assert tuple(tango(0, 0, 30)) == pytest.approx((-z2 / (30 + z2), z2 / (30 + z2)))
    assert tango(30, 0, 30).high == 1
    assert tango(0, 30, 30).low == -1


@pytest.mark.parametrize(("only_a", "only_b"), [(0.2, 0.2), (0.25, 0.05), (0.05, 0.02)])
def test_tango_covers(only_a, only_b):
    n = 30
    counts = [(b, c) for b in range(n + 1) for c in range(n + 1 - b)]
    weight = stats.multinomial.pmf([(b, c, n - b - c) for b, c in counts], n, [only_a, only_b, 1 - only_a - only_b])
    likely = [(pair, w) for pair, w in zip(counts, weight, strict=True) if w > 1e-5]
    covered = sum(w for (b, c), w in likely if only_a - only_b in tango(b, c, n))
    assert 0.93 < covered / sum(w for _, w in likely) < 0.99


def test_paired_difference_counts_and_signs():
    a, b = np.array([1, 1, 1, 0, 0, 1], bool), np.array([1, 0, 0, 0, 1, 0], bool)
    result = paired_difference(a, b)
    assert (result.only_a, result.only_b, result.n) == (3, 1, 6)
    assert result.value == pytest.approx(a.mean() - b.mean())
    assert result.p == mcnemar(3, 1)
    assert paired_difference(b, a).interval.low == pytest.approx(-result.interval.high)
    assert "3 against 1 of 6" in str(result)


@pytest.mark.parametrize("b", [[1, 0], [1, 0, 2], [[1, 0, 1]]])
def test_paired_difference_refuses_what_is_not_paired(b):
    with pytest.raises(RimLensError, match="paired difference"):
        paired_difference(np.array([1, 0, 1]), np.array(b))


@given(st.integers(0, 10_000))
def test_auroc_is_the_share_of_ordered_pairs(seed):
    rng = np.random.default_rng(seed)
    scores, labels = rng.integers(0, 5, size=(12, 2, 3)), np.arange(12) < rng.integers(1, 12)
    brute = (np.sign(scores[labels][:, None] - scores[~labels][None]).mean(axis=(0, 1)) + 1) / 2
    np.testing.assert_allclose(auroc(scores, labels), brute)


def test_effects_have_their_closed_forms():
    rng = np.random.default_rng(0)
    values, labels = rng.normal(size=(20, 4)), np.arange(20) < 8
    a, b = values[labels], values[~labels]
    t = stats.ttest_ind(a, b).statistic
    d = t * math.sqrt(1 / 8 + 1 / 12)
    np.testing.assert_allclose(cohens_d(values, labels), d)
    np.testing.assert_allclose(hedges_g(values, labels), d * (1 - 3 / (4 * 18 - 1)), rtol=1e-3)
    np.testing.assert_allclose(
        d_prime(values, labels), (a.mean(0) - b.mean(0)) / np.sqrt((a.var(0, ddof=1) + b.var(0, ddof=1)) / 2)
    )


def test_hedges_g_is_unbiased():
    values = np.random.default_rng(1).normal(size=(10, 40_000)) + 0.8 * (np.arange(10) < 5)[:, None]
    assert hedges_g(values, np.arange(10) < 5).mean() == pytest.approx(0.8, abs=0.015)


def test_effects_of_constant_values():
    labels = np.array([1, 1, 1, 0, 0, 0], bool)
    values = np.stack([np.full(6, 0.1), np.where(labels, 2.0, 1.0), np.full(6, 1e9) + 0.1], axis=1)
    np.testing.assert_array_equal(cohens_d(values, labels), [0, np.inf, 0])
    np.testing.assert_array_equal(auroc(values, labels), [0.5, 1, 0.5])
    assert permutation_p(values, labels, n_permutations=10)[0] == 1


@pytest.mark.parametrize("function", [auroc, cohens_d, hedges_g, d_prime, permutation_test])
def test_a_missing_class_is_said(function):
    with pytest.raises(RimLensError, match="rows of each class, got 4 positive and 0 negative"):
        function(np.arange(4.0), np.ones(4, bool))


@pytest.mark.parametrize("statistic", list(BRUTE))
def test_unpaired_permutation_enumerates_small_samples(statistic):
    values, labels = np.random.default_rng(2).integers(0, 6, size=(8, 3)).astype(float), np.arange(8) % 3 == 0
    result = permutation_test(values, labels, statistic)
    others = [np.isin(np.arange(8), rows) for rows in itertools.combinations(range(8), int(labels.sum()))]
    compared = welch if statistic == "mean_difference" else BRUTE[statistic]
    null = np.array([[compared(values[:, j], y) for j in range(3)] for y in others])
    observed = np.array([BRUTE[statistic](values[:, j], labels) for j in range(3)])
    assert result.exact
    assert result.n_permutations == len(others)
    np.testing.assert_allclose(result.statistic, observed + (0.5 if statistic == "auroc" else 0))
    observed = np.array([compared(values[:, j], labels) for j in range(3)])
    np.testing.assert_allclose(result.p, (np.abs(null) >= np.abs(observed) - 1e-9).mean(axis=0))
    scale = 1.0 if statistic == "mean_difference" else null.std(axis=0)  # Welch's t has its own
    scaled, top = np.abs(observed) / scale, (np.abs(null) / scale).max(axis=1)
    np.testing.assert_allclose(result.family_p, (top[:, None] >= scaled - 1e-9).mean(axis=0))


@pytest.mark.parametrize("statistic", list(BRUTE))
def test_paired_permutation_enumerates_swaps(statistic):
    rng = np.random.default_rng(3)
    values, labels = rng.integers(0, 9, size=12).astype(float), rng.permutation(np.arange(12) % 2 == 0)
    pairs = list(zip(np.flatnonzero(labels), np.flatnonzero(~labels), strict=True))
    null = []
    for swaps in itertools.product([False, True], repeat=6):
        swapped = labels.copy()
        for (i, j), swap in zip(pairs, swaps, strict=True):
            swapped[i], swapped[j] = not swap, swap
        null.append(BRUTE[statistic](values, swapped))
    observed = BRUTE[statistic](values, labels)
    result = permutation_test(values, labels, statistic, paired=True)
    assert (result.n, result.exact) == (6, True)
    assert result.p == pytest.approx((np.abs(null) >= abs(observed) - 1e-9).mean())


def test_drawn_permutations_agree_with_scipy():
    rng = np.random.default_rng(4)
    values, labels = rng.normal(size=(30, 2)), np.arange(30) < 12
    values[labels, 1] += 0.9
    reference = stats.permutation_test(
        (values[labels], values[~labels]), lambda a, b, axis: a.mean(axis) - b.mean(axis),
        vectorized=True, n_resamples=20_000, rng=0,
    )  # fmt: skip
    result = permutation_test(values, labels, n_permutations=20_000)
    assert not result.exact
    np.testing.assert_allclose(result.p, reference.pvalue, atol=0.012)
    np.testing.assert_array_equal(result.p, permutation_test(values, labels, n_permutations=20_000).p)
    assert (result.p != permutation_test(values, labels, n_permutations=20_000, seed=1).p).any()


@pytest.mark.parametrize("paired", [False, True])
def test_p_is_uniform_under_the_null(paired):
    values = np.random.default_rng(5).exponential(size=(40, 200))
    p = permutation_p(values, np.arange(40) % 2 == 0, "mean_difference", 999, paired=paired)
    assert stats.kstest(p, "uniform").pvalue > 0.01
    assert p.min() >= 1 / 1000


def test_p_is_uniform_over_seeds():
    samples = [np.random.default_rng(seed).normal(size=24) for seed in range(200)]
    p = [permutation_p(values, np.arange(24) < 9, "auroc", 499, seed=seed) for seed, values in enumerate(samples)]
    assert stats.kstest(p, "uniform").pvalue > 0.01


def test_family_wise_p_keeps_its_level_and_finds_the_planted_head():
    labels = np.arange(40) < 20
    smallest = []
    for seed in range(60):
        values = np.random.default_rng(seed).normal(size=(40, 6, 5)) * np.logspace(-3, 3, 5)
        smallest.append(permutation_test(values, labels, n_permutations=199, seed=seed).family_p.min())
    assert 0 <= np.mean(np.array(smallest) <= 0.1) < 0.22
    values[labels, 2, 0] += 2e-3
    planted = permutation_test(values, labels).family_p
    assert planted[2, 0] < 0.01
    assert (planted < 0.05).sum() == 1


def test_nan_stays_where_it_is():
    values = np.random.default_rng(6).normal(size=(30, 3))
    clean = permutation_test(values[:, [0, 2]], np.arange(30) < 15)
    values[4, 1] = np.nan
    for statistic in BRUTE:
        p = permutation_p(values, np.arange(30) < 15, statistic)
        assert np.isnan(p).tolist() == [False, True, False]
    result = permutation_test(values, np.arange(30) < 15)
    np.testing.assert_array_equal(result.p[[0, 2]], clean.p)
    np.testing.assert_array_equal(result.family_p[[0, 2]], clean.family_p)


def test_many_elements_are_chunked_without_a_seam(monkeypatch):
    values, labels = np.random.default_rng(7).normal(size=(20, 50)), np.arange(20) < 10
    whole = permutation_test(values, labels, n_permutations=300)
    monkeypatch.setattr("rim_lens.stats.permutation._CHUNK_ELEMENTS", 777)
    # what is drawn anew for the small p-values depends on the chunks, so these agree as two draws do
    np.testing.assert_allclose(permutation_test(values, labels, n_permutations=300).p, whole.p, atol=0.02)


def test_rank_correlation_enumerates_small_samples():
    values, outcome = np.random.default_rng(8).normal(size=(5, 2)), np.array([1.0, 2, 2, 5, 4])
    result = rank_correlation_test(values, outcome)
    for j in range(2):
        null = [stats.spearmanr(values[:, j], order).statistic for order in itertools.permutations(outcome)]
        assert result.statistic[j] == pytest.approx(stats.spearmanr(values[:, j], outcome).statistic)
        assert result.p[j] == pytest.approx((np.abs(null) >= abs(result.statistic[j]) - 1e-9).mean())


def test_correlation_tests_agree_with_scipy_for_many_rows():
    rng = np.random.default_rng(9)
    outcome = rng.normal(size=60)
    values = np.stack([outcome + rng.normal(0, 4, size=60), rng.normal(size=60), np.ones(60)], axis=1)
    for test, reference in ((rank_correlation_test, stats.spearmanr), (correlation_test, stats.pearsonr)):
        result = test(values, outcome, 5000)
        for j in range(2):
            expected = reference(values[:, j], outcome)
            assert result.statistic[j] == pytest.approx(expected.statistic)
            assert result.p[j] == pytest.approx(expected.pvalue, abs=0.03)
        assert np.isnan(result.p[2])


@settings(max_examples=50)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_benjamini_hochberg_steps_up(p):
    m, order = len(p), np.argsort(p)
    q, smallest = np.empty(m), 1.0
    for rank in range(m, 0, -1):
        smallest = min(smallest, p[order[rank - 1]] * m / rank)
        q[order[rank - 1]] = smallest
    np.testing.assert_allclose(benjamini_hochberg(np.array(p)), q)


def test_benjamini_hochberg_passes_nan_by():
    p = np.array([[0.01, np.nan], [0.04, 0.03]])
    np.testing.assert_allclose(benjamini_hochberg(p), [[0.03, np.nan], [0.04, 0.04]])
    assert np.isnan(benjamini_hochberg(np.array([np.nan]))).all()
    with pytest.raises(RimLensError, match="between 0 and 1"):
        benjamini_hochberg(np.array([1.2]))


def test_wilson_of_groups_is_wilsons_for_single_trials_and_wider_where_groups_agree():
    hits = (np.arange(40) < 9).astype(float)
    single = wilson_of_groups(hits, np.ones(40))
    assert tuple(single) == pytest.approx(tuple(wilson(9, 40)), abs=0.01)
    alike = wilson_of_groups(5 * hits, np.full(40, 5))
    assert tuple(alike) == pytest.approx(tuple(single), abs=0.01)
    assert wilson_of_groups(np.zeros(12), np.full(12, 8)) == wilson(0, 12)
    assert wilson_of_groups(np.full(12, 8), np.full(12, 8)) == wilson(12, 12)
    assert math.isnan(wilson_of_groups(np.array([1]), np.array([4])).low)
    with pytest.raises(RimLensError, match="0 <= hits <= size"):
        wilson_of_groups(np.array([3, 1]), np.array([2, 5]))


def test_wilson_of_groups_covers():
    rng, covered = np.random.default_rng(0), 0
    for _ in range(400):
        sizes = rng.integers(3, 12, 30)
        covered += 0.1 in wilson_of_groups(rng.binomial(sizes, rng.beta(0.4, 3.6, 30)), sizes)
    assert 0.92 <= covered / 400 <= 0.985
