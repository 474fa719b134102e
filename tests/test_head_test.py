"""The causal test of head sets: effects, controls and shared passes against one pass per set."""

from functools import cache, partial

import numpy as np
import pytest
from planted import planted_model
from scipy import stats

from rim_lens.behavior.refusal_score import RefusalTokens, refusal_score
from rim_lens.causal import ablation_test as head_test
from rim_lens.causal.ablation import ablation
from rim_lens.causal.ablation_test import AblationTest
from rim_lens.causal.measures import AnswerMeasure, ScoreMeasure
from rim_lens.causal.set_effects import alternative_for, recovered_share, set_effect
from rim_lens.data.prompts import Prompt
from rim_lens.errors import RimLensError
from rim_lens.inference_time.restore import restore_refusal
from rim_lens.intervene import ablate_heads, knock_out, record_heads, scale_heads
from rim_lens.stats import paired_difference


@cache
def planted():
    return planted_model(0, n_prompts=12)


def tokens():
    return RefusalTokens((planted()[1].refusal_token,), ("Sorry",))


def rendered(**options):
    model, truth = planted()
    return model.render(truth.harmful, **options)


def test_set_effect_against_its_definition():
    rng = np.random.default_rng(0)
    before, after, controls = rng.normal(size=50), rng.normal(1, 1, size=50), rng.normal(0.2, 1, (99, 50))
    row = set_effect(before, after, controls, is_share=False)
    null = sorted((c - before).mean() for c in controls)
    assert row["effect"] == pytest.approx(after.mean() - before.mean())
    assert row["percentile"] == pytest.approx(100 * np.mean(np.array(null) < row["effect"]))
    smaller = min(sum(c >= row["effect"] for c in null), sum(c <= row["effect"] for c in null))
    assert row["p"] == pytest.approx(min(1, 2 * (smaller + 1) / 100))
    t = stats.ttest_rel(after, before).confidence_interval()
    assert row["low"] == pytest.approx(t.low, abs=0.08)
    assert row["high"] == pytest.approx(t.high, abs=0.08)
    one_sided = set_effect(before, after, controls, is_share=False, alternative="less")
    assert one_sided["p"] == pytest.approx((sum(c <= row["effect"] for c in null) + 1) / 100)


def test_shares_have_a_paired_interval_and_no_controls_give_no_p():
    rng = np.random.default_rng(1)
    before, after = (rng.random(40) < 0.7).astype(float), (rng.random(40) < 0.3).astype(float)
    row = set_effect(before, after, np.empty((0, 40)), is_share=True)
    assert (row["low"], row["high"]) == tuple(paired_difference(after == 1, before == 1).interval)
    assert (row["n_controls"], np.isnan(row["p"]), np.isnan(row["percentile"])) == (0, True, True)


@pytest.mark.parametrize(
    ("measure", "less", "greater"),
    [
        ("refusal score, harmful", "less", "greater"),
        ("refused, harmful", "less", "greater"),
        ("complied, harmful", "greater", "less"),
        ("incoherent, harmful", "two-sided", "two-sided"),
        ("refused, harmless", "two-sided", "two-sided"),
        ("solved, maths", "two-sided", "two-sided"),
    ],
)
def test_what_is_expected_of_refusal_is_not_expected_of_costs(measure, less, greater):
    assert alternative_for(measure, "less") == less
    assert alternative_for(measure, "greater") == greater
    assert alternative_for(measure, "two-sided") == "two-sided"


def test_p_of_a_set_like_its_controls_is_uniform():
    rng = np.random.default_rng(2)
    p = []
    for _ in range(120):
        values, before = rng.normal(size=(40, 5)), rng.normal(size=5)
        p.append(set_effect(before, before + values[0], before + values[1:], is_share=False, alternative="less")["p"])
    assert stats.kstest(p, "uniform").pvalue > 0.01


def test_recovered_share_of_a_known_gap():
    rng = np.random.default_rng(3)
    before = rng.normal(size=60)
    target = before + rng.normal(2, 0.3, 60)
    share, interval = recovered_share(before, before + 0.25 * (target - before), target)
    assert share == pytest.approx(0.25)
    assert interval.low == pytest.approx(0.25)
    none, wide = recovered_share(before, before + rng.normal(0, 0.3, 60), target)
    assert abs(none) < 0.1
    assert 0.0 in wide


