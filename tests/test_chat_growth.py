"""Chats that grow by generated tokens."""

from __future__ import annotations

import numpy as np
import pytest
from chat_families import CLOSE, FAMILIES, chat_format, tokenizer_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rim_lens.chat.chat import Chat
from rim_lens.errors import RimLensError

contents = st.lists(
    st.one_of(st.sampled_from(["</think>", "\n\n", "e\u0301\u1100\u1161\U0001f642"]), st.text(max_size=8)), max_size=6
).map("".join)
quickly = settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))


def test_grown_chat_moves_its_decision_position_until_the_response():
    format_ = chat_format("qwen3")
    tokenizer = tokenizer_of("qwen3")
    prompt = format_.render("Hi", thinking="on")
    cot, answer = (tokenizer.encode(text, add_special_tokens=False) for text in ("Hm, 42.", "I am fine."))
    thought = prompt.extend(cot, "cot").extend(list(format_.close_ids), "think_close")
    assert thought.decision_position == len(thought) - 1
    answered = thought.extend(answer, "response")
    assert answered.decision_position == thought.decision_position
    assert answered.text == prompt.text + "Hm, 42." + CLOSE + "I am fine."
    assert answered.segment_text("cot") == "Hm, 42."
    assert answered.segment_text("response") == "I am fine."
    assert answered.extend([], "response") is answered
    assert len(prompt) == prompt.decision_position + 1  # growth leaves the shorter chat as it was


@quickly
@given(
    family=st.sampled_from(sorted(FAMILIES)),
    cot=contents.filter(str.strip),
    pieces=st.lists(st.integers(1, 5), max_size=12),
)
@pytest.mark.slow
def test_growing_in_steps_is_growing_at_once(family, cot, pieces):
    tokenizer, prompt = tokenizer_of(family), chat_format(family).render("Hi", thinking="on")
    token_ids = tokenizer.encode(cot, add_special_tokens=False)
    at_once, stepwise, done = prompt.extend(token_ids, "cot"), prompt, 0
    for size in [*pieces, len(token_ids)]:
        stepwise, done = stepwise.extend(token_ids[done : done + size], "cot"), done + size
    assert stepwise.text == at_once.text
    assert stepwise.spans == at_once.spans
    assert stepwise.token_ids.tolist() == [*prompt.token_ids, *token_ids]
    assert stepwise.decision_position == len(stepwise) - 1
    assert (
        at_once.segment_text("cot")
        == tokenizer.decode([*prompt.token_ids, *token_ids])[len(tokenizer.decode(prompt.token_ids)) :]
    )


def test_growth_in_the_wrong_order_or_place():
    chat = chat_format("qwen3").render("Hi")
    with pytest.raises(RimLensError, match="cannot follow 'think_close'"):
        chat.extend([1], "cot")
    with pytest.raises(RimLensError, match="cannot be 'user'"):
        chat.extend([1], "user")
    with pytest.raises(RimLensError, match="unknown segment"):
        chat.where("answer")


def test_chat_made_by_hand():
    chat = Chat("", np.array([5, 6]), np.array([1, 2]), "off", "x", 1).extend([7], "response")
    assert chat.token_ids.tolist() == [5, 6, 7]
    assert chat.text == ""
    assert chat.decision_position == 1
    with pytest.raises(RimLensError, match="one segment id a token"):
        Chat("", np.array([5, 6]), np.array([1]), "off", "x", 1)
    with pytest.raises(RimLensError, match="decision position 2 is outside"):
        Chat("", np.array([5, 6]), np.array([1, 2]), "off", "x", 2)
