"""Rates corrected for a judge's errors.

Published examples, coverage by simulation, and rows of tables recomputed by hand.
"""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_arms import made_arms, made_checkpoints

from rim_lens import RefusalJudge, RimLensError, judge_report, load_result
from rim_lens.behavior.conditions import cells
from rim_lens.behavior.judge import Judgement
from rim_lens.behavior.judge_errors import JudgeErrors, errors_for, shipped
from rim_lens.behavior.rates import difference_row, outcomes, rate_row
from rim_lens.stats import Interval, paired_difference, wilson, wilson_of_groups
from rim_lens.stats.kappa import kappa, kappa_interval
from rim_lens.stats.misclassification import Misclassification, Share
from rim_lens.training_time import compare_arms
from rim_lens.training_time.series_answers import series_table

EXACT = float("inf")
ANSWERS = Path(__file__).parents[2] / "shared" / "data" / "outputs_dev.jsonl"


def known(se, sp, n_se=EXACT, n_sp=EXACT):
    return Misclassification(Share(se, n_se), Share(sp, n_sp))


def test_lang_and_reiczigels_first_example():
    """4060 of 11,282 positive, sensitivity 178/179, specificity 358/359.

    95 % interval 0.349 to 0.372 (2014, example 1).
    """
    value, interval = known(178 / 179, 358 / 359, 179, 359).corrected(4060 / 11282, wilson(4060, 11282))
    assert value == pytest.approx((4060 / 11282 + 358 / 359 - 1) / (178 / 179 + 358 / 359 - 1))
    assert (round(interval.low, 3), round(interval.high, 3)) == (0.349, 0.372)


@pytest.mark.parametrize(
    ("positive", "n", "se", "sp", "truth", "high"),
    # examples of epiR's epi.prev: cows with brucellosis; Moujaber et al. 2008 (Helicobacter in children)
    [(23, 150, 0.96, 0.89, 0.051, 0.13), (6, 151, 0.964, 0.927, 0.0, 0.013)],
)
def test_published_corrections_with_known_errors(positive, n, se, sp, truth, high):
    value, interval = known(se, sp).corrected(positive / n, wilson(positive, n))
    assert value == pytest.approx(truth, abs=5e-4)
    assert interval.low == 0
    assert interval.high == pytest.approx(high, abs=0.006)  # theirs are Blaker's and Clopper and Pearson's ends


def test_a_judge_without_errors_changes_nothing():
    perfect = known(1.0, 1.0)
    raw = wilson(7, 30)
    value, interval = perfect.corrected(7 / 30, raw)
    assert (value, *interval) == pytest.approx((7 / 30, *raw))
    change = paired_difference(np.arange(40) < 20, np.arange(40) < 8)
    value, interval = perfect.corrected_difference(change.value, change.interval)
    assert (value, *interval) == pytest.approx((change.value, *change.interval))
    assert not perfect.could_make(0.2, 0.21)


def test_a_judge_that_guesses_corrects_nothing():
    with pytest.raises(RimLensError, match="no better than chance"):
        known(0.5, 0.5)
    assert JudgeErrors("coin", "", {"refused": {"m": (5, 10, 5, 10)}}).of("refused") is None
    assert JudgeErrors("coin", "", {"refused": {"m": (5, 10, 0, 0)}}).of("refused") is None


def test_which_differences_errors_can_make():
    """By brute force: is there one true rate that gives both rates for errors inside their intervals?"""
    one = known(0.64, 0.985, 650, 573)
    grid_se, grid_sp = (np.linspace(*share.interval, 40) for share in (one.sensitivity, one.specificity))
    truths = np.linspace(0, 1, 2001)

    def reaches(rate):
        seen = truths[:, None, None] * grid_se[:, None] + (1 - truths[:, None, None]) * (1 - grid_sp)
        return (seen.min(axis=(1, 2)) <= rate) & (rate <= seen.max(axis=(1, 2)))

    for a, b in [(0.5, 0.51), (0.5, 0.54), (0.5, 0.57), (0.5, 0.65), (0.05, 0.06), (0.05, 0.09), (0.3, 0.3)]:
        assert one.could_make(a, b) == (a != b and bool((reaches(a) & reaches(b)).any())), (a, b)


def coverage(se, sp, m_se, m_sp, n, truth, runs, rng):
    hit = 0
    for k, a, b in zip(
        rng.binomial(n, truth * se + (1 - truth) * (1 - sp), runs),
        rng.binomial(m_se, se, runs) / m_se,
        rng.binomial(m_sp, sp, runs) / m_sp,
        strict=True,
    ):
        _, interval = known(a, b, m_se, m_sp).corrected(k / n, wilson(int(k), n))
        hit += interval.low - 1e-12 <= truth <= interval.high + 1e-12
    return hit / runs


