"""The test of a mean: exact signs, Student's t, the interval beside it, and skewed effects."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from rim_lens.errors import RimLensError
from rim_lens.stats import benjamini_hochberg, bootstrap_means, mean_test, permutation_test


def flips(values, n_permutations=2000):
    labels = np.repeat([True, False], len(values))
    paired = np.concatenate([values, np.zeros_like(values)])
    return permutation_test(paired, labels, n_permutations=n_permutations, paired=True)


@given(st.integers(0, 10_000), st.integers(2, 9))
def test_p_is_no_smaller_than_all_signs_and_students_t(seed, n):
    values = np.random.default_rng(seed).normal(0.5, 1, size=(n, 6))
    found = mean_test(values)
    signs = np.array(list(itertools.product((1, -1), repeat=n)))
    exact = (np.abs(signs @ values) >= np.abs(values.sum(axis=0)) - 1e-9).mean(axis=0)
    assert found.exact
    assert (found.p >= np.maximum(exact, stats.ttest_1samp(values, 0).pvalue) - 1e-9).all()
    assert (found.family_p >= found.p).all()
    np.testing.assert_allclose(found.statistic, values.mean(axis=0))


def test_p_of_symmetric_values_is_that_of_signs_or_t():
    half = np.random.default_rng(0).normal(size=(12, 5))
    values = np.concatenate([half, -half]) + 0.4  # no skew, so BCa adds nothing
    expected = np.maximum(flips(values).p, stats.ttest_1samp(values, 0).pvalue)
    np.testing.assert_allclose(mean_test(values).p, expected, rtol=0.02)


@pytest.mark.parametrize("draw", ["normal", "exponential"])
def test_p_and_interval_agree(draw):
    rng = np.random.default_rng(1)
    values = getattr(rng, draw)(size=(20, 400)) - (1 if draw == "exponential" else 0) + rng.normal(0, 0.4, size=400)
    low, high = bootstrap_means(values)
    excluded = (low > 0) | (high < 0)
    p = mean_test(values).p
    assert 40 < excluded.sum() < 360
    assert (excluded & (p > 0.05)).mean() < 0.03
    assert (~excluded & (p <= 0.05)).mean() < 0.02


def test_a_skewed_mean_of_0_is_called_significant_less_often_than_by_signs():
    values = np.random.default_rng(2).exponential(size=(16, 3000)) - 1
    share = (mean_test(values, 999).p <= 0.05).mean()
    assert share < 0.065 < (flips(values, 999).p <= 0.05).mean()


def test_the_largest_of_many_keeps_its_level_and_is_found():
    rng, smallest = np.random.default_rng(3), []
    for seed in range(200):
        values = rng.normal(size=(12, 1)) + rng.normal(size=(12, 30))
        smallest.append(mean_test(values, 300, seed).family_p.min())
    assert np.mean(np.array(smallest) <= 0.05) < 0.1
    values[:, 7] += 4
    assert mean_test(values, 300).family_p[7] < 0.01


def test_degenerate_rows():
    values = np.array([[0.0, 0.3, 1.0, np.nan]] * 3)
    values[0, 2] = -1
    found = mean_test(values)
    assert found.p[0] == 1
    assert found.p[1] == pytest.approx(2 / 8)  # three equal values: no test of signs says more
    assert np.isnan(found.p[3])
    assert np.isnan(found.family_p[3])
    assert mean_test(np.ones((1, 2))).p.tolist() == [1, 1]
    assert mean_test(np.zeros((4, 2, 3))).p.shape == (2, 3)
    with pytest.raises(RimLensError, match="at least one row"):
        mean_test(np.zeros((0, 3)))
    with pytest.raises(RimLensError, match="permutations"):
        mean_test(np.zeros((3, 3)), 0)


@pytest.mark.parametrize(("n_heads", "n"), [(270, 48), (1152, 48), (4096, 48), (4096, 20)])
def test_one_true_head_of_three_deviations_survives_the_correction(n_heads, n):
    effects = np.random.default_rng(0).normal(size=(n, n_heads))
    effects[:, 0] += 3
    test = mean_test(effects)
    q = benjamini_hochberg(test.p)
    assert q[0] < 0.05
    assert (q[1:] < 0.05).sum() <= 1
    assert 0.02 < (test.p[1:] < 0.05).mean() < 0.07


def test_labels_of_two_groups_reach_small_p_values_too():
    values = np.random.default_rng(1).normal(size=(48, 1152))
    labels = np.arange(48) % 2 == 0
    values[labels, 0] += 3
    test = permutation_test(values, labels)
    assert benjamini_hochberg(test.p)[0] < 0.05
    assert 0.02 < (test.p[1:] < 0.05).mean() < 0.07


def test_too_few_prompts_are_a_floor_that_no_head_passes():
    effects = np.random.default_rng(2).normal(size=(12, 1152))
    effects[:, 0] += 30
    assert mean_test(effects).p[0] >= 2.0**-11
    assert benjamini_hochberg(mean_test(effects).p)[0] > 0.05
