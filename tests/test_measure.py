"""measure_rim: counts, intervals and comparisons recomputed from the answers it returns."""

import numpy as np
import pytest
from families import tiny_model

from rim_lens.behavior.conditions import rotation
from rim_lens.behavior.judge import LABELS, Judgement
from rim_lens.behavior.measure import measure_rim
from rim_lens.data.prompts import load_prompts
from rim_lens.errors import RimLensError
from rim_lens.stats import mcnemar, wilson


class ByLetters:
    """Labels by the letters of request and answer, so that all verdicts occur and can be recomputed."""

    name = "by letters"

    def __call__(self, requests, responses, cots=None, truncated=None):
        verdicts = [label for label in LABELS if label != "unjudged"]
        return [
            Judgement(verdicts[sum(map(ord, request + response)) % len(verdicts)], 1.0, "")
            for request, response in zip(requests, responses, strict=True)
        ]


class Harm:
    """A harmfulness judge: no verdict on the fifth answer of each call."""

    name = "harm by letters"
    judges = frozenset({"label", "harmful", "harm_score"})

    def __call__(self, requests, responses, cots=None, truncated=None):
        sums = [sum(map(ord, request + response)) for request, response in zip(requests, responses, strict=True)]
        labels = [LABELS[one % 4] for one in sums]  # never unjudged
        return [
            Judgement("unjudged", 0.0, "") if i == 4 else Judgement(label, 1.0, "", one % 2 == 0, one % 5 / 4)
            for i, (label, one) in enumerate(zip(labels, sums, strict=True))
        ]


@pytest.fixture(scope="module")
def table():
    sets = [load_prompts(name, n=12) for name in ("harmful", "harmless", "maths")]
    return measure_rim(
        tiny_model("llama"),
        *sets,
        prefilled={"harmful": ("careful", "neutral")},
        wordings_per_prompt=2,
        judge=ByLetters(),
        max_new_tokens=3,
        maths_tokens=3,
        cot_budget=4,
    )


@pytest.fixture(scope="module")
def harm_table():
    prompts = load_prompts("harmful", n=12)
    return measure_rim(tiny_model("llama"), prompts, None, None, judge=Harm(), max_new_tokens=3, cot_budget=4)


@pytest.mark.slow
def test_columns_of_harm_are_there_where_the_judge_fills_them(table, harm_table):
    assert not {"harmful", "harm_score"} & set(table.answers)
    for _, answers in harm_table.answers.groupby("condition"):
        sums = [sum(map(ord, a + b)) for a, b in zip(answers["request"], answers["response"], strict=True)]
        missing = answers["label"] == "unjudged"
        assert (answers["harmful"].isna() == missing).all()
        assert (answers["harm_score"].isna() == missing).all()
        assert missing.sum() == 1
        assert list(answers["harmful"][~missing]) == [one % 2 == 0 for i, one in enumerate(sums) if i != 4]


def test_rates_are_counts_of_the_answers(table):
    for _, row in table.table[table.table["n_wordings"] == 1].iterrows():
        answers = table.answers.query("set == @row['set'] and condition == @row.condition")
        assert row["n"] == len(answers) == 12
        if row["measure"] in LABELS:
            assert row["k"] == (answers["label"] == row["measure"]).sum()
            assert row["n_prompts"] == 12
            assert (row["low"], row["high"]) == tuple(wilson(row["k"], row["n"]))[:2]


def test_labels_partition_the_harmful_answers(table):
    rates = table.table.query("set == 'harmful' and measure in @LABELS")
    assert (rates.groupby("condition")["k"].sum() == rates.groupby("condition")["n"].first()).all()


def test_off_against_on_is_mcnemar_on_the_same_prompts(table):
    row = table.differences.query("set == 'harmful' and measure == 'refused' and to == 'on'").iloc[0]
    answers = table.answers.query("set == 'harmful'").assign(refused=lambda t: t["label"] == "refused")
    off, on = (
        answers[answers["condition"] == name].set_index("prompt")["refused"].sort_index() for name in ("off", "on")
    )
    gained, lost = int((on & ~off).sum()), int((off & ~on).sum())
    assert (row["gained"], row["lost"]) == (gained, lost)
    assert row["p"] == pytest.approx(mcnemar(gained, lost))
    assert row["difference"] == pytest.approx(on.mean() - off.mean())


def test_every_wording_is_seen_equally_often(table):
    seen = table.answers.query("condition == 'careful'")["wording"].value_counts()
    assert seen.max() - seen.min() <= 2
    row = table.differences.query("measure == 'refused' and to == 'careful'").iloc[0]
    assert "wordings" in row["method"]
    assert row["low"] <= row["difference"] <= row["high"]


def test_rotation_is_balanced():
    asked = rotation(20, 10, 3)
    assert len(asked) == len(set(asked)) == 60
    assert set(np.bincount([one.wording for one in asked])) == {6}


def test_result_survives_the_disk(table, tmp_path):
    table.save(tmp_path / "table")
    again = type(table).load(tmp_path / "table")
    assert again.table.equals(table.table)
    assert again.answers["label"].tolist() == table.answers["label"].tolist()


def test_unknown_conditions_and_no_sets_are_errors():
    model = tiny_model("llama")
    with pytest.raises(RimLensError, match="not a thinking mode"):
        measure_rim(model, thinking=("loud",))
    with pytest.raises(RimLensError, match="no wordings"):
        measure_rim(model, prefilled=("hasty",))
    with pytest.raises(RimLensError, match="no prompts"):
        measure_rim(model, None, None, None)


def test_thoughts_of_the_model_alone_have_a_verdict(table):
    own = table.answers["condition"] == "on"
    assert table.answers.loc[~own & (table.answers["condition"] != "off"), "cot_refused"].isna().all()
    thoughts = table.thoughts()
    both = own & table.answers["cot_refused"].notna() & (table.answers["label"] != "unjudged")
    for name, group in thoughts.groupby("set"):
        assert group["k"].sum() == group["n"].iloc[0] == (both & (table.answers["set"] == name)).sum()


def test_sets_have_conditions_of_their_own():
    modes = {"harmful": ("off", "on"), "harmless": ("off",)}
    found = measure_rim(
        tiny_model("llama"), ["steal"], ["bake"], None, thinking=modes, max_new_tokens=2, cot_budget=2
    ).answers
    assert list(zip(found["set"], found["condition"], strict=True)) == [
        ("harmful", "off"),
        ("harmful", "on"),
        ("harmless", "off"),
    ]