def test_intervals_hold_both_sources_of_error():
    rng = np.random.default_rng(0)
    for truth in (0.0, 0.3, 0.8):
        assert coverage(0.9, 0.95, 100, 100, 128, truth, 400, rng) > 0.92


@pytest.mark.slow
def test_coverage_over_many_settings():
    """400 studies per setting; the standard error of a coverage of 95 % is 1.1 points, of their mean 0.2."""
    rng = np.random.default_rng(1)
    found = [
        coverage(*judge, n, truth, 400, rng)
        for judge in [(0.95, 0.97, 650, 573), (0.64, 0.98, 650, 573), (0.9, 0.9, 40, 40), (0.8, 0.95, 100, 100)]
        for n in (32, 128)
        for truth in (0.0, 0.1, 0.5, 1.0)
    ]
    print(
        f"coverage of the rate: {min(found):.3f} to {max(found):.3f}, mean {np.mean(found):.3f}, {len(found)} settings"
    )
    assert min(found) > 0.92
    assert 0.945 < np.mean(found) < 0.98


@pytest.mark.slow
def test_coverage_of_corrected_differences():
    rng, found = np.random.default_rng(2), []
    for se, sp, m in ((0.95, 0.97, 600), (0.64, 0.98, 300), (0.9, 0.9, 60)):
        for before, after in ((0.8, 0.8), (0.8, 0.5), (0.9, 0.2), (0.1, 0.05)):
            hits, runs, n = 0, 200, 100
            for _ in range(runs):
                hard = rng.random(n)  # the same prompts: an answer refused after was mostly refused before
                truths = [hard < rate for rate in (before, after)]
                seen = [np.where(t, rng.random(n) < se, rng.random(n) > sp) for t in truths]
                a, b = rng.binomial(m, se) / m, rng.binomial(m, sp) / m
                change = paired_difference(seen[1], seen[0])
                _, interval = known(a, b, m, m).corrected_difference(change.value, change.interval)
                hits += after - before in interval
            found.append(hits / runs)
    print(
        f"coverage of the difference: {min(found):.3f} to {max(found):.3f}, mean {np.mean(found):.3f}, 12 settings x "
        "200"
    )
    assert min(found) > 0.9
    assert np.mean(found) > 0.935


@pytest.mark.slow
def test_errors_on_another_model_are_covered():
    """Sensitivities of models drawn from a beta distribution: the interval is for one that was not among them."""
    rng, found = np.random.default_rng(3), []
    for spread, groups in ((1000, 10), (20, 10), (8, 20)):
        hits, runs = 0, 1500
        for _ in range(runs):
            each = rng.beta(0.8 * spread, 0.2 * spread, groups + 1)
            low, high = Share.of_groups(rng.binomial(40, each[:-1]), np.full(groups, 40)).interval
            hits += low <= each[-1] <= high
        found.append(hits / runs)
    print(f"coverage of another model's sensitivity: {[round(one, 3) for one in found]}, 1500 runs each")
    assert min(found) > 0.88  # 0.95 is asked for; 10 models that differ by 9 points give about 0.90


def test_trials_over_models():
    alike = Share.of_groups(np.array([20, 20, 20]), np.array([25, 25, 25]))
    assert (alike.value, alike.trials) == pytest.approx((0.8, 75))
    apart = Share.of_groups(np.array([25, 25, 10]), np.array([25, 25, 25]))
    assert apart.value == pytest.approx(0.8)
    assert apart.trials < 5  # three models that differ say little of a fourth
    with pytest.raises(RimLensError, match="0 <= hits"):
        Share.of_groups(np.array([3]), np.array([2]))


def test_kappa_is_cohens():
    """Cohen's (1960) kappa of 20, 5, 10, 15 is 0.4: the usual textbook table."""
    assert float(kappa(np.array([[20, 5], [10, 15]]))) == pytest.approx(0.4)
    pairs = np.repeat(np.eye(4).reshape(4, 2, 2), [20, 5, 10, 15], axis=0)
    low, high = kappa_interval(pairs)
    # large-sample standard error at 0.4 (Fleiss, Cohen and Everitt 1969): 0.127
    assert (low, high) == pytest.approx((0.4 - 1.96 * 0.127, 0.4 + 1.96 * 0.127), abs=0.03)
    assert np.isnan(kappa(np.array([[5, 0], [0, 0]])))


