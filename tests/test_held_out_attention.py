"""Attention of chosen heads on other chats, against transformers' own attention rows."""

import numpy as np
import pytest
import torch
from families import tiny_model

from rim_lens import RimLensError, find_refusal_heads
from rim_lens.chat.segments import SEGMENTS
from rim_lens.inference_time import on_other_chats


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


def chats_of(model, start, n):
    off = model.render([f"Request number {i}" for i in range(start, start + n)])
    on = model.render([f"Request number {i}" for i in range(start, start + n)], thinking="prefilled", cot="So it goes.")
    return [*off, *on]


@pytest.fixture(scope="module")
def heads(model):
    chats = chats_of(model, 0, 10)
    return find_refusal_heads(model, chats, outcome=np.random.default_rng(0).normal(size=20))


def test_attention_of_the_first_heads_equals_a_plain_pass(model, heads):
    other, outcome = chats_of(model, 50, 6), np.arange(12.0)
    held = on_other_chats(model, heads, other, outcome, k=2).held_out
    model.hf.set_attn_implementation("eager")
    spans = {"empty_span": ("think_open", "think_close"), "cot_divergence": ("cot",)}
    assert set(held["contrast"]) == set(spans)
    for name, segments in spans.items():
        rows = held[held["contrast"] == name]
        half, sign = (slice(0, 6), 1) if name == "empty_span" else (slice(6, 12), -1)
        np.testing.assert_allclose(rows["outcome"], sign * outcome[half])
        chosen = heads.ranked(name, 2)
        for chat, attention in zip(other[half], rows["attention"], strict=True):
            with torch.no_grad():
                out = model.hf(torch.tensor(chat.token_ids)[None], output_attentions=True)
            inside = np.isin(chat.segment_ids, [SEGMENTS.index(segment) for segment in segments])
            plain = [out.attentions[layer][0, head, -1].numpy()[inside].sum() for layer, head in chosen]
            assert attention == pytest.approx(np.mean(plain), abs=1e-5)


def test_chats_of_another_mode_and_wrong_outcomes_are_refused(model, heads):
    only_off = find_refusal_heads(model, model.render([f"Request {i}" for i in range(10)]), outcome=np.arange(10.0))
    on = chats_of(model, 50, 3)[3:]
    with pytest.raises(RimLensError, match="other chats of its thinking mode"):
        on_other_chats(model, only_off, on, np.arange(3.0))
    with pytest.raises(RimLensError, match="3 chats need as many outcomes"):
        on_other_chats(model, heads, on, np.arange(4.0))
