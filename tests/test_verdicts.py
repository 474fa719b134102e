"""A verdict per claim: what holds by construction is called so; nulls are supported no more often than promised."""

import json
from dataclasses import replace
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from made_arms import made_arms, made_maths
from made_heads import made_head_test, made_outcome_heads
from made_neurons import made_forgetting, made_series_shift
from made_results import made_behavior
from scipy import stats

import rim_lens
from rim_lens.claims.claims import CLAIMS, DEFAULT_MARGINS
from rim_lens.claims.evidence import crossed, means, rank_correlation, shares, weakest
from rim_lens.claims.verdicts import holm, holm_level, verdict_table
from rim_lens.errors import RimLensError


def answered(share, n, rng):
    return (rng.random(n) < share).astype(float)[:, None, None]


def test_a_planted_effect_is_supported_and_every_claim_has_a_line():
    table = rim_lens.verdicts({"head_test": made_head_test(), "behavior": made_behavior(n=200)})
    assert table.of("heads")["verdict"] == "supported"
    assert table.of("ras")["note"] == "not measured"
    lines = str(table).splitlines()
    assert len(lines) <= 12
    assert max(map(len, lines)) <= 80
    assert list(table.table["claim"]) == [claim.name for claim in CLAIMS]


def test_half_the_set_that_random_sets_are_is_not_supported():
    test = made_head_test()
    wide = test.controls.copy()
    wide["effect"] = np.random.default_rng(0).normal(-2, 3, len(wide))
    other = rim_lens.verdicts({"head_test": type(test)(**{**vars(test), "controls": wide})})
    assert other.of("heads")["verdict"] == "undecided"
    assert "random" in other.of("heads")["note"]


@pytest.mark.slow
def test_maths_that_is_lost_stops_the_claim_on_reasoning_data():
    series, maths = made_arms(n=400, seeds=(1,)), made_maths(seeds=(1,))
    kept = rim_lens.verdicts({"series": series, "series_maths": maths}).of("reasoning_data")
    assert kept["verdict"] == "supported"
    worse = maths.answers.copy()
    worse.loc[worse["checkpoint"] != "start", "likelihood"] -= 3
    lost = rim_lens.verdicts({"series": series, "series_maths": type(maths)(**{**vars(maths), "answers": worse})})
    assert lost.of("reasoning_data")["verdict"] == "undecided"
    assert "not measured" in str(rim_lens.verdicts({"series": series}).of("reasoning_data")["note"])


def test_neurons_that_move_more_than_matched_ones_are_supported_in_whichever_direction_they_move():
    shift = made_series_shift()
    moved = {"moved": 0.3, "moved_low": 0.25, "moved_high": 0.35, "control_moved": 0.1, "p_moved": 1 / 1001}
    still = {"moved": 0.101, "moved_low": 0.09, "moved_high": 0.112, "control_moved": 0.1, "p_moved": 0.4}
    for values, verdict in ((moved, "supported"), (still, "excluded"), (moved | {"p_moved": 0.2}, "undecided")):
        table = shift.table.assign(**values)
        row = rim_lens.verdicts({"neuron_shift": replace(shift, table=table)}).of("neuron_shift")
        assert row["verdict"] == verdict
    assert "random sets" in row["note"]
    old = replace(shift, table=shift.table.drop(columns="control_moved"))
    assert "measure again" in rim_lens.verdicts({"neuron_shift": old}).of("neuron_shift")["note"]


def test_ras_is_tested_over_trainings_and_not_over_their_doses():
    rng = np.random.default_rng(0)
    found = made_forgetting()
    rows = [
        {"arm": arm, "seed": seed, "step": step, "ras_safety": 0.01 * step * (amount + 1), "refusals_lost": amount / 12}
        for amount, (arm, seed) in enumerate(
            (arm, seed) for arm in ("plain", "effort", "style") for seed in (1, 2, 3, 4)
        )
        for step in (9, 18)
    ]
    table = pd.DataFrame(rows).sample(frac=1, random_state=0)

    def verdict(table):
        return rim_lens.verdicts({"forgetting": type(found)(**{**vars(found), "table": table})}).of("ras")

    tracked = verdict(table)
    assert (tracked["verdict"], tracked["n"], tracked["counted"]) == ("supported", 12, "trainings")
    assert tracked["effect"] == pytest.approx(1.0)
    early = table["step"] == 9
    shuffled = table.assign(ras_safety=table["ras_safety"].mask(early, rng.permutation(table["ras_safety"])))
    assert verdict(shuffled)["effect"] == pytest.approx(1.0)  # only the largest dose counts
    assert "3 trainings" in verdict(table[(table["arm"] == "plain") & (table["seed"] < 4)])["note"]


def test_attention_is_read_where_it_was_not_chosen():
    rng, n = np.random.default_rng(0), 60
    heads = made_outcome_heads()
    assert "other chats" in rim_lens.verdicts({"attention_by_score": heads}).of("attention")["note"]
    outcome = rng.normal(size=n)

    def verdict(*noise):
        parts = [
            pd.DataFrame({"contrast": name, "attention": outcome + amount * rng.normal(size=n), "outcome": outcome})
            for name, amount in zip(("empty_span", "cot_divergence"), noise, strict=True)
        ]
        held = replace(heads, held_out=pd.concat(parts))
        return rim_lens.verdicts({"attention_by_score": held}).of("attention")

    assert verdict(0.3, 0.4)["verdict"] == "supported"
    assert verdict(0.3, 1e6)["verdict"] != "supported"  # both contrasts must go with it


