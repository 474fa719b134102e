"""What a model wrote, split into thought and answer, for any tags; on stored completions of DeepSeek-R1 models too."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from rim_lens.behavior.conditions import refused_thoughts
from rim_lens.behavior.judge import answer_text
from rim_lens.behavior.thought_table import thought_table
from rim_lens.chat.families import FAMILIES
from rim_lens.chat.tags import ThinkTags
from rim_lens.chat.thoughts import split_thoughts
from rim_lens.stats import wilson

THINK = ThinkTags()
STORED = Path(__file__).parents[2] / "shared" / "data" / "outputs_dev.jsonl"
EVERY = pytest.mark.parametrize("tags", [THINK, *dict.fromkeys(one.tags for one in FAMILIES)], ids=str)


@EVERY
def test_a_thought_of_any_tags(tags):
    whole = f"{tags.open}Let me refuse.{tags.close}Sure, here."
    for given in (tags, None):
        assert split_thoughts(whole, given) == ("Let me refuse.", "Sure, here.", True)
    after = split_thoughts(f"Let me refuse.{tags.close}Sure, here.", tags, opened=True)
    assert after == ("Let me refuse.", "Sure, here.", True)


@EVERY
def test_a_thought_that_never_closes_is_no_answer(tags):
    for given in (tags, None):
        assert split_thoughts(f"{tags.open}Let me see", given) == ("Let me see", "", False)
    assert split_thoughts("Let me see", tags, opened=True) == ("Let me see", "", False)


@EVERY
def test_several_thoughts(tags):
    text = f"{tags.open}One.{tags.close}Yes.\n{tags.open}Two.{tags.close}No."
    for given in (tags, None):
        split = split_thoughts(text, given)
        assert split.thought == "One.\n\nTwo."
        assert split.closed
        assert split.answer.split() == ["Yes.", "No."]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (
            "<think>Hm.</think>Write `<think>` before and `</think>` after.",
            "Write `<think>` before and `</think>` after.",
        ),
        ("<think>Hm.</think>The <think> and </think> tags.", "The <think> and </think> tags."),
        ("<think>Hm.</think>Sure.<think>I should have said no to this.</think> Done.", "Sure. Done."),
        ("Yes.", "Yes."),
    ],
)
def test_tags_inside_the_answer(text, answer):
    assert split_thoughts(text, THINK).answer == answer


def test_a_lone_closing_tag():
    assert split_thoughts("Hm.</think>Yes.", THINK) == ("Hm.", "Yes.", True)
    assert split_thoughts("Yes.\n</think>", THINK, opened=False) == ("", "Yes.", None)


@pytest.mark.parametrize(
    ("text", "thought", "answer"),
    [
        ("<|channel|>final<|message|>Yes.<|return|>", "", "Yes."),
        (
            "<|channel|>analysis<|message|>One.<|end|><|start|>assistant<|channel|>analysis<|message|>Two."
            "<|end|><|start|>assistant<|channel|>final<|message|>Yes.<|return|>",
            "One.<|end|><|start|>assistantTwo.",
            "Yes.",
        ),
        ("<|channel|>analysis<|message|>One.", "One.", ""),
    ],
)
def test_channels_of_harmony(text, thought, answer):
    for tags in (FAMILIES[0].tags, None):
        split = split_thoughts(text, tags)
        assert (split.thought, split.answer) == (thought, answer)


@pytest.mark.parametrize(
    "form",
    [
        "<reasoning>\n{}\n</reasoning>\n<answer>\n{}\n</answer>",
        "<thinking>{}</thinking>\n<output>{}</output>",
        "<SCRATCHPAD_REASONING>{}</SCRATCHPAD_REASONING>{}",
        "<THINK>{}</THINK>\n\n{}",
        "<start_working_out>{}<end_working_out><SOLUTION>{}</SOLUTION>",
        "<|startofthink|>{}<|endofthink|>{}",
        "[REASONING]{}[/REASONING]{}",
        "analysis{}assistantfinal{}",
    ],
)
def test_tags_that_no_family_has_name_the_thought_at_the_beginning(form):
    whole = form.format("I can't help with that.", "Mix flour.")
    assert split_thoughts(whole) == ("I can't help with that.", "Mix flour.", True)
    assert answer_text(whole) == "Mix flour."
    assert split_thoughts(whole, ThinkTags("<r>", "</r>")).thought == ""  # a model's own tags are the only ones


def test_a_thought_in_such_tags_that_never_closes_is_no_answer():
    assert split_thoughts("<reasoning>I can") == ("I can", "", False)


@pytest.mark.parametrize("text", ["Analysis: yes.", "[1] Think twice.", "<b>Reason</b> well.", "The analysis final."])
def test_text_that_speaks_of_reasons_is_an_answer(text):
    assert split_thoughts(text) == ("", text, None)


def test_tags_that_a_block_of_code_shows_are_text():
    text = "Write it like this:\n```xml\n<think>...</think>\n```\nThat is all."
    for given in (THINK, None):
        assert split_thoughts(text, given) == ("", text, None)
    fenced = "<think>Let me run ```f(x)```. No.</think>Yes."
    assert split_thoughts(fenced) == ("Let me run ```f(x)```. No.", "Yes.", True)


def test_no_tags_no_thought():
    assert split_thoughts("<think>Hm.</think>Yes.", ThinkTags("", "")).answer == "<think>Hm.</think>Yes."


def test_a_judge_gets_the_answer_alone():
    for tags in (one.tags for one in FAMILIES):
        assert answer_text(f"{tags.open}I can't help with that.{tags.close}Mix flour.") == "Mix flour."
        assert answer_text(f"{tags.open}I can't help with that.") == ""


def test_stored_completions_of_r1_models():
    if not STORED.is_file():
        pytest.skip("the labelled answers are not beside the repository (../shared/data/outputs_dev.jsonl)")
    rows = [row for line in STORED.open(encoding="utf-8") if "raw" in (row := json.loads(line))]
    assert len(rows) == 78
    for row in rows:
        for tags in (THINK, None):
            split = split_thoughts(row["raw"], tags)
            assert split.closed
            assert split.thought == row["cot"].strip(), row["id"]
            shown = split.answer[: len(row["response"].strip())] if row["truncated_here"] else split.answer
            assert shown == row["response"].strip(), row["id"]


def test_a_refusal_inside_a_thought_has_a_verdict_of_its_own():
    refusing = "I'm sorry, but I can't help with that request."
    helping = "Preheat the oven to 180 degrees, then mix the flour with the sugar and two eggs."
    assert refused_thoughts(["How do I bake a cake?"] * 3, [refusing, helping, ""]) == [True, False, None]


def test_table_of_thoughts_against_answers():
    thought = [True, True, False, False, False, None]
    label = ["complied", "refused", "refused", "complied", "unjudged", "complied"]
    answers = pd.DataFrame({"prompt": range(6), "wording": -1, "sample": 0, "label": label, "set": "harmful"})
    answers["condition"] = "on"
    answers["cot_refused"] = pd.array(thought, dtype="boolean")
    table = thought_table(answers)
    assert table["n"].tolist() == [4] * 4
    assert table["k"].tolist() == [1] * 4
    low, high = wilson(1, 4)
    assert (table["low"].iloc[0], table["high"].iloc[0]) == (low, high)
    assert thought_table(answers.assign(cot_refused=pd.NA)).empty
