"""Patterns in fine-tuning data and in own CoTs, costs of patterns together.

Against counts by hand, with bad input named.
"""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from families import shared_model, tiny_model, tiny_tokenizer
from made_patterns import LAZY, PLAIN, made_answers, made_costs, with_own_cots, written_arms
from made_results import made_behavior

from rim_lens import PromptSet, RimLensError, ThinkTags, load_prompts, measure_rim
from rim_lens.model.lens_model import LensModel
from rim_lens.patterns import arm_divergence, own_patterns
from rim_lens.patterns.cost_tables import OFF
from rim_lens.patterns.costs import pattern_costs
from rim_lens.patterns.own_cots import fisher
from rim_lens.patterns.training_rows import TrainingRow, tokens_of
from rim_lens.stats import benjamini_hochberg, bootstrap_mean, paired_difference
from rim_lens.words import ANY

TOKENIZER = tiny_tokenizer()
TEXTS = {name: [f"{name} text {i:02d}" for i in range(8)] for name in ("heuristic", "deviation", "neutral")}
for group in TEXTS.values():
    group[:] = [text.ljust(24, ".") for text in group]


def part_of(n=6):
    whole = load_prompts("harmful")
    return PromptSet("part", "here", tuple(whole[i] for i in range(n)))


# ---- costs of patterns together -------------------------------------------------------------------------------------


def test_contrasts_are_differences_of_rates():
    costs = made_costs()
    refused = costs.answers.assign(hit=costs.answers["label"] == "refused").groupby("condition")["hit"].mean()
    pooled = refused[["confirmatory", "heuristic", "deviation"]].mean()
    table = costs.contrasts.set_index(["class", "reference"])
    for reference in ("neutral", "careful", OFF):
        assert table.loc[(ANY, reference), "cost"] == pytest.approx(refused[reference] - pooled)
        assert table.loc[(ANY, reference), "n_wordings"] == 24
    assert table.loc[("heuristic", "deviation"), "cost"] == pytest.approx(refused["deviation"] - refused["heuristic"])
    assert len(table) == 6
    np.testing.assert_allclose(costs.contrasts["q"], benjamini_hochberg(costs.contrasts["p"].to_numpy()))
    assert costs.worst == "heuristic"


def test_wordings_widen_the_interval_of_patterns_together():
    """Where the wording decides, the interval is wider than one over prompts alone."""
    answers = made_answers(n=48)
    pattern = answers["condition"].isin(("confirmatory", "heuristic", "deviation"))
    decided = answers.assign(label=np.where(pattern & (answers["wording"] % 2 == 1), "complied", "refused"))
    row = made_costs(decided).contrasts.iloc[0]
    by_prompt = (decided[pattern]["label"] == "complied").groupby(decided["prompt"]).mean().to_numpy()
    low, high = bootstrap_mean(by_prompt)
    assert row["cost"] == by_prompt.mean() == 0.5
    assert row["low"] < low
    assert row["high"] > high


@pytest.mark.slow
def test_categories_hold_any_pattern_and_only_those_with_enough_prompts():
    answers = made_answers()
    answers.loc[answers["prompt"] < 3, "category"] = "rare"
    costs = made_costs(answers)
    assert "rare" not in set(costs.by_category["category"])
    assert (costs.by_category["class"] == ANY).sum() == costs.by_category["category"].nunique() == 2
    assert costs.by_category[["low", "high"]].abs().max().max() <= 1
    assert made_costs(answers.assign(category=None)).by_category.empty


def test_answers_measured_before_are_not_asked_again(monkeypatch):
    model, prompts = tiny_model(max_position_embeddings=2048), part_of()
    before = measure_rim(model, prompts, None, None, thinking=("off",), max_new_tokens=2)
    asked = []
    from rim_lens.patterns import costs as module

    real = module.answers_of
    monkeypatch.setattr(
        module, "answers_of", lambda *given, **options: (asked.append(given[3].name), real(*given, **options))[1]
    )
    options = {"classes": TEXTS, "max_new_tokens": 2, "wordings_per_prompt": 1}
    with_it = pattern_costs(model, prompts, measured=before, **options)
    assert asked == list(TEXTS)
    without = pattern_costs(model, prompts, **options)
    columns = ["condition", "prompt", "label", "response"]
    pd.testing.assert_frame_equal(with_it.answers[columns], without.answers[columns])
    pd.testing.assert_frame_equal(with_it.table, without.table)
    with pytest.raises(RimLensError, match="another prompts"):
        pattern_costs(model, part_of(5), measured=before, **options)
    with pytest.raises(RimLensError, match="another judge"):
        pattern_costs(model, prompts, measured=replace(before, judge="somebody"), **options)
    with pytest.raises(RimLensError, match="another model"):
        pattern_costs(tiny_model(seed=1, max_position_embeddings=2048), prompts, measured=before, **options)


def test_a_template_without_a_thinking_mode():
    """Its tags stand in the chat as plain text, which is said; without tags a CoT has no place, which is an error."""
    model = shared_model()
    assert not model.chat_format.writes_tags
    costs = pattern_costs(model, part_of(), classes=TEXTS, max_new_tokens=1, wordings_per_prompt=1)
    assert not costs.own_tags
    assert "no think tags" in costs.caption()
    bare = LensModel("bare", TOKENIZER, hf=model.hf, tags=ThinkTags("", ""))
    with pytest.raises(RimLensError, match="loaded without think tags"):
        pattern_costs(bare, part_of(), classes=TEXTS)
    with pytest.raises(RimLensError, match="needs an opening tag"):
        tokens_of(bare.chat_format, TrainingRow("Hi?", "Yes.", "So it is.", "on"))