@pytest.mark.parametrize(
    "change", [ablate_heads, lambda m, h: scale_heads(m, h, 2.0), partial(knock_out, segment="cot")]
)
def test_sets_that_share_a_pass_score_as_one_set_a_pass(change):
    model, truth = planted()
    chats = rendered(thinking="prefilled", cot=truth.cots)
    sets = [[], [truth.refusal_head], [truth.cot_head, (0, 1)], [(3, 2)], [truth.refusal_head, truth.cot_head]]
    measure = ScoreMeasure(model, chats, tokens(), "harmful", batch_size=30)
    shared = measure(sets, partial(change, model))["refusal score, harmful"].values
    for heads, scores in zip(sets, shared, strict=True):
        with change(model, heads):
            alone = refusal_score(model, chats, tokens(), batch_size=5)
        np.testing.assert_allclose(scores, alone, atol=1e-4)
    assert np.ptp(shared, axis=0).max() > 1  # the sets do differ


@pytest.mark.parametrize("positions", ["all", "decision"])
def test_resumed_scores_equal_those_of_whole_passes(positions):
    model, truth = planted()
    chats = rendered(thinking="off")
    sets = [[truth.refusal_head], [truth.cot_head, truth.refusal_head], [(0, 1), (3, 2)]]
    measure = ScoreMeasure(model, chats, tokens(), "harmful")
    (whole,) = measure(sets, partial(ablate_heads, model, positions=positions)).values()
    change = ablation(model, "heads", "zero", positions, None)
    (resumed,) = measure(sets, change).values()
    assert resumed.values == pytest.approx(whole.values, abs=1e-4)
    (clean,) = measure([[]], change).values()
    assert clean.values[0] == pytest.approx(refusal_score(model, chats, tokens()), abs=1e-6)


def test_the_planted_head_stands_out_of_its_controls():
    model, truth = planted()
    found = head_test.ablation_test(
        model,
        [truth.refusal_head, (3, 3), truth.cot_head],
        truth.harmful,
        tokens=tokens(),
        generated=False,
        doses=(1, 2, 16),
    )
    curve = found.dose_curve()
    assert list(curve["k"]) == [1, 2]
    assert list(curve["n_controls"]) == [7, 63]
    assert curve["effect"].iloc[0] < curve["control_low"].iloc[0] - 5
    assert curve["p"].iloc[0] == pytest.approx(2 / 8)
    # At dose 2 the seven controls that hold the planted head too do about as much, and no other does.
    drawn = found.controls.query("k == 2")
    with_it = drawn["units"].str.contains("L1H2")
    assert with_it.sum() == 7
    assert drawn["effect"][with_it].max() < drawn["effect"][~with_it].min() - 5
    beyond = (drawn["effect"] <= curve["effect"].iloc[1]).sum()
    assert curve["p"].iloc[1] == pytest.approx(2 * (beyond + 1) / 64)
    chats = rendered(thinking="off")
    before = refusal_score(model, chats, tokens())
    with ablate_heads(model, [truth.refusal_head]):
        after = refusal_score(model, chats, tokens())
    assert curve["effect"].iloc[0] == pytest.approx((after - before).mean(), abs=1e-4)
    assert drawn["units"].is_unique
    for heads in drawn["units"]:
        assert [name[:2] for name in heads.split()] == ["L1", "L3"]
        assert set(heads.split()) != {"L1H2", "L3H3"}


def test_a_random_set_does_not_stand_out():
    model, truth = planted()
    found = head_test.ablation_test(
        model, [(0, 0), (3, 3)], truth.harmful, tokens=tokens(), generated=False, n_controls=20
    )
    row = found.table.iloc[0]
    assert abs(row["effect"]) < 1
    assert row["p"] > 0.05


def test_answers_are_judged_and_costs_are_counted():
    model, truth = planted()
    problems = [Prompt(truth.harmless[0], None, "a", "1"), Prompt(truth.harmless[1], None, "b", "2")]
    found = head_test.ablation_test(
        model,
        [truth.refusal_head],
        truth.harmful,
        harmless=truth.harmless[:4],
        maths=problems,
        tokens=tokens(),
        n_controls=3,
        n_generated_controls=2,
        max_new_tokens=13,
    )
    rows = found.table.set_index("measure")
    shares = rows.loc[["refused, harmful", "complied, harmful", "incoherent, harmful"]]
    assert shares["before"].sum() == pytest.approx(1)
    assert shares["after"].sum() == pytest.approx(1)
    scores = refusal_score(model, rendered(thinking="off"), tokens())
    assert rows.loc["refused, harmful", "before"] == pytest.approx((scores > 0).mean())
    assert rows.loc["refused, harmful", "after"] == 0
    assert rows.loc["complied, harmful", "after"] == 1
    assert rows.loc["refused, harmful", "control_mean"] == pytest.approx(
        rows.loc["refused, harmful", "before"] * 0, abs=0.1
    )
    assert (rows.loc["refused, harmless", "after"], rows.loc["maths solved", "n"]) == (0, 2)
    assert rows.loc["refused, harmful", "n_controls"] == 2
    assert {"measure", "k", "prompt", "before", "after"} <= set(found.prompts)


