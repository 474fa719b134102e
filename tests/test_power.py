"""What n prompts suffice to find: published powers, simulation of the very tests, floors that no effect passes."""

import numpy as np
import pytest
from scipy import stats

import rim_lens
from rim_lens.audit.plan import AuditPlan
from rim_lens.audit.size import size_line
from rim_lens.claims.power import correlation_power, mcnemar_power, mean_power
from rim_lens.errors import RimLensError
from rim_lens.stats import mcnemar


@pytest.mark.parametrize(("n", "share"), [(32, 0.10), (64, 0.32), (128, 0.67), (200, 0.89)])
@pytest.mark.slow
def test_mcnemar_as_reviewed_and_as_simulated(n, share):
    assert mcnemar_power(0.10, n) == pytest.approx(share, abs=0.02)  # 16 % against 26 %, 5 % and 15 % change
    rng = np.random.default_rng(0)
    counts = rng.multinomial(n, (0.15, 0.05, 0.80), 2000)
    found = np.mean([mcnemar(lost, gained) <= 0.05 and lost > gained for lost, gained, _ in counts.tolist()])
    assert mcnemar_power(0.10, n) == pytest.approx(found, abs=0.035)


@pytest.mark.parametrize(("r", "share"), [(0.5, 0.25), (0.65, 0.46), (0.89, 0.93)])
def test_a_correlation_over_eight_checkpoints(r, share):
    assert correlation_power(r, 8) == pytest.approx(share, abs=0.02)


def test_means_are_those_of_simulated_t_tests():
    values = np.random.default_rng(1).normal(0.5, 1, (4000, 20))
    test = stats.ttest_1samp(values, 0, axis=1)
    found = ((test.pvalue <= 0.05) & (test.statistic > 0)).mean()
    assert mean_power(0.5, 20) == pytest.approx(found, abs=0.03)


def test_the_table_and_its_warnings():
    small, large = rim_lens.power(32, heads=4096), rim_lens.power(400, heads=4096, controls=1000)
    first, second = (one.table.set_index("claim") for one in (small, large))
    assert first.loc["thinking", "power"] < 0.1 < 0.8 < second.loc["thinking", "power"]
    assert first.loc["thinking", "n_needed"] == pytest.approx(second.loc["thinking", "n_needed"])
    assert len(large.warnings) < len(small.warnings)
    assert any("control sets" in one for one in small.warnings)
    assert max(map(len, str(small).splitlines())) <= 80
    floors = small.floors.set_index("test")
    assert floors.loc["paired signs over heads", "n_needed"] == 18
    with pytest.raises(RimLensError, match="at least 4 prompts"):
        rim_lens.power(2)


def test_an_audit_says_how_many_claims_its_size_decides():
    small, large = (size_line(AuditPlan("model", n=n)) for n in (32, 600))
    assert small.startswith("32 prompts per set: 0 of 4 claims")  # without a series there are four
    assert large.startswith("600 prompts per set: 4 of 4 claims")