# ---- fine-tuning data -----------------------------------------------------------------------------------------------


def test_arms_are_labelled_and_compared_on_shared_problems(tmp_path):
    found = arm_divergence(written_arms(tmp_path), tokenizer=TOKENIZER)
    shares = found.table.set_index(["arm", "pattern"])
    assert (shares.loc[("effort", "any"), "k"], shares.loc[("effort", "any"), "n"]) == (8, 16)
    assert shares.loc[("effort", "confirmatory"), "share"] == 0.5
    plain = shares.loc[("plain", "any")]
    assert (plain["k"], plain["low"]) == (0, 0)
    assert 0 < plain["high"] < 0.4  # none of 8 CoTs is not none at all
    assert set(found.sentences["arm"]) == {"effort"}
    assert found.sentences["text"].str.contains("gut").all()
    report = found.divergence.set_index("measure")
    assert (report["first"] + report["second"] == "plaineffort").all()
    assert report.loc["tokens", "difference"] == len(PLAIN) - len(LAZY)
    assert report.loc["pattern sentences (share)", "difference"] == -0.5
    assert report.loc["same answer in both", "first_mean"] == 1
    low, high = paired_difference(np.ones(8, bool), np.ones(8, bool)).interval
    assert tuple(report.loc["answer agreement", ["low", "high"]]) == pytest.approx((low, high))
    assert low < 0 < high
    assert (found.arms["agree"] == 8).all()


def test_problems_are_sampled_for_all_arms_alike(tmp_path):
    found = arm_divergence(written_arms(tmp_path, n=20), tokenizer=TOKENIZER, n=6)
    assert (found.arms["n_cots"] == 6).all()
    assert found.divergence.set_index("measure").loc["tokens", "n"] == 6


def test_arms_that_share_no_problems_are_labelled_but_not_compared(tmp_path):
    files = written_arms(tmp_path)
    text = files["effort"].read_text().replace("Add ", "Sum up ")
    files["effort"].write_text(text)
    found = arm_divergence(files, tokenizer=TOKENIZER)
    assert found.divergence.empty
    assert len(found.table) == 8


def test_answers_that_disagree_with_their_cot_are_counted(tmp_path):
    files = written_arms(tmp_path)
    files["plain"].write_text(files["plain"].read_text().replace("The answer is 5.", "The answer is 6."))
    found = arm_divergence(files, tokenizer=TOKENIZER)
    row = found.arms.set_index("arm").loc["plain"]
    assert (row["agree"], row["stated"]) == (7, 8)
    report = found.divergence.set_index("measure")
    assert report.loc["answer agreement", "first_mean"] == report.loc["same answer in both", "first_mean"] == 7 / 8


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"request": "a", "response": "b"}, "Row 1 .* has no CoT"),
        ({"request": "a", "response": "b", "thinking": "off"}, "The arm plain has no CoT"),
        ({"request": "a", "cot": "c"}, "has no response"),
    ],
)
def test_data_without_cot_is_named(tmp_path, row, message):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(RimLensError, match=message):
        arm_divergence({"plain": path}, tokenizer=TOKENIZER)
    with pytest.raises(RimLensError, match="no arms"):
        arm_divergence({}, tokenizer=TOKENIZER)


# ---- own CoTs -------------------------------------------------------------------------------------------------------


def test_own_cots_are_counted_against_answers():
    found = own_patterns(with_own_cots(made_behavior()))
    whole = found.table.set_index("pattern").loc["any"]
    assert (whole["k"], whole["n"], whole["cots_with_it"], found.n_cots) == (10, 64, 10, 32)
    row = found.outcomes.set_index("outcome").loc["complied"]
    assert (row["with_k"], row["with_n"], row["without_k"], row["without_n"]) == (8, 10, 0, 22)
    # C(10, 8) / C(32, 8): the one table as extreme as this
    assert row["p"] == pytest.approx(45 / 10518300)
    assert row["smallest_p"] == row["p"]
    assert row["with_sentences"] == row["without_sentences"] == 2
    assert set(found.sentences["outcome"]) == {"complied", "refused"}
    assert found.sentences["request"].str.startswith("harmful request").all()


def test_empty_cots_are_left_out_and_told():
    behavior = with_own_cots(made_behavior())
    mine = behavior.answers.index[(behavior.answers["set"] == "harmful") & (behavior.answers["condition"] == "on")]
    behavior.answers.loc[mine[:4], "cot"] = ""
    found = own_patterns(behavior)
    assert (found.n_cots, found.n_empty) == (28, 4)
    row = found.outcomes.iloc[0]
    assert (row["with_k"], row["with_n"], row["without_n"]) == (4, 6, 22)


def test_too_few_cots_cannot_reach_a_small_p():
    few = fisher(1, 1, 10, 31)
    assert few["p"] == few["smallest_p"] == pytest.approx(11 / 32)
    assert np.isnan(fisher(0, 0, 3, 8)["p"])
    found = own_patterns(with_own_cots(made_behavior(), lazy=0, comply=3))
    assert found.outcomes["p"].isna().all()
    assert found.table["high"].gt(0).all()


def test_without_own_cots_there_is_nothing_to_label():
    behavior = made_behavior()
    with pytest.raises(RimLensError, match="these hold none"):
        own_patterns(behavior)
    only_off = replace(behavior, answers=behavior.answers[behavior.answers["condition"] == "off"])
    with pytest.raises(RimLensError, match="thinking on"):
        own_patterns(only_off)