def test_margins_are_checked_and_decide():
    results = {"head_test": made_head_test()}
    assert rim_lens.verdicts(results, {"heads": 20.0}).of("heads")["verdict"] == "excluded"
    with pytest.raises(RimLensError, match="no claim 'head'"):
        rim_lens.verdicts(results, {"head": 1.0})
    with pytest.raises(RimLensError, match="above 0"):
        rim_lens.verdicts(results, {"heads": 0.0})


def test_an_audits_folder_gives_its_own_margins(tmp_path):
    made_head_test().save(tmp_path / "stages" / "heads" / "head_test")
    (tmp_path / "stages" / "heads" / "stage.json").write_text(json.dumps({"results": ["head_test"]}))
    (tmp_path / "plan.json").write_text(json.dumps({"margins": DEFAULT_MARGINS | {"heads": 20.0}}))
    assert rim_lens.verdicts(tmp_path).of("heads")["verdict"] == "excluded"
    with pytest.raises(RimLensError, match="no finished stage"):
        rim_lens.verdicts(tmp_path / "stages")


def by_closed_testing(p):
    """Holm's adjusted p-values from their definition: every intersection of hypotheses tested by Bonferroni."""
    sets = [one for size in range(1, len(p) + 1) for one in combinations(range(len(p)), size)]
    return [min(1.0, max(len(one) * p[list(one)].min() for one in sets if i in one)) for i in range(len(p))]


def test_holm_is_closed_testing_and_bounds_go_with_it():
    rng = np.random.default_rng(0)
    for _ in range(50):
        p = rng.random(6) ** 4
        assert holm(p) == pytest.approx(by_closed_testing(p))
        assert ((p <= holm_level(p, 0.025)) == (holm(p) <= 0.025)).all()


def test_bounds_and_p_values_agree_with_published_ones():
    rng = np.random.default_rng(1)
    values = rng.normal(0.4, 1, 30)
    one = means(values, "x")
    student = stats.ttest_1samp(values, 0, alternative="greater").pvalue
    assert student <= one.p_of_none() < 2.1 * student  # never bolder than Student
    _, high = one.bounds(0.025)
    assert one.p_of_margin(high) == pytest.approx(0.025, rel=0.01)
    before, after = answered(0.8, 40, rng), answered(0.4, 40, rng)
    lost, gained = int((before > after).sum()), int((after > before).sum())
    assert shares(before, after, "x").p_of_none() >= stats.binomtest(lost, lost + gained, alternative="greater").pvalue


@pytest.mark.slow
def test_the_n_that_would_decide_decides():
    rng = np.random.default_rng(2)
    values = rng.normal(0.25, 1, 40)
    row = verdict_table({"heads": means(values, "x")}, DEFAULT_MARGINS).set_index("claim").loc["heads"]
    assert row["verdict"] == "undecided"
    n = int(row["n_needed"])
    decided = 0
    for _ in range(40):
        again = verdict_table({"heads": means(rng.normal(0.25, values.std(ddof=1), n), "x")}, DEFAULT_MARGINS)
        decided += again.set_index("claim").loc["heads"]["verdict"] != "undecided"
    assert decided >= 30  # sampling moves the width a little around the margin


def simulated(rng, n, effect):
    """Evidence of seven independent claims, each with an effect of `effect` margins."""
    lost = 0.10 * effect
    first = answered(0.8, n, rng)
    second = np.where(rng.random((n, 1, 1)) < 0.85, first, answered(0.8, n, rng))
    second = np.where(rng.random((n, 1, 1)) < lost / 0.8, 0.0, second)
    skewed = rng.exponential(1, n) - 1 + 0.5 * effect
    x = rng.normal(size=n)
    y = 0.31 * effect * x + rng.normal(size=n) * np.sqrt(1 - (0.31 * effect) ** 2)
    cots = np.full((n, 8), np.nan)
    rate = np.clip(0.5 + rng.normal(0, 0.15, 8), 0, 1)
    cots[np.arange(n), np.arange(n) % 8] = rng.random(n) < rate[np.arange(n) % 8]
    others = [np.where(np.isnan(cots), np.nan, (rng.random((n, 8)) < 0.5 + lost)) for _ in range(2)]
    return {
        "thinking": shares(first, second, "x"),
        "effort_cot": weakest([crossed(other[..., None], cots[..., None], "x", 100.0) for other in others]),
        "attention": rank_correlation(x, y, "x"),
        "heads": means(skewed, "x"),
        "safety_neurons": means(rng.standard_t(4, n) * 0.8 + 0.5 * effect, "x"),
    }


@pytest.mark.slow
@pytest.mark.parametrize(("effect", "verdict"), [(0.0, "supported"), (1.0, "excluded")])
def test_false_verdicts_are_rare_over_all_claims_together(effect, verdict):
    rng, wrong, n_audits = np.random.default_rng(3), 0, 40
    for _ in range(n_audits):
        table = verdict_table(simulated(rng, 32, effect), DEFAULT_MARGINS)
        wrong += bool((table["verdict"] == verdict).any())
    assert wrong <= stats.binom.ppf(0.999, n_audits, 0.05)
    assert isinstance(table, pd.DataFrame)
