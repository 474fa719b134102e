"""Statistics of every figure: rates and intervals, effects, permutation tests, bootstraps, matched controls.

Seeds are integers or numpy Generators; the same seed gives the same numbers.
"""

from rim_lens.stats.bootstrap import (
    Intervals,
    bootstrap,
    bootstrap_mean,
    bootstrap_means,
)
from rim_lens.stats.controls import (
    Alternative,
    activation_strata,
    count_head_sets,
    empirical_p,
    matched_head_sets,
    matched_neuron_sets,
    percentile,
)
from rim_lens.stats.correlation import Correlation, CorrelationDifference, correlation, correlation_difference
from rim_lens.stats.crossed import CrossedMean, bootstrap_crossed, bootstrap_crossed_difference
from rim_lens.stats.effects import auroc, cohens_d, d_prime, hedges_g
from rim_lens.stats.intervals import (
    Interval,
    PairedDifference,
    Rate,
    mcnemar,
    normal_quantile,
    paired_difference,
    tango,
    wilson,
    wilson_of_groups,
)
from rim_lens.stats.mean_test import mean_test
from rim_lens.stats.multiplicity import benjamini_hochberg
from rim_lens.stats.permutation import (
    PermutationTest,
    Seed,
    correlation_test,
    permutation_p,
    permutation_test,
    rank_correlation_test,
)
from rim_lens.stats.shares import Outcomes, ShareDifference, share_difference, share_interval

__all__ = [
    "Alternative",
    "Correlation",
    "CorrelationDifference",
    "CrossedMean",
    "Interval",
    "Intervals",
    "Outcomes",
    "PairedDifference",
    "PermutationTest",
    "Rate",
    "Seed",
    "ShareDifference",
    "activation_strata",
    "auroc",
    "benjamini_hochberg",
    "bootstrap",
    "bootstrap_crossed",
    "bootstrap_crossed_difference",
    "bootstrap_mean",
    "bootstrap_means",
    "cohens_d",
    "correlation",
    "correlation_difference",
    "correlation_test",
    "count_head_sets",
    "d_prime",
    "empirical_p",
    "hedges_g",
    "matched_head_sets",
    "matched_neuron_sets",
    "mcnemar",
    "mean_test",
    "normal_quantile",
    "paired_difference",
    "percentile",
    "permutation_p",
    "permutation_test",
    "rank_correlation_test",
    "share_difference",
    "share_interval",
    "tango",
    "wilson",
    "wilson_of_groups",
]
