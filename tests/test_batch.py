"""Batches: padding on either side, position ids, decision columns and the order of batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from chat_families import tokenizer_of
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from rim_lens.chat.chat import Chat
from rim_lens.chat.format import ChatFormat
from rim_lens.chat.segments import SEGMENTS
from rim_lens.errors import RimLensError
from rim_lens.model.batch import batches, make_batch

PAD = 7
lengths = st.lists(st.integers(1, 9), min_size=1, max_size=12)


def some_chats() -> list[Chat]:
    chat_format = ChatFormat(tokenizer_of("qwen3"))
    return [
        chat_format.render("Hi"),
        chat_format.render("", thinking="on"),
        chat_format.render("How are you?", thinking="prefilled", cot="Let me think.", response="I am fine."),
        chat_format.render("Hi", system="Be brief.", thinking="on").extend([3, 4], "cot"),
    ]


def chat_of_length(length: int) -> Chat:
    return Chat("", np.arange(length) + 10, np.full(length, 1), "off", "x", length // 2)


@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_are_their_chats(side):
    chats = some_chats()
    batch = make_batch(chats, PAD, side=side)
    width = max(map(len, chats))
    assert len(batch) == 4
    assert batch.tokens.shape == batch.mask.shape == batch.segments.shape == batch.positions.shape == (4, width)
    for row, chat in enumerate(chats):
        real = range(width - len(chat), width) if side == "left" else range(len(chat))
        assert batch.mask[row].nonzero().flatten().tolist() == list(real)
        assert batch.first[row] == real[0]
        assert batch.tokens[row, batch.mask[row]].tolist() == chat.token_ids.tolist()
        assert batch.segments[row, batch.mask[row]].tolist() == chat.segment_ids.tolist()
        assert batch.positions[row, batch.mask[row]].tolist() == list(range(len(chat)))
        assert (batch.tokens[row, ~batch.mask[row]] == PAD).all()
        assert (batch.segments[row, ~batch.mask[row]] == -1).all()
        assert batch.decision[row] == real[chat.decision_position]
        for segment in SEGMENTS:
            assert batch.where(segment)[row].sum() == chat.where(segment).sum()
    assert batch.chats == tuple(chats)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_does_not_change_the_logits_at_the_decision_position(side):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer_of("qwen3")),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model = LlamaForCausalLM(config).eval()
    chats = some_chats()
    batch = make_batch(chats, PAD, side=side)
    with torch.no_grad():
        logits = model(batch.tokens, attention_mask=batch.mask.long(), position_ids=batch.positions).logits
        for row, chat in enumerate(chats):
            alone = model(torch.from_numpy(chat.token_ids)[None]).logits[0, chat.decision_position]
            torch.testing.assert_close(logits[row, batch.decision[row]], alone, atol=1e-5, rtol=1e-4)


@settings(deadline=None)
@given(sizes=lengths, batch_size=st.integers(1, 5))
def test_batches_are_a_permutation_longest_first(sizes, batch_size):
    chats = [chat_of_length(size) for size in sizes]
    seen = list(batches(chats, PAD, batch_size=batch_size))
    order = [index for rows, _ in seen for index in rows]
    assert sorted(order) == list(range(len(chats)))
    assert [sizes[index] for index in order] == sorted(sizes, reverse=True)
    assert all(len(rows) == batch_size for rows, _ in seen[:-1])
    for rows, batch in seen:
        assert batch.chats == tuple(chats[index] for index in rows)
        assert batch.mask.sum(dim=1).tolist() == [sizes[index] for index in rows]


def test_no_batches_of_no_chats():
    assert list(batches([], PAD)) == []


def test_bad_input():
    chats = [chat_of_length(2)]
    with pytest.raises(RimLensError, match="at least one chat"):
        make_batch([], PAD)
    with pytest.raises(RimLensError, match="unknown padding side 'top'"):
        make_batch(chats, PAD, side="top")
    with pytest.raises(RimLensError, match="batch_size must be at least 1"):
        list(batches(chats, PAD, batch_size=0))
