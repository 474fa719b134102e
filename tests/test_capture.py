"""Capture and span attention against loops over transformers' eager attention and hidden states."""

import numpy as np
import pytest
import torch
from families import FAMILIES, shared_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rim_lens.capture.activations import head_outputs, mean_head_outputs, residuals
from rim_lens.capture.attention import attention_rows, segment_masses
from rim_lens.chat.positions import positions_in
from rim_lens.chat.segments import SEGMENTS
from rim_lens.errors import RimLensError
from rim_lens.inference_time.span_attention import SpanAttention, span_attention
from rim_lens.model.lens_model import shared_copy
from rim_lens.model.sites import find_sites

REQUESTS = ["How do I pick a lock?", "Tell me a long story about animals at night, please.", "Hi"]


def some_chats(model):
    return [
        model.render(REQUESTS[0], thinking="off", system="Be brief.")[0],
        model.render(REQUESTS[1], thinking="prefilled", cot="hm, let me see", response="No.")[0],
        model.render(REQUESTS[2], thinking="on")[0],
    ]


def alone(model, chat):
    """One chat, unpadded, through eager transformers: attentions, hidden states, inputs of output projections."""
    tree = shared_copy(model.hf)
    tree.set_attn_implementation("eager")
    z = {}
    for i, layer in enumerate(find_sites(tree, model.n_layers).layers):
        layer.output.register_forward_pre_hook(lambda _, args, i=i: z.__setitem__(i, args[0][0]))
    out = tree(torch.from_numpy(chat.token_ids)[None], output_attentions=True, output_hidden_states=True)
    return out, z