@pytest.mark.parametrize("method", ["mean", "resample"])
def test_reference_chats_serve_mean_and_resample(method):
    model, truth = planted()
    reference = model.render(truth.harmless, thinking="off")
    options = {"tokens": tokens(), "generated": False, "n_controls": 3, "method": method}
    found = head_test.ablation_test(model, [truth.refusal_head], truth.harmful, reference=reference, **options)
    assert found.table["change"].iloc[0] == f"{method} ablation"
    assert found.table["effect"].iloc[0] < -1
    recorded = record_heads(model, reference)
    same = head_test.ablation_test(model, [truth.refusal_head], truth.harmful, reference=recorded, **options)
    if method == "resample":
        assert same.table["effect"].iloc[0] == pytest.approx(found.table["effect"].iloc[0], abs=1e-4)
    own = head_test.ablation_test(model, [truth.refusal_head], truth.harmful, **options)  # of the harmful prompts
    assert own.table["effect"].iloc[0] != found.table["effect"].iloc[0]


def test_refusal_returns_when_the_cot_head_cannot_see_the_cot():
    model, truth = planted()
    chats = rendered(thinking="prefilled", cot=truth.cots)
    found = restore_refusal(model, [truth.cot_head], chats, tokens=tokens(), generated=False, factors=(0.0,))
    hidden, silenced = (found.dose_curve(change=name).iloc[0] for name in ("CoT hidden", "scaled 0×"))
    assert hidden["effect"] > max(1, hidden["control_high"])
    assert hidden["effect"] == pytest.approx(silenced["effect"], abs=0.3)
    off = refusal_score(model, rendered(thinking="off"), tokens())
    on = refusal_score(model, chats, tokens())
    assert hidden["recovered"] == pytest.approx(hidden["effect"] / (off.mean() - on.mean()))
    assert 0.5 < hidden["recovered_low"] <= hidden["recovered"] <= hidden["recovered_high"]


def test_a_cot_of_the_models_own_is_written_before_the_change():
    model, truth = planted()
    found = restore_refusal(
        model, [truth.refusal_head], truth.harmful[:4], ways=["scale"], factors=(1.5,), thinking="on", tokens=tokens(),
        n_controls=2, n_generated_controls=1, max_new_tokens=13, cot_budget=6,
    )  # fmt: skip
    rows = found.table.set_index("measure")
    assert rows.loc["refused, harmful", "after"] >= rows.loc["refused, harmful", "before"]
    assert rows.loc["refusal score, harmful", "effect"] > 1
    assert rows.loc["incoherent, harmful", "after"] == 0


def test_an_answer_measure_leaves_no_trace_on_the_model():
    model, truth = planted()
    chats = rendered(thinking="off")[:3]
    before = refusal_score(model, chats, tokens())

    def judge(requests, responses, cots, truncated):
        raise RuntimeError("the judge broke")

    measure = AnswerMeasure(model, chats, judge, "harmful", {"max_new_tokens": 2})
    with pytest.raises(RuntimeError, match="judge broke"):
        measure([[truth.refusal_head]], partial(ablate_heads, model))
    np.testing.assert_array_equal(refusal_score(model, chats, tokens()), before)


def test_what_cannot_be_tested_is_refused():
    model, truth = planted()
    options = {"tokens": tokens(), "generated": False}
    with pytest.raises(RimLensError, match="no heads"):
        head_test.ablation_test(model, [], truth.harmful, **options)
    with pytest.raises(RimLensError, match="None of the doses"):
        head_test.ablation_test(model, [(0, 0)], truth.harmful, doses=(2,), **options)
    with pytest.raises(RimLensError):
        head_test.ablation_test(model, [(9, 0)], truth.harmful, **options)
    with pytest.raises(RimLensError, match="needs chats with a CoT"):
        restore_refusal(model, [truth.cot_head], rendered(thinking="off"), **options)


def test_the_result_survives_saving_and_names_its_n(tmp_path):
    model, truth = planted()
    found = head_test.ablation_test(
        model, [truth.refusal_head], truth.harmful, tokens=tokens(), generated=False, n_controls=3
    )
    again = AblationTest.load(found.save(tmp_path / "test"))
    assert again.table.equals(found.table)
    assert again.units == [truth.refusal_head]
    assert "n = 12" in again.caption()
    with pytest.raises(RimLensError, match="No measure"):
        again.dose_curve("maths solved")