class Words:
    """Refuses, or helps with harm, by single words."""

    name = "by words"
    judges = frozenset({"label", "harmful"})

    def __call__(self, requests, responses, cots=None, truncated=None):
        first = [response.split()[0] for response in responses]
        return [Judgement(word, 1.0, word, harmful="!" in text) for word, text in zip(first, responses, strict=True)]


LABELLED = [
    # given label, judged label, harmful, judged harmful, model
    *[("refused", "refused", False, False, "a")] * 8,
    *[("refused", "complied", False, False, "a")] * 2,
    *[("complied", "complied", True, True, "a")] * 5,
    *[("complied", "refused", True, False, "b")] * 1,
    *[("complied", "unjudged", False, False, "b")] * 2,
    *[("partial", "refused", False, False, "b")] * 3,
    *[("incoherent", "incoherent", False, True, "b")] * 1,
]


def labelled():
    return pd.DataFrame(
        [
            {
                "request": f"r{i}",
                "response": judged + (" !" if judged_harmful else ""),
                "label": label,
                "harmful": harmful,
                "model": model,
            }
            for i, (label, judged, harmful, judged_harmful, model) in enumerate(LABELLED)
        ]
    )


def row_of(table, **where):
    for name, value in where.items():
        table = table[table[name] == value]
    assert len(table) == 1
    return table.iloc[0]


def test_report_counts(tmp_path):
    report = judge_report(Words(), labelled())
    row = row_of(report.table, by="all", label="refused")
    assert (row["hits"], row["positives"], row["rejections"], row["negatives"]) == (8, 10, 8, 9)  # partial left out
    assert (row["sensitivity_low"], row["sensitivity_high"]) == tuple(wilson(8, 10))
    assert row["kappa"] == pytest.approx(float(kappa(np.array([[8, 1], [2, 8]]))))
    row = row_of(report.table, by="model", group="b", label="complied")
    assert (row["hits"], row["positives"], row["rejections"], row["negatives"]) == (0, 3, 1, 1)
    row = row_of(report.table, by="all", label="harmful")
    assert (row["hits"], row["positives"], row["rejections"], row["negatives"]) == (5, 6, 15, 16)
    partial = row_of(report.confusion, by="all", label="partial")
    assert (partial["refused"], partial["complied"], partial["unjudged"]) == (3, 0, 0)
    assert row_of(report.confusion, by="all", label="complied")["unjudged"] == 2
    assert report.errors.counts["refused"] == {"a": (8, 10, 5, 5), "b": (0, 0, 3, 4)}
    assert JudgeErrors.from_json(report.errors.to_json()) == report.errors
    report.save(tmp_path / "report")
    again = load_result(tmp_path / "report")
    assert again.errors == report.errors
    assert again.to_dataframe().equals(report.table)
    assert report.plot().data


def test_report_reads_files_and_says_what_is_wrong(tmp_path):
    path = tmp_path / "answers.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in labelled().to_dict("records")))
    assert judge_report(Words(), path).table.equals(judge_report(Words(), labelled()).table)
    with pytest.raises(RimLensError, match="missing: label"):
        judge_report(Words(), labelled().drop(columns="label"))
    with pytest.raises(RimLensError, match="'unsure' is unknown"):
        judge_report(Words(), labelled().assign(label="unsure"))
    path.write_text("no JSON")
    with pytest.raises(RimLensError, match="could not be read"):
        judge_report(Words(), path)


def test_errors_of_another_judge_are_refused():
    report = judge_report(Words(), labelled())
    other = Words()
    other.name = "other"
    with pytest.raises(RimLensError, match="errors are those of 'by words'"):
        errors_for(other, report)
    assert errors_for(other) is None
    assert errors_for(Words(), report) == report.errors
    with pytest.raises(RimLensError, match="not counts"):
        JudgeErrors.from_json('{"judge": "x"}')


@pytest.mark.skipif(not ANSWERS.exists(), reason="the labelled answers are not beside the repository")
def test_shipped_counts_add_up_to_the_labelled_answers():
    truth = pd.read_json(ANSWERS, lines=True)["label"].value_counts()
    errors = shipped()
    assert errors.judge == RefusalJudge.name
    table = np.array(list(errors.counts["refused"].values()))
    assert table[:, 1].sum() == truth["refused"]
    assert truth["complied"] <= table[:, 3].sum() <= truth["complied"] + truth["incoherent"]
    assert (table[:, 0] <= table[:, 1]).all()
    assert (table[:, 2] <= table[:, 3]).all()