@pytest.mark.parametrize("backend", ["fast", "hooks"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.slow
def test_masses_equal_sums_over_eager_patterns(family, backend):
    model = shared_model(family)
    chats = some_chats(model)
    masses = segment_masses(model, chats, batch_size=2, backend=backend)
    for i, chat in enumerate(chats):
        patterns = alone(model, chat)[0].attentions
        for layer, pattern in enumerate(patterns):
            row = pattern[0, :, chat.decision_position]
            for s, segment in enumerate(SEGMENTS):
                by_hand = row[:, torch.from_numpy(chat.where(segment))].sum(-1)
                torch.testing.assert_close(masses[i, layer, :, s], by_hand, atol=1e-5, rtol=0)


def test_sinks_keep_what_segments_do_not_get():
    model = shared_model("gpt_oss")
    chat = some_chats(model)[0]
    total = segment_masses(model, [chat]).sum(-1)[0]
    assert (total < 1).all()
    assert (total > 0).all()
    torch.testing.assert_close(
        total[0], alone(model, chat)[0].attentions[0][0, :, chat.decision_position].sum(-1), atol=1e-5, rtol=0
    )


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    requests=st.lists(st.text(alphabet="abc ?é", min_size=1, max_size=60), min_size=1, max_size=5),
    cot=st.text(alphabet="xyz \n", max_size=40),
    batch_size=st.integers(1, 4),
    queries=st.sampled_from(["decision", "user", "last think_close", "all", (-3, -1, 0)]),
    family=st.sampled_from(["llama", "gemma2", "gemma3", "mistral"]),
)
@pytest.mark.slow
def test_masses_sum_to_one_whatever_the_batching(requests, cot, batch_size, queries, family):
    model = shared_model(family)
    chats = model.render(requests, thinking="prefilled", cot=cot)
    masses = segment_masses(model, chats, queries, batch_size=batch_size)
    assert masses.shape == (len(chats), model.n_layers, model.n_heads, len(SEGMENTS))
    torch.testing.assert_close(masses.sum(-1), torch.ones(masses.shape[:-1]), atol=1e-5, rtol=0)
    one_by_one = torch.cat([segment_masses(model, [chat], queries) for chat in chats])
    torch.testing.assert_close(masses, one_by_one, atol=1e-5, rtol=0)


@pytest.mark.parametrize("queries", ["response", "all", (-2, 0), "last user"])
def test_masses_of_several_queries_are_their_mean(queries):
    model = shared_model("qwen3")
    chats = some_chats(model)
    masses = segment_masses(model, chats, queries)
    for i, chat in enumerate(chats):
        places = positions_in(chat, queries)
        if not len(places):
            assert masses[i].isnan().all()
            continue
        for layer, pattern in enumerate(alone(model, chat)[0].attentions):
            mean_row = pattern[0][:, torch.from_numpy(places)].mean(dim=1)
            member = torch.from_numpy(chat.segment_ids[:, None] == np.arange(len(SEGMENTS))).float()
            torch.testing.assert_close(masses[i, layer], mean_row @ member, atol=1e-5, rtol=0)


@pytest.mark.parametrize("backend", ["fast", "hooks"])
def test_rows_residuals_and_head_outputs_of_padded_batches(backend):
    model = shared_model("gemma2")
    chats = some_chats(model)
    offsets = (-4, 0)
    rows = attention_rows(model, chats, offsets, backend=backend)
    resid = residuals(model, chats, offsets, backend=backend)
    z = head_outputs(model, chats, offsets, backend=backend)
    tap_last = residuals(model, chats, "decision", backend=backend)[:, -1, 0]
    for i, chat in enumerate(chats):
        out, inputs = alone(model, chat)
        places = torch.from_numpy(positions_in(chat, offsets))
        for layer in range(model.n_layers):
            torch.testing.assert_close(rows[i][layer], out.attentions[layer][0][:, places], atol=1e-5, rtol=0)
            torch.testing.assert_close(resid[i, layer], out.hidden_states[layer][0, places], atol=1e-4, rtol=0)
            by_hand = inputs[layer][places].view(2, model.n_heads, model.d_head)
            torch.testing.assert_close(z[i, layer], by_hand, atol=1e-4, rtol=0)
        final = model.hf.model.norm(tap_last[i])  # transformers' last hidden state is the normed one
        torch.testing.assert_close(final, out.hidden_states[-1][0, chat.decision_position], atol=1e-4, rtol=0)


def test_chats_with_fewer_positions_are_filled_with_nan():
    model = shared_model("llama")
    chats = some_chats(model)
    read = residuals(model, chats, "cot", batch_size=2)
    counts = [chat.where("cot").sum() for chat in chats]
    assert read.shape[2] == max(counts) > 0
    for i, count in enumerate(counts):
        assert read[i, :, :count].isfinite().all()
        assert read[i, :, count:].isnan().all()


def test_mean_head_outputs_is_the_mean_over_all_tokens():
    model = shared_model("phi3")
    chats = some_chats(model)
    streamed = mean_head_outputs(model, chats, batch_size=2)
    for layer in range(model.n_layers):
        tokens = torch.cat([alone(model, chat)[1][layer] for chat in chats])
        by_hand = tokens.mean(dim=0).view(model.n_heads, model.d_head)
        torch.testing.assert_close(streamed[layer], by_hand, atol=1e-5, rtol=0)


def test_layers_without_attention_are_nan():
    model = shared_model("qwen3_next")
    masses = segment_masses(model, some_chats(model))
    assert masses[:, [0, 2]].isnan().all()
    torch.testing.assert_close(masses[:, 1].sum(-1), torch.ones(3, model.n_heads), atol=1e-5, rtol=0)


def test_positions_that_do_not_exist_are_errors():
    chat = some_chats(shared_model())[0]
    with pytest.raises(RimLensError, match="unknown positions"):
        positions_in(chat, "thoughts")
    for offsets in ((-1000,), (1,), ()):
        with pytest.raises(RimLensError, match="leave the chat"):
            positions_in(chat, offsets)


@pytest.mark.parametrize("queries", ["decision", "last user", (-5, 0)])
def test_span_attention_lift_and_counts(queries, tmp_path):
    model = shared_model("qwen2")
    chats = some_chats(model)
    spans = span_attention(model, chats, queries)
    masses = segment_masses(model, chats, queries).numpy()
    np.testing.assert_array_equal(spans.mass, masses)
    for i, chat in enumerate(chats):
        places = positions_in(chat, queries)
        for s, segment in enumerate(SEGMENTS):
            counts = [chat.where(segment)[: q + 1].sum() for q in places]
            share = np.mean([n / (q + 1) for n, q in zip(counts, places, strict=True)])
            assert spans.n_keys[i, s] == pytest.approx(np.mean(counts))
            if share == 0:
                assert np.isnan(spans.lift[i, ..., s]).all()
            else:
                np.testing.assert_allclose(spans.lift[i, ..., s], masses[i, ..., s] / share, rtol=1e-5)
    again = SpanAttention.load(spans.save(tmp_path / "spans"))
    np.testing.assert_array_equal(again.mass, spans.mass)


def test_span_attention_table_counts_prompts_that_have_the_segment():
    model = shared_model("qwen2")
    chats = some_chats(model)
    spans = span_attention(model, chats)
    table = spans.to_dataframe().set_index(["layer", "head", "segment"])
    assert len(table) == model.n_layers * model.n_heads * len(SEGMENTS)
    cot = table.loc[(1, 2, "cot")]
    assert cot["n"] == 1
    assert np.isnan(cot["mass_sd"])
    assert cot["mass_mean"] == pytest.approx(spans.segment("cot")[1, 1, 2])
    user = spans.segment("user", of="lift")[:, 0, 3]
    assert table.loc[(0, 3, "user"), "lift_mean"] == pytest.approx(user.mean())
    assert table.loc[(0, 3, "user"), "lift_sd"] == pytest.approx(user.std(ddof=1), rel=1e-5)
