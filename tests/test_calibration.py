"""Intervals cover and p-values keep their level, in a small version of what docs/trust.md publishes.

Seeds are fixed.
"""

import numpy as np
import pytest
from scipy.stats import binom

import benchmarks.trust.coverage
import benchmarks.trust.neuron_coverage
import benchmarks.trust.pattern_coverage
import benchmarks.trust.pvalues
import benchmarks.trust.series_coverage
from benchmarks.trust.simulated import calibration_studies, coverage_studies

pytestmark = pytest.mark.slow

RUNS, RUNS_OF_COSTLY = 100, 50  # 100 catch an interval at 85 % instead of 95 %, 50 one at 80 %
COSTLY = {"ratio_of_means", "pattern_shares", "shifts", "shifts_of_neurons", "fisher_p", "control_p"}
SLOW = {
    "reciprocal_shifts",
    "jaccard_of_a_choice",
    "probe_statistics",
    "probe_p",
    "probe_layer",
    "kappas",
    "changes_over_seeds",
    "changes_over_seeds_p",
    "better_predictor",
    "mean_power",  # no null
    "correlations_over_checkpoints",
    "correlation_p",
}
# What is known to fall short, and by how much; docs/trust.md says why.
FALLS_SHORT = {
    ("Wilson", "rate 0.03"): 0.91,
    ("mean, bootstrap over prompts", "skewed"): 0.92,
    ("mean, bootstrap over prompts", "skewed", "4"): 0.85,
}
TOO_EAGER = {("sign flips alone, for comparison", "skewed")}


def rows_of(study):
    return study(np.random.default_rng(1), RUNS_OF_COSTLY if study.__name__ in COSTLY else RUNS)


def short_names(studies):
    return [study for study in studies if study.__name__ not in SLOW]


@pytest.mark.parametrize("study", short_names(coverage_studies), ids=lambda study: study.__name__)
def test_intervals_cover_the_truth(study):
    for row in rows_of(study):
        promised = FALLS_SHORT.get((row.interval, row.data), 0.93)
        promised = FALLS_SHORT.get((row.interval, row.data, row.n), promised)
        fewest = binom.ppf(1e-3, row.runs, promised) / row.runs
        assert row.covered >= fewest, row


@pytest.mark.parametrize("study", short_names(calibration_studies), ids=lambda study: study.__name__)
def test_p_values_are_rarely_small_where_there_is_nothing(study):
    for row in rows_of(study):
        if (row.test, row.data) in TOO_EAGER:
            continue
        assert row.at_05 <= binom.ppf(1 - 1e-3, row.runs, 0.05) / row.runs, row
        assert row.at_01 <= binom.ppf(1 - 1e-3, row.runs, 0.01) / row.runs, row


def test_the_same_seed_gives_the_same_intervals():
    for study in (benchmarks.trust.coverage.mean_of_scores, benchmarks.trust.neuron_coverage.shifts):
        assert study(np.random.default_rng(2), 5) == study(np.random.default_rng(2), 5)
    assert benchmarks.trust.pvalues.control_p(np.random.default_rng(2), 20) == benchmarks.trust.pvalues.control_p(
        np.random.default_rng(2), 20
    )