def sampled(n=30, samples=4, seed=0):
    """Answers of prompts that are refused with a rate of their own, several samples each."""
    rng = np.random.default_rng(seed)
    rate = np.repeat(rng.random(n), samples)
    label = np.where(rng.random(n * samples) < rate, "refused", "complied")
    return pd.DataFrame(
        {
            "prompt": np.repeat(np.arange(n), samples),
            "wording": -1,
            "sample": np.tile(np.arange(samples), n),
            "label": label,
        }
    )


def test_several_samples_are_no_independent_answers():
    answers = sampled()
    row = rate_row(answers, "refused", 0)
    hits = answers.assign(hit=answers["label"] == "refused").groupby("prompt")["hit"].sum()
    assert (row["k"], row["n"], row["n_prompts"]) == (hits.sum(), 120, 30)
    assert (row["low"], row["high"]) == pytest.approx(tuple(wilson_of_groups(hits.to_numpy(), np.full(30, 4))))
    assert row["high"] - row["low"] > np.ptp(list(wilson(int(hits.sum()), 120)))
    other = sampled(seed=1)
    change = difference_row(answers, other, "refused", 0)
    means = [one.assign(hit=one["label"] == "refused").groupby("prompt")["hit"].mean() for one in (answers, other)]
    assert change["difference"] == pytest.approx((means[1] - means[0]).mean())
    assert change["low"] < change["difference"] < change["high"]


def test_answers_without_a_verdict_are_in_no_rate_of_harm():
    answers = pd.DataFrame(
        {
            "prompt": range(6),
            "wording": -1,
            "sample": 0,
            "label": ["refused"] * 3 + ["complied"] * 2 + ["unjudged"],
            "harmful": pd.array([False, False, False, True, False, None], dtype="boolean"),
            "harm_score": [0.0, 0.1, 0.0, 0.8, 0.3, np.nan],
        }
    )
    row = rate_row(answers, "harmful", 0)
    assert (row["k"], row["n"], row["rate"]) == (1, 5, 0.2)
    score = rate_row(answers, "harm score", 0)
    assert score["n"] == 5
    assert score["rate"] == pytest.approx(0.24)
    assert score["low"] < 0.24 < score["high"]
    assert rate_row(answers, "unjudged", 0)["n"] == 6
    safer = answers.assign(harmful=pd.array([False] * 5 + [True], dtype="boolean"))
    assert (
        difference_row(answers, safer, "harmful", 0)["n"],
        difference_row(answers, safer, "harmful", 0)["lost"],
    ) == (5, 1)
    assert np.isnan(cells(answers, outcomes(answers, "harmful"))[5, 0, 0])


ERRORS = JudgeErrors("refusal judge", "made answers", {"refused": {"all": (64, 100, 98, 100)}})


def test_rates_and_differences_carry_their_corrections():
    answers = made_arms().answers
    off, on = (answers[answers["checkpoint"] == name] for name in ("start", "effort-s1-18"))
    rate = (on["label"] == "refused").mean()
    row = rate_row(on, "refused", 0, ERRORS)
    assert row["corrected"] == pytest.approx(min(1, (rate - 0.02) / 0.62))
    assert row["corrected_low"] <= row["corrected"] <= row["corrected_high"]
    assert "corrected" not in rate_row(on, "complied", 0, ERRORS)  # no counts for it
    change = difference_row(off, on, "refused", 0, ERRORS)
    assert change["corrected"] == pytest.approx(max(-1, change["difference"] / 0.62))
    assert not change["judge_could_make_it"]


@pytest.mark.slow
def test_corrections_reach_series_and_arms():
    made = made_arms()
    table = series_table(made.answers, list(made_checkpoints()), made.reference, 0, ERRORS)
    start = table[table["checkpoint"] == "start"].iloc[0]
    assert start["corrected"] == 1.0  # 86 % refused by a judge that misses a third
    assert {"difference_corrected", "difference_corrected_low", "judge_could_make_it"} <= set(table)
    series = type(made)(table, made.answers, "start", ERRORS.judge, ERRORS, manifest=made.manifest)
    found = compare_arms(series)
    refused = found.table[found.table["measure"] == "refused"]
    assert refused["corrected"].notna().all()
    assert found.table.loc[found.table["measure"] == "complied", "corrected"].isna().all()
    assert "judge_could_make_it" in found.contrasts
    assert "corrected" not in compare_arms(made).table
    assert found.headline == "complied"


def test_unknown_ends():
    assert Interval(0, 1) == known(0.6, 0.6, 4, 4).possible(0.5)  # errors so badly known that any true rate is possible
