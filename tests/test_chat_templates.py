"""Real chat templates (those that trl ships) and thinking models' own tags: every one renders right or says why not."""

from __future__ import annotations

import re

import pytest
from named_templates import NAMED
from template_table import SHIPPED, TEMPLATES, page, tokenizer_with

from rim_lens.chat.format import ChatFormat
from rim_lens.chat.segments import SEGMENTS
from rim_lens.chat.tags import ThinkTags
from rim_lens.errors import RimLensError

REFUSED_SYSTEM = {"gemma", "gemma_training"}


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_template_renders_in_all_modes(name):
    format_ = ChatFormat(tokenizer_with(SHIPPED[name].read_text(encoding="utf-8")))
    open_, close = format_.tags.open, format_.tags.close
    off, on = (format_.render("REQ", thinking=mode) for mode in ("off", "on"))
    prefilled = format_.render("REQ", thinking="prefilled", cot="COT", response="ANS")

    for chat in (off, on, prefilled):
        assert chat.text == "".join(chat.text[span.start : span.end] for span in chat.spans)
        assert "REQ" in chat.segment_text("user")
        assert len(chat.segment_ids) == len(chat.token_ids)
    assert SEGMENTS[on.segment_ids[-1]] == "think_open"
    assert on.segment_text("think_open") == open_
    assert prefilled.text.endswith(f"{open_}COT{close}ANS")
    assert prefilled.segment_text("cot") == "COT"
    assert prefilled.segment_text("response") == "ANS"
    assert off.segment_text("cot") == ""
    assert off.segment_text("think_open").strip() == format_.tags.open_mark
    assert off.segment_text("think_close").strip() == format_.tags.close_mark
    # Nothing of a think part stands outside its segments, but for what the system prompt says about thinking.
    assert format_.tags.open_mark not in on.segment_text("user") + on.segment_text("assistant_tag")


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_template_keeps_turns_and_system_prompt_apart(name):
    format_ = ChatFormat(tokenizer_with(SHIPPED[name].read_text(encoding="utf-8")))
    turns = [("user", "Aaa"), ("assistant", "Bbb"), ("user", "Ccc")]
    chat = format_.render([{"role": role, "content": content} for role, content in turns])
    assert "Aaa" in chat.segment_text("user")
    assert "Ccc" in chat.segment_text("user")
    assert "Bbb" in chat.segment_text("response")
    if name in REFUSED_SYSTEM:
        with pytest.raises(RimLensError, match="System role not supported"):
            format_.render("REQ", system="SYS")
    else:
        assert "SYS" in format_.render("REQ", system="SYS").segment_text("system")


def test_default_tags_are_never_put_into_a_format_that_has_its_own():
    for name, path in SHIPPED.items():
        source = path.read_text(encoding="utf-8")
        format_ = ChatFormat(tokenizer_with(source))
        source = re.sub(r"\{#.*?#\}", "", source, flags=re.DOTALL)  # comments
        own = any(mark in source for mark in ("<think>", "</think>", "<|channel", "reasoning_content"))
        assert (format_.tags_from == "default") == (not own), name


@pytest.mark.parametrize("name", NAMED)
def test_a_thinking_family_renders_in_all_modes(name):
    family = NAMED[name]
    tokenizer = tokenizer_with(family.template)
    tokenizer.name_or_path = family.name or "made"
    format_ = ChatFormat(tokenizer)
    chats = [
        format_.render("REQ", thinking="off"),
        format_.render("REQ", thinking="on"),
        format_.render("REQ", thinking="prefilled", cot="COT"),
    ]
    assert [chat.text.partition("REQ")[2] for chat in chats] == list(family.tails)
    assert format_.tags_from == family.tags_from
    for chat, line in zip(chats, (family.in_system[0], *[family.in_system[1]] * 2), strict=True):
        assert line in chat.segment_text("system")
    assert chats[2].segment_text("cot") == "COT"
    assert SEGMENTS[chats[1].segment_ids[-1]] == "think_open"


def test_a_dropped_system_prompt_is_an_error():
    format_ = ChatFormat(tokenizer_with(NAMED["Phi-4-reasoning"].template))
    with pytest.raises(RimLensError, match="leaves the system prompt out"):
        format_.render("REQ", system="Be brief.")


def test_a_date_is_held_and_said():
    format_ = ChatFormat(tokenizer_with(SHIPPED["llama3_2"].read_text(encoding="utf-8")))
    assert "Today Date: 26 Jul 2024" in format_.render("REQ").text
    assert any("26 Jul 2024" in note for note in format_.notes)
    assert not any("date" in note for note in ChatFormat(tokenizer_with(NAMED["QwQ"].template)).notes)


def test_effort_of_gpt_oss_is_a_variable():
    tokenizer = tokenizer_with(SHIPPED["gptoss"].read_text(encoding="utf-8"))
    assert "Reasoning: medium" in ChatFormat(tokenizer).render("REQ").segment_text("system")
    high = ChatFormat(tokenizer, variables={"reasoning_effort": "high"})
    assert "Reasoning: high" in high.render("REQ", thinking="on").segment_text("system")


def test_a_second_bos_is_taken_out_and_said():
    twice = "{{ bos_token }}{{ bos_token }}" + NAMED["QwQ"].template
    format_ = ChatFormat(tokenizer_with(twice))
    assert format_.render("REQ").text.count("<bos>") == 1
    assert any("two BOS" in note for note in format_.notes)


def test_a_think_tag_of_unknown_form_is_an_error():
    template = NAMED["QwQ"].template.replace("<think>\\n", "<|think|>")
    with pytest.raises(RimLensError, match="other half is not known: give tags="):
        ChatFormat(tokenizer_with(template)).render("REQ")
    given = ThinkTags("<|think|>", "<|/think|>")
    assert ChatFormat(tokenizer_with(template), given).render("REQ").text.endswith("<|think|><|/think|>")


@pytest.mark.parametrize(
    ("written", "tags"),
    [
        ("<scratchpad>\\n", ThinkTags("<scratchpad>\n", "\n</scratchpad>\n\n")),
        ("[REASONING]", ThinkTags("[REASONING]", "[/REASONING]")),
        ("<|begin_of_thought|>", ThinkTags("<|begin_of_thought|>", "<|end_of_thought|>")),
        ("<|thinking_start|>", ThinkTags("<|thinking_start|>", "<|thinking_end|>")),
    ],
)
def test_the_other_half_of_a_tag_that_a_template_opens(written, tags):
    format_ = ChatFormat(tokenizer_with(NAMED["QwQ"].template.replace("<think>\\n", written)))
    assert (format_.tags, format_.tags_from) == (tags, "template")


@pytest.mark.slow
def test_the_page_of_chat_formats_is_current():
    assert TEMPLATES.read_text(encoding="utf-8") == page(), "run python tests/template_table.py"
