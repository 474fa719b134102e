"""Intervals of cross-fitted scores count what the fit contributes."""

import numpy as np
import pytest
from scipy import stats

from rim_lens.inference_time.probe_fit import auroc_interval, auroc_variance, folds_of, grams, held_out_scores
from rim_lens.inference_time.probe_intervals import (
    held_out_statistics,
    inflation,
    nested_auroc,
    refit_variances,
    selected_layer,
    supervised_statistics,
)
from rim_lens.stats import auroc, d_prime


def drawn(seed, n_plus, n_minus, distance, depth=1, width=12):
    rng = np.random.default_rng(seed)
    refused = np.arange(n_plus + n_minus) < n_plus
    x = rng.normal(size=(len(refused), depth, 1, width))
    x[refused, -1, 0, 0] += distance
    fold = folds_of(refused, 5, rng)
    gram = grams(x)
    return x, gram, held_out_scores(gram, refused[:, None], fold)[:, 0], refused, fold


def test_refit_variances_are_those_of_a_loop_over_chats_left_out():
    x, gram, _, refused, fold = drawn(0, 9, 12, 1.0)
    found = [[], []]
    for row in range(21):
        some = np.arange(21) != row
        scores = held_out_scores(grams(x[some]), refused[some][:, None], fold[some])[:, 0]
        found[0].append(auroc(scores, refused[some])[0])
        found[1].append(d_prime(scores, refused[some])[0])
    for values, variance in zip(found, refit_variances(gram, refused, fold), strict=True):
        values = np.array(values)
        expected = sum(
            (m - 1) / m * ((part - part.mean()) ** 2).sum()
            for part, m in ((values[refused], 9), (values[~refused], 12))
        )
        assert variance[0] == pytest.approx(expected, rel=1e-4)


def test_intervals_are_widened_by_the_geometric_mean_of_both_variances():
    _, gram, scores, refused, fold = drawn(1, 20, 20, 0.5)
    rows, whole = held_out_statistics(scores, refused), supervised_statistics(gram, scores, refused, fold)
    area_variance, d_variance = refit_variances(gram, refused, fold)
    assert whole["auroc"] == rows["auroc"]
    factor = inflation(auroc_variance(rows["auroc"], 20, 20), area_variance)
    assert factor[0] > 1.2
    t = stats.t.ppf(0.975, 38)
    for end in (whole["auroc_low"][0], whole["auroc_high"][0]):
        reach = t**2 * factor[0] * auroc_variance(end, 20, 20)
        assert (end - whole["auroc"][0]) ** 2 == pytest.approx(reach, rel=1e-6)
    half, narrow = ((one["d_prime_high"] - one["d_prime_low"])[0] / 2 for one in (whole, rows))
    assert half**2 == pytest.approx(t**2 * np.sqrt((narrow / t) ** 2 * d_variance[0]))


def test_complete_separation_keeps_an_interval():
    _, gram, scores, refused, fold = drawn(2, 8, 8, 60.0)
    found = supervised_statistics(gram, scores, refused, fold)
    assert found["auroc"] == found["auroc_high"] == 1
    assert 0.5 < found["auroc_low"] < 0.95
    assert np.isfinite([found["d_prime_low"], found["d_prime_high"]]).all()


@pytest.mark.slow
def test_a_random_layer_is_covered_although_it_was_chosen():
    covered, narrow = 0, 0
    for seed in range(60):
        _, gram, _, refused, fold = drawn(seed, 12, 12, 0.0, depth=6)
        found = selected_layer(gram, refused, fold)
        assert found["auroc"] == nested_auroc(gram, refused, fold)
        covered += found["low"] <= 0.5 <= found["high"]
        low, high = auroc_interval(np.array(found["auroc"]), 12, 12)
        narrow += found["high"] - found["low"] < high - low
    assert covered >= 54
    assert narrow == 0
