"""Bootstraps, matched controls and correlations: coverage, invariants and exact small cases."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from rim_lens.errors import RimLensError
from rim_lens.stats import (
    activation_strata,
    bootstrap,
    bootstrap_crossed,
    bootstrap_crossed_difference,
    bootstrap_mean,
    bootstrap_means,
    correlation,
    correlation_difference,
    count_head_sets,
    empirical_p,
    matched_head_sets,
    matched_neuron_sets,
    mcnemar,
    percentile,
    tango,
    wilson,
)


@pytest.mark.parametrize(("n", "least"), [(10, 0.86), (40, 0.91)])
def test_bootstrap_mean_covers(n, least):
    values = np.random.default_rng(0).exponential(size=(n, 300))
    low, high = bootstrap_means(values - 1, n_resamples=600)
    assert least < ((low <= 0) & (high >= 0)).mean() < 0.985


def test_bootstrap_mean_of_one_column_is_that_of_bootstrap_means():
    values = np.random.default_rng(1).normal(size=(25, 2))
    several = bootstrap_means(values, seed=3)
    assert tuple(bootstrap_mean(values[:, 0], seed=3)) == pytest.approx((several.low[0], several.high[0]))
    assert bootstrap_mean(values[:, 0], seed=3) == bootstrap_mean(values[:, 0], seed=3)
    assert bootstrap_mean(values[:, 0], seed=3) != bootstrap_mean(values[:, 0], seed=4)


def test_bootstrap_mean_of_nothing_and_of_constants():
    assert all(math.isnan(end) for end in bootstrap_mean(np.array([1.0])))
    assert all(math.isnan(end) for end in bootstrap_mean(np.array([])))
    assert tuple(bootstrap_mean(np.full(5, 0.1))) == (0.1, 0.1)


def test_bootstrap_of_a_statistic_keeps_rows_together():
    rng = np.random.default_rng(2)
    x = rng.normal(size=120)
    rows = np.stack([x, x + rng.normal(0, 0.5, size=120)], axis=1)
    low, high = bootstrap(lambda a, b: np.corrcoef(a[:, 0], b)[0, 1], rows, rows[:, 1], n_resamples=500)
    r = np.corrcoef(rows.T)[0, 1]
    fisher = np.tanh(np.arctanh(r) + np.array([-1.96, 1.96]) / math.sqrt(117))
    assert (low, high) == pytest.approx(tuple(fisher), abs=0.03)


def test_bootstrap_refuses_unequal_rows():
    with pytest.raises(RimLensError, match="same number of rows"):
        bootstrap(lambda a, b: 0.0, np.arange(3), np.arange(4))


@pytest.mark.parametrize("spread", [(1, 0.5), (0, 0), (0.3, 1)])
def test_crossed_bootstrap_covers_whichever_factor_matters(spread):
    rng, hits, runs = np.random.default_rng(3), 0, 200
    for seed in range(runs):
        prompts, wordings = rng.normal(0, spread[0], size=(40, 1)), rng.normal(0, spread[1], size=(1, 8))
        values = 2 + prompts + wordings + rng.normal(size=(40, 8))
        hits += 2 in bootstrap_crossed(values, n_resamples=300, seed=seed).interval
    assert 0.9 <= hits / runs <= 0.995


def test_crossed_difference_covers_and_keeps_its_level_with_cells_missing():
    rng, hits, rejected, runs = np.random.default_rng(4), 0, 0, 200
    for seed in range(runs):
        prompts = rng.normal(size=(50, 1))
        a, b = (prompts + rng.normal(0, 0.3, size=(1, w)) + rng.normal(size=(50, w)) for w in (8, 6))
        a[rng.random(a.shape) < 0.15] = np.nan
        result = bootstrap_crossed_difference(a, b, n_resamples=300, seed=seed)
        hits, rejected = hits + (0 in result.interval), rejected + (result.p < 0.05)
    assert 0.9 <= hits / runs <= 0.995
    assert rejected / runs <= 0.1


def test_few_seeds_that_differ_are_counted_with_their_own_degrees_of_freedom():
    seeds = np.array([[0.1, 0.4, 0.9]])
    values = np.tile(seeds, (100, 1))  # nothing varies but the seed: Student's t over 3 seeds
    found = bootstrap_crossed_difference(values, None)
    expected = stats.ttest_1samp(seeds[0], 0)
    assert found.p == pytest.approx(expected.pvalue)
    low, high = found.interval
    student = expected.confidence_interval(0.95)
    assert low <= student.low + 1e-9
    assert high >= student.high - 1e-9
    assert high - low < 1.6 * (student.high - student.low)


@pytest.mark.slow
def test_few_seeds_times_many_prompts_keep_their_level():
    rng, hits, rejected, runs = np.random.default_rng(6), 0, 0, 300
    for seed in range(runs):
        rates = 0.3 + rng.normal(0, 0.07, size=(1, 3))
        values = (rng.random((200, 3)) < rates).astype(float) - (rng.random((200, 1)) < 0.3)
        found = bootstrap_crossed_difference(values, None, n_resamples=200, seed=seed)
        hits, rejected = hits + (0 in found.interval), rejected + (found.p < 0.05)
    assert hits / runs >= 0.93
    assert rejected / runs <= 0.075


def test_crossed_p_is_the_level_at_which_the_interval_leaves_0():
    rng = np.random.default_rng(7)
    a = rng.normal(1.5, 1, size=(30, 1)) + rng.normal(0, 0.3, size=(1, 4)) + rng.normal(size=(30, 4))
    p = bootstrap_crossed_difference(a, None).p
    assert bootstrap_crossed_difference(a, None, level=1 - 0.9 * p).interval.low <= 0
    t = [stats.t.isf(p / 2, freedom) for freedom in (29, 3)]
    rest = a - a.mean(axis=1, keepdims=True) - a.mean(axis=0, keepdims=True) + a.mean()
    rest = (rest**2).sum() / (29 * 3) / 120
    prompts, wordings = a.mean(axis=1).var(ddof=1) / 30 - rest, a.mean(axis=0).var(ddof=1) / 4
    assert math.sqrt(t[0] ** 2 * prompts + t[1] ** 2 * wordings) == pytest.approx(a.mean())


def test_crossed_difference_finds_a_real_one_that_ignoring_pairs_would_miss():
    rng = np.random.default_rng(5)
    prompts = rng.normal(0, 3, size=(40, 1))
    a, b = prompts + 0.6 + rng.normal(size=(40, 8)), prompts + rng.normal(size=(40, 8))
    assert bootstrap_crossed_difference(a, b).p < 0.001
    assert bootstrap_crossed_difference(a, b[rng.permutation(40)]).p > 0.05


def test_crossed_mean_counts_observed_cells_only():
    values = np.array([[1.0, np.nan, 0.0], [1.0, 1.0, np.nan], [0.0, np.nan, np.nan]])
    result = bootstrap_crossed(values)
    assert result.value == np.nanmean(values)
    assert (result.n_prompts, result.n_wordings, result.n_cells) == (3, 3, 5)
    assert 0 <= result.interval.low < result.value < result.interval.high <= 1
    padded = np.column_stack([values, np.full(3, np.nan)])
    assert bootstrap_crossed(padded) == result


@pytest.mark.slow
def test_one_answer_before_does_not_hide_its_noise_behind_five_after():
    """Rare answers that training does not change: with one cell per prompt before, the level holds (it was 0.08)."""
    rng, hits = np.random.default_rng(3), []
    for _ in range(300):
        rate = rng.beta(0.1, 2.4, size=(32, 1))
        before, after = rng.random((32, 1)) < rate, rng.random((32, 5)) < rate
        hits.append(bootstrap_crossed_difference(after, before, n_resamples=200).p <= 0.05)
    assert np.mean(hits) < 0.05
    before, after = np.zeros((32, 1)), np.zeros((32, 5))
    after[np.arange(6), np.arange(6) % 5] = 1
    found = bootstrap_crossed_difference(after, before)
    expected = 6 / 160 / np.sqrt(6 * (1 / 6) * (1 / 5) / 32**2 + 6 * (1 / 6) / 32**2)
    assert found.p == pytest.approx(2 * stats.t.sf(expected, 31), rel=1e-6)
    assert found.interval.low < 0 < found.interval.high
    alike = bootstrap_crossed_difference(after * 0.5, before)  # no zeros and ones: no chance to reckon with
    assert alike.p < 0.05


def test_crossed_without_variation_falls_back_on_prompts():
    assert bootstrap_crossed(np.zeros((48, 8))).interval == wilson(0, 48)
    result = bootstrap_crossed_difference(np.ones((48, 8)), np.zeros((48, 1)))
    assert (result.value, result.p) == (1, mcnemar(48, 0))
    assert result.interval.high == 1
    assert bootstrap_crossed_difference(np.ones((9, 2)), np.ones((9, 2))).p == 1
    few = (np.arange(128) < 2).astype(float)[:, None]  # the same two prompts before and after, with every seed
    same = bootstrap_crossed_difference(np.repeat(few, 3, axis=1), few)
    assert (same.value, same.p) == (0, 1)
    assert same.interval == tango(0, 0, 128)
    uneven = np.array([[1, 1, 1], [0, np.nan, np.nan]])  # alike in each prompt, but not in how often each was asked
    found = bootstrap_crossed_difference(np.tile(uneven, (10, 1)), np.tile([[1.0], [0.0]], (10, 1)))
    assert found.value == 0.25
    assert found.p < 1
    assert found.interval != tango(0, 0, 20)
    assert math.isnan(bootstrap_crossed(np.full((5, 2), 0.3)).interval.low)


@pytest.mark.parametrize("values", [np.zeros(3), np.zeros((1, 3)), np.full((3, 2), np.nan)])
def test_crossed_refuses_what_has_no_cells(values):
    with pytest.raises(RimLensError, match="crossed bootstrap"):
        bootstrap_crossed(values)
    with pytest.raises(RimLensError, match="equal rows"):
        bootstrap_crossed_difference(np.eye(3), np.eye(4))


def test_empirical_p_and_percentile():
    null = np.arange(99.0)
    assert empirical_p(98.5, null, "greater") == pytest.approx(0.01)
    assert empirical_p(98.5, null, "less") == 1
    assert empirical_p(98.5, null) == pytest.approx(0.02)
    assert empirical_p(np.array([98.5, np.nan]), np.stack([null, null], axis=1))[0] == pytest.approx(0.02)
    assert percentile(49, null) == stats.percentileofscore(null, 49, kind="mean")
    assert np.isnan(percentile(np.nan, null))
    with pytest.raises(RimLensError, match="null distribution"):
        empirical_p(1.0, np.array([]))
    with pytest.raises(RimLensError, match="'two-sided', 'greater' or 'less'"):
        empirical_p(1.0, null, "above")


heads_in_a_model = st.integers(3, 8).flatmap(
    lambda n: st.tuples(
        st.just(n), st.sets(st.tuples(st.integers(0, 3), st.integers(0, n - 1)), min_size=1, max_size=8)
    )
)


@settings(max_examples=60)
@given(heads_in_a_model, st.integers(0, 100))
def test_head_sets_match_layers_and_are_never_the_set_itself(model, seed):
    n_heads, heads = model
    possible, per_layer = count_head_sets(list(heads), n_heads), Counter(layer for layer, _ in heads)
    if possible < 5:
        with pytest.raises(RimLensError, match=f"only {possible} distinct"):
            matched_head_sets(list(heads), n_heads, 5, seed)
        return
    sets = matched_head_sets(list(heads), n_heads, 5, seed)
    assert len({frozenset(control) for control in sets}) == 5
    for control in sets:
        assert len(set(control)) == len(heads)
        assert Counter(layer for layer, _ in control) == per_layer
        assert set(control) != heads
    assert sets == matched_head_sets(list(heads), n_heads, 5, seed)


def test_every_possible_head_set_is_found_and_equally_often():
    heads = [(0, 0), (0, 1), (1, 2)]
    possible = {frozenset({(0, i), (0, j), (1, k)}) for i, j in itertools.combinations(range(4), 2) for k in range(4)}
    possible -= {frozenset(heads)}
    assert count_head_sets(heads, 4) == len(possible) == 23
    assert {frozenset(control) for control in matched_head_sets(heads, 4, 23)} == possible
    first = Counter(frozenset(matched_head_sets(heads, 4, 1, seed)[0]) for seed in range(600))
    assert stats.chisquare([first[control] for control in possible]).pvalue > 0.001


def test_whole_layers_have_no_control():
    with pytest.raises(RimLensError, match="only 0 distinct"):
        matched_head_sets([(2, head) for head in range(4)], 4, 1)
    with pytest.raises(RimLensError, match="non-empty"):
        matched_head_sets([(0, 9)], 4, 1)


def test_strata_double_from_the_most_active_neurons_on():
    base = np.random.default_rng(6).normal(size=(3, 48))
    strata = activation_strata(base)
    for layer in range(3):
        assert np.bincount(strata[layer]).tolist() == [2, 2, 4, 8, 16, 16]
        assert (np.diff(strata[layer][np.abs(base[layer]).argsort()]) <= 0).all()


def test_strata_of_what_is_written_are_halved_by_activation():
    rng = np.random.default_rng(6)
    base, written = rng.exponential(size=(2, 48)), rng.exponential(size=(2, 48))
    strata = activation_strata(base, written)
    for layer in range(2):
        order = np.argsort(-base[layer] * written[layer])
        assert (strata[layer] // 2)[order].tolist() == sorted(strata[layer] // 2)
        assert np.bincount(strata[layer]).tolist() == [1, 1, 1, 1, 2, 2, 4, 4, 8, 8, 8, 8]
        for low in range(0, 12, 2):
            less, more = (base[layer][strata[layer] == low + half] for half in (0, 1))
            assert less.max() <= more.min()


def test_a_set_without_massive_neurons_has_no_control_with_one():
    rng = np.random.default_rng(3)
    base = rng.exponential(size=(2, 100))
    base[:, :4] = 1000.0
    ordinary = np.array([[0, 50], [0, 70], [1, 20]])
    sets = matched_neuron_sets(ordinary, base, 200)
    assert (base[sets[..., 0], sets[..., 1]] < 1000).all()


@pytest.mark.parametrize("shape", [(4, 60), (4, 3, 20)])
def test_neuron_sets_match_layer_and_stratum(shape):
    rng = np.random.default_rng(7)
    base = rng.exponential(size=shape)
    neurons = np.stack(np.unravel_index(rng.choice(base.size, size=30, replace=False), shape), axis=1)
    sets = matched_neuron_sets(neurons, base, 40, seed=1)
    group = activation_strata(base)
    wanted = Counter((row[0], group[tuple(row)]) for row in neurons)
    chosen = {tuple(row) for row in neurons}
    assert sets.shape == (40, *neurons.shape)
    assert len({frozenset(map(tuple, control)) for control in sets.tolist()}) == 40
    for control in sets:
        assert len({tuple(row) for row in control}) == 30
        assert Counter((row[0], group[tuple(row)]) for row in control) == wanted
        assert {tuple(row) for row in control} != chosen
    np.testing.assert_array_equal(sets, matched_neuron_sets(neurons, base, 40, seed=1))


def test_the_neuron_set_itself_is_never_a_control():
    base = np.arange(12.0).reshape(1, 12)
    neurons = np.array(
        [[0, 0], [0, 11]]
    )  # one of the four least active, and the most active one, a stratum of its own here
    others = {((0, unit), (0, 11)) for unit in (1, 2, 3)}
    sets = matched_neuron_sets(neurons, base, 3).tolist()
    assert {tuple(map(tuple, sorted(control))) for control in sets} == others
    with pytest.raises(RimLensError, match="only 3 distinct"):
        matched_neuron_sets(neurons, base, 4)
    with pytest.raises(RimLensError, match="outside"):
        matched_neuron_sets(np.array([[0, 20]]), base, 1)


def test_correlation_has_exact_p_for_few_points():
    x, y = np.array([0.1, 0.3, 0.2, 0.7, 1.5]), np.array([1.0, 2.0, 2.5, 2.2, 3.9])
    result = correlation(x, y)
    for kind, reference in (("pearson", stats.pearsonr), ("spearman", stats.spearmanr)):
        value = reference(x, y).statistic
        null = [reference(x, np.array(order)).statistic for order in itertools.permutations(y)]
        assert getattr(result, kind) == pytest.approx(value)
        assert getattr(result, f"{kind}_p") == pytest.approx((np.abs(null) >= abs(value) - 1e-9).mean())
        assert value in getattr(result, f"{kind}_interval")
    assert result == correlation(x, y)


def test_correlation_intervals_cover():
    rng, hits = np.random.default_rng(8), 0
    for seed in range(200):
        x, other, noise = rng.normal(size=(3, 9))
        hits += 0.6 in correlation_difference(x, other, 0.6 * x + 0.8 * noise, n_resamples=300, seed=seed).interval
    assert hits / 200 >= 0.9


@pytest.mark.parametrize("n", [0, 1, 3])
def test_fewer_than_four_points_are_no_correlation(n):
    with pytest.raises(RimLensError, match="at least 4"):
        correlation(np.arange(n), np.arange(n))


@pytest.mark.parametrize("x", [np.ones(5), np.array([1, 2, np.nan, 4, 5]), np.arange(4)])
def test_correlation_refuses_unusable_sides(x):
    with pytest.raises(RimLensError, match="A correlation needs"):
        correlation(x, np.arange(5.0))


def test_correlation_difference_prefers_the_better_predictor():
    rng = np.random.default_rng(9)
    y = rng.normal(size=14)
    good, bad = y + rng.normal(0, 0.2, size=14), rng.normal(size=14)
    for kind in ("pearson", "spearman"):
        assert correlation_difference(good, bad, y, kind).certainty > 0.95
        reverse = correlation_difference(bad, good, y, kind)
        assert reverse.certainty < 0.05
        assert reverse.interval.high < 0.2
        assert correlation_difference(good, good, y, kind).certainty == 0.5
    with pytest.raises(RimLensError, match="'pearson' or 'spearman'"):
        correlation_difference(good, bad, y, "kendall")


def test_one_hit_among_wordings_leaves_no_interval_without_zero():
    values = np.full((32, 8), np.nan)
    values[np.arange(32), np.arange(32) % 8] = 0.0
    values[3, 3] = 1.0
    found = bootstrap_crossed_difference(values, None)
    low, high = found.interval
    assert low <= 0 < high
    assert (low, high) == pytest.approx((min(low, tango(1, 0, 32).low), max(high, tango(1, 0, 32).high)))


def test_seeds_that_agree_by_chance_are_not_known_without_error():
    """Three seeds with the same count of answers.

    The interval is that over prompts, each with the mean over its seeds.
    """
    values = np.zeros((40, 3))
    for seed, places in enumerate(([0, 1, 2, 3], [2, 3, 4, 5], [6, 7, 8, 9])):
        values[places, seed] = 1
    found = bootstrap_crossed_difference(values, None)
    by_prompt = values.mean(axis=1)
    t = stats.ttest_1samp(by_prompt, 0)
    low, high = t.confidence_interval()
    assert found.p == pytest.approx(t.pvalue, rel=1e-6)
    assert found.interval.low <= low + 1e-9
    assert found.interval.high >= high - 1e-9
