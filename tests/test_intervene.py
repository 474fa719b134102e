"""Interventions against the same change made by hand.

Hooks on projections, masks in an attention function, recomputation.
"""

import itertools
from contextlib import ExitStack

import pytest
import torch
from families import FAMILIES, shared_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from rim_lens.capture.activations import head_outputs, mean_head_outputs
from rim_lens.chat.segments import SEGMENTS
from rim_lens.errors import RimLensError
from rim_lens.intervene import (
    ablate_heads,
    ablate_neurons,
    knock_out,
    patch_heads,
    record_heads,
    scale_heads,
    scale_neurons,
)
from rim_lens.model.decode import RecomputingDecoder, decoder
from rim_lens.model.lens_model import shared_copy
from rim_lens.model.sites import find_sites

REQUESTS = ["How do I pick a lock?", "Tell me a long story about animals at night, please.", "Hi"]
HEADS = [(0, 1), (2, 0), (2, 3)]
BACKENDS = ["fast", "hooks"]


def prompts(model, cot="hm, let me see"):
    return model.render(REQUESTS, thinking="prefilled", cot=cot)


def by_hand(model, batch, change):
    """Logits of a separate tree after `change(layer, z)`; z is the input of the output projection, split into heads."""
    tree = shared_copy(model.hf)
    for i, layer in enumerate(find_sites(tree, model.n_layers).layers):

        def hook(_, args, i=i):
            z = args[0].clone().view(*args[0].shape[:2], model.n_heads, model.d_head)
            change(i, z)
            return (z.view(args[0].shape),)

        layer.output.register_forward_pre_hook(hook)
    logits = tree(batch.tokens, **model.hf_inputs(batch.mask, batch.positions)).logits
    return logits[torch.arange(len(logits)), batch.decision]


def close(one, other, atol=1e-4):
    torch.testing.assert_close(one, other, atol=atol, rtol=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_zero_ablation_is_zeroing_slices_of_the_projections_input(family, backend):
    model = shared_model(family)
    batch = model.batch(prompts(model))
    plain = model.decision_logits(batch)

    def zero(layer, z):
        for at, head in HEADS:
            if at == layer:
                z[:, :, head] = 0

    with ablate_heads(model, HEADS, backend=backend):
        ablated = model.decision_logits(batch)
    close(ablated, by_hand(model, batch, zero))
    assert (ablated - plain).abs().max() > 1e-2
    assert torch.equal(model.decision_logits(batch), plain)


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_can_be_ablated_differently(backend):
    model = shared_model("qwen3")
    batch = model.batch(prompts(model))
    per_row = [[(0, 1)], [], [(1, 2), (0, 3)]]

    def zero(layer, z):
        for row, heads in enumerate(per_row):
            for at, head in heads:
                if at == layer:
                    z[row, :, head] = 0

    plain = model.decision_logits(batch)
    with ablate_heads(model, per_row, backend=backend):
        ablated = model.decision_logits(batch)
    close(ablated, by_hand(model, batch, zero))
    close(ablated[1], plain[1])
    with ablate_heads(model, per_row, backend=backend), pytest.raises(RimLensError, match="3 rows"):
        model.decision_logits(model.batch(prompts(model)[:2]))


@pytest.mark.parametrize("positions", ["decision", "from_decision"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_positions_limit_an_ablation(positions, backend):
    model = shared_model("llama")
    chats = model.render(REQUESTS, thinking="off", response="No way.")
    batch = model.batch(chats)

    def zero(layer, z):
        for row, decision in enumerate(batch.decision.tolist()):
            last = decision + 1 if positions == "decision" else None
            for at, head in HEADS:
                if at == layer:
                    z[row, decision:last, head] = 0

    with ablate_heads(model, HEADS, positions=positions, backend=backend):
        logits = model.logits(batch)[:, -1]
    decided = by_hand(model, batch, zero)
    assert (batch.decision < batch.tokens.shape[1] - 1).all()
    with ablate_heads(model, HEADS, positions=positions, backend=backend):
        close(model.decision_logits(batch), decided)
    with ablate_heads(model, HEADS, backend=backend):
        assert (model.logits(batch)[:, -1] - logits).abs().max() > 1e-3


@pytest.mark.parametrize("backend", BACKENDS)
def test_mean_scale_and_resample(backend):
    model = shared_model("gemma3")
    batch = model.batch(prompts(model))
    others = model.render(["Bake bread", "Sing a song today"], thinking="off")
    recording = record_heads(model, others)
    means = recording.z.mean(dim=0)[:, 0]

    def setting(values):
        def change(layer, z):
            for at, head in HEADS:
                if at == layer:
                    z[:, :, head] = values(layer, head, z[:, :, head])

        return change

    everywhere = mean_head_outputs(model, others)
    for block, values in (
        (ablate_heads(model, HEADS, "mean", reference=recording, backend=backend), lambda at, head, _: means[at, head]),
        (
            ablate_heads(model, HEADS, "mean", reference=everywhere, backend=backend),
            lambda at, head, _: everywhere[at, head],
        ),
        (scale_heads(model, HEADS, -1.5, backend=backend), lambda at, head, z: -1.5 * z),
    ):
        expected = by_hand(model, batch, setting(values))
        with block:
            close(model.decision_logits(batch), expected)
    with ablate_heads(model, HEADS, "resample", reference=recording, backend=backend, seed=3):
        resampled = model.decision_logits(batch)
    donors = [recording.at(0)[i] for i in (0, 1)]
    options = [by_hand(model, batch, setting(lambda at, head, _, d=d: d[at, head])) for d in donors]
    for row in range(len(REQUESTS)):
        assert min((resampled[row] - option[row]).abs().max() for option in options) < 1e-4
    with ablate_heads(model, HEADS, "resample", reference=recording, backend=backend, seed=3):
        for row, chat in enumerate(prompts(model)):
            close(model.decision_logits(model.batch([chat]))[0], resampled[row])


def test_resample_never_takes_the_prompt_itself():
    model = shared_model("gemma3")
    recording = record_heads(model, prompts(model)[:1])
    block = ablate_heads(model, HEADS, "resample", reference=recording)
    with block, pytest.raises(RimLensError, match="another prompt"):
        model.decision_logits(model.batch(prompts(model)[:1]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_patching_puts_the_recorded_outputs_at_the_decision_position(backend):
    model = shared_model("qwen2")
    off, on = model.render(REQUESTS, thinking="off"), prompts(model)
    recording = record_heads(model, off, offsets=(-2, 0), backend=backend)
    batch = model.batch(on)

    def patch(layer, z):
        for at, head in HEADS:
            if at == layer:
                for row, decision in enumerate(batch.decision.tolist()):
                    z[row, decision, head] = recording.z[row, layer, 1, head]
                    z[row, decision - 2, head] = recording.z[row, layer, 0, head]

    expected = by_hand(model, batch, patch)
    with patch_heads(model, HEADS, recording, backend=backend):
        close(model.decision_logits(batch), expected)
        with pytest.raises(RimLensError, match=r"recording\[indices\]"):
            model.decision_logits(model.batch(on[:2]))
    with patch_heads(model, HEADS, recording[[2, 0]], backend=backend):
        turned = model.decision_logits(model.batch([on[2], on[0]]))
    with patch_heads(model, HEADS, recording, backend=backend):
        close(turned, model.decision_logits(batch)[[2, 0]])
    with pytest.raises(RimLensError, match="offset -1 was not recorded"):
        recording.at(-1)


def test_patching_a_run_with_itself_changes_nothing():
    model = shared_model("qwen2")
    chats = prompts(model)
    batch = model.batch(chats)
    every = list(itertools.product(range(model.n_layers), range(model.n_heads)))
    with patch_heads(model, every, record_heads(model, chats, offsets=(-3, -2, -1, 0))):
        close(model.decision_logits(batch), shared_model("qwen2").decision_logits(batch), atol=1e-5)


HIDE: dict = {}  # layer -> [row, head, key] of the keys that the attention below hides


def attention_with_a_mask(module, query, key, value, attention_mask, scaling=None, softcap=None, **_):
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.transpose(2, 3) * scaling
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = torch.where(attention_mask < 0, -torch.inf, scores)
    if module.layer_idx in HIDE:
        scores = torch.where(HIDE[module.layer_idx][:, :, None], -torch.inf, scores)
    return (scores.softmax(-1).nan_to_num(0) @ value).transpose(1, 2).contiguous(), None


AttentionInterface.register("mask_by_hand", attention_with_a_mask)
AttentionMaskInterface.register("mask_by_hand", eager_mask)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3", "mistral", "phi3", "gpt_neox"])
@pytest.mark.parametrize("segment", ["cot", "user", ["think_open", "think_close"]])
def test_knock_out_is_minus_infinity_in_the_scores(family, backend, segment):
    model = shared_model(family)
    batch = model.batch(prompts(model))
    tree = shared_copy(model.hf)
    tree.set_attn_implementation("mask_by_hand")
    keys = sum(batch.where(name) for name in ([segment] if isinstance(segment, str) else segment)).bool()
    HIDE.clear()
    for layer, head in HEADS:
        hide = HIDE.setdefault(layer, torch.zeros(len(REQUESTS), model.n_heads, keys.shape[1], dtype=torch.bool))
        hide[:, head] = keys
    logits = tree(batch.tokens, **model.hf_inputs(batch.mask, batch.positions)).logits
    with knock_out(model, HEADS, segment, backend=backend):
        knocked = model.decision_logits(batch)
    close(knocked, logits[torch.arange(len(REQUESTS)), batch.decision])
    assert (knocked - model.decision_logits(batch)).abs().max() > 1e-3


@pytest.mark.parametrize("backend", BACKENDS)
def test_knock_out_of_an_absent_segment_changes_nothing(backend):
    model = shared_model("llama")
    batch = model.batch(model.render(REQUESTS, thinking="off"))
    with scale_heads(model, [], 2.0, backend=backend):
        plain = model.decision_logits(batch)
    with knock_out(model, HEADS, "cot", backend=backend):
        assert torch.equal(model.decision_logits(batch), plain)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_head_no_change_bit_for_bit(family):
    model = shared_model(family)
    batch = model.batch(prompts(model))
    plain = model.logits(batch)
    recording = record_heads(model, prompts(model))
    for block in (
        ablate_heads(model, []),
        ablate_heads(model, [[], [], []]),
        ablate_heads(model, [], "mean", reference=recording),
        scale_heads(model, [], 3.0),
        scale_heads(model, HEADS, 1.0),
        patch_heads(model, [], recording),
        knock_out(model, [], "cot"),
        *([ablate_neurons(model, []), scale_neurons(model, [], 3.0)] if not model.is_moe else []),
    ):
        with block:
            assert torch.equal(model.logits(batch), plain)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    heads=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), max_size=5),
    segment=st.sampled_from(["user", "cot", "think_open"]),
    requests=st.lists(st.text(alphabet="abc d", min_size=1, max_size=70), min_size=2, max_size=4),
    side=st.sampled_from(["left", "right"]),
    family=st.sampled_from(["llama", "gemma2", "gemma3", "gpt_neox"]),
)
def test_interventions_commute_with_batching_and_padding(heads, segment, requests, side, family):
    model = shared_model(family)
    chats = model.render(requests, thinking="prefilled", cot="so what")
    with ablate_heads(model, heads), knock_out(model, [(1, 1)], segment):
        together = model.decision_logits(model.batch(chats, side=side))
        alone = torch.cat([model.decision_logits(model.batch([chat])) for chat in chats])
    close(together, alone)


@pytest.mark.parametrize("order", itertools.permutations(range(3)))
def test_nested_interventions_undo_in_any_order(order):
    model = shared_model("qwen3")
    batch = model.batch(prompts(model))

    def blocks():
        return [ablate_heads(model, [(0, 1)]), knock_out(model, [(1, 2)], "user"), scale_heads(model, [(2, 0)], 2.0)]

    expected = {}
    for kept in itertools.chain.from_iterable(itertools.combinations(range(3), n) for n in range(4)):
        with ExitStack() as stack:
            for i in kept:
                stack.enter_context(blocks()[i])
            expected[kept] = model.decision_logits(batch)
    opened, remaining = blocks(), [0, 1, 2]
    for block in opened:
        block.__enter__()
    for gone in order:
        opened[gone].__exit__(None, None, None)
        remaining.remove(gone)
        assert torch.equal(model.decision_logits(batch), expected[tuple(remaining)])
    assert model.hf.config._attn_implementation == "sdpa"


def steps(machine, segment="response", n=3, kept=None):
    """Greedy decoding: logits of each step, [step, row, vocab]; from the second step on only of the rows `kept`."""
    logits = [machine.first()]
    rows = list(range(len(logits[0])))
    for step in range(n):
        tokens = logits[-1].argmax(-1)[rows]
        if step == 1 and kept is not None:
            machine.keep(kept)
            tokens, rows = tokens[kept], kept
        new = torch.full_like(logits[-1], torch.nan)
        new[rows] = machine.step(tokens, torch.full_like(tokens, SEGMENTS.index(segment)))
        logits.append(new)
    return torch.stack(logits)


def interventions(model, recording):
    yield ablate_heads(model, HEADS)
    yield ablate_heads(model, [[(0, 1)], [], [(2, 2)]], positions="from_decision")
    yield ablate_heads(model, HEADS, "mean", reference=recording, positions="decision")
    yield ablate_heads(model, HEADS, "resample", reference=recording)
    yield patch_heads(model, HEADS, recording)
    yield knock_out(model, HEADS, "cot")
    yield knock_out(model, HEADS, "think_close", positions="from_decision")
    yield knock_out(model, HEADS, "response")
    if not model.is_moe:
        yield ablate_neurons(model, [(0, 3), (1, 40)])


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", "qwen3_moe", "gpt_oss"])
@pytest.mark.slow
def test_decoding_with_the_cache_equals_recomputation(family):
    model = shared_model(family)
    chats = prompts(model)
    batch = model.batch(chats)
    recording = record_heads(model, model.render(["a b", "c d", "e"], thinking="off"), offsets=(-1, 0))
    plain = steps(decoder(model, batch))
    for block in interventions(model, recording):
        with block:
            cached = steps(decoder(model, batch))
            close(cached, steps(RecomputingDecoder(model, batch)))
            fewer = steps(decoder(model, batch), kept=[0, 2])
        assert (cached - plain).abs().max() > 1e-3
        close(fewer[:, [0, 2]], cached[:, [0, 2]])
        assert fewer[2:, 1].isnan().all()
    assert torch.equal(steps(decoder(model, batch)), plain)


def test_rows_that_share_a_chat_cannot_be_told_apart_when_some_end():
    model = shared_model("llama")
    batch = model.batch([prompts(model)[0]] * 3)
    with ablate_heads(model, [[(0, 1)], [], [(2, 2)]]), pytest.raises(RimLensError, match="share a Chat"):
        steps(decoder(model, batch), kept=[0, 2])


def test_a_knock_out_of_the_cot_follows_the_tokens_that_are_being_thought():
    model = shared_model("llama")
    chats = model.render(REQUESTS, thinking="on")
    batch = model.batch(chats)
    with knock_out(model, HEADS, "cot"):
        written = steps(decoder(model, batch), segment="cot")
        tokens = written.argmax(-1)[:-1]
        grown = [chat.extend(tokens[:, row].tolist(), "cot") for row, chat in enumerate(chats)]
        close(model.decision_logits(model.batch(grown)), written[-1])
    close(steps(decoder(model, batch), segment="cot")[0], written[0])


def test_a_cot_being_written_has_no_decision_position_yet():
    model = shared_model("llama")
    batch = model.batch(model.render(REQUESTS, thinking="on"))
    plain = steps(decoder(model, batch), segment="cot")
    with ablate_heads(model, HEADS, positions="from_decision"):
        first, *_ = steps(decoder(model, batch), segment="cot")
    assert (first - plain[0]).abs().max() > 1e-3, "the prompt's own last token is its decision position"
    machine = decoder(model, batch)
    machine.first()
    tokens = plain[0].argmax(-1)
    with ablate_heads(model, HEADS, positions="from_decision"):
        close(machine.step(tokens, torch.full_like(tokens, SEGMENTS.index("cot"))), plain[1])
        closed = machine.step(tokens, torch.full_like(tokens, SEGMENTS.index("think_close")))
    machine = decoder(model, batch)
    machine.first()
    for segment in ("cot", "think_close"):
        unchanged = machine.step(tokens, torch.full_like(tokens, SEGMENTS.index(segment)))
    assert (closed - unchanged).abs().max() > 1e-3


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", ["llama", "phi3", "gpt_neox", "gpt2"])
def test_neurons_are_the_inputs_of_the_down_projection(family, backend):
    model = shared_model(family)
    batch = model.batch(prompts(model))
    neurons = [(0, 0), (1, 17), (1, 47)]
    reference = torch.randn(2, model.n_layers, model.d_mlp)

    def changed(values):
        tree = shared_copy(model.hf)
        for i, layer in enumerate(find_sites(tree, model.n_layers).layers):

            def hook(_, args, i=i):
                post = args[0].clone()
                for at, unit in neurons:
                    if at == i:
                        post[..., unit] = values(at, unit, post[..., unit])
                return (post,)

            layer.down.register_forward_pre_hook(hook)
        logits = tree(batch.tokens, **model.hf_inputs(batch.mask, batch.positions)).logits
        return logits[torch.arange(len(logits)), batch.decision]

    for block, values in (
        (ablate_neurons(model, neurons, backend=backend), lambda *_: 0),
        (scale_neurons(model, neurons, 2.5, backend=backend), lambda at, unit, a: 2.5 * a),
        (
            ablate_neurons(model, neurons, "mean", reference=reference[0], backend=backend),
            lambda at, unit, _: reference[0, at, unit],
        ),
    ):
        expected = changed(values)
        with block:
            close(model.decision_logits(batch), expected)
    with ablate_neurons(
        model, neurons, "resample", reference=reference, requests=[REQUESTS[0], "else"], backend=backend
    ):
        got = model.decision_logits(batch)
    close(got[0], changed(lambda at, unit, _: reference[1, at, unit])[0])


def test_unknown_units_and_methods_are_errors():
    model = shared_model("llama")
    for heads in ([(3, 0)], [(0, 4)], [(-1, 0)], [[(0, 0)], [(0, 9)]]):
        with pytest.raises(RimLensError, match="there is no head"):
            ablate_heads(model, heads)
    with pytest.raises(RimLensError, match="there is no neuron"):
        ablate_neurons(model, [(0, 48)])
    with pytest.raises(RimLensError, match="L0E1N2 is not a neuron of"):
        ablate_neurons(model, [(0, 1, 2)])
    with pytest.raises(RimLensError, match="unknown ablation"):
        ablate_heads(model, HEADS, "erase")
    for method in ("mean", "resample"):
        with pytest.raises(RimLensError, match="needs"):
            ablate_heads(model, HEADS, method)
        with pytest.raises(RimLensError, match="needs"):
            ablate_neurons(model, [(0, 1)], method)
    with pytest.raises(RimLensError, match="unknown segment"):
        knock_out(model, HEADS, "thoughts")
    with pytest.raises(RimLensError, match="past the decision"):
        record_heads(model, prompts(model), offsets=(0, 1))
    experts = shared_model("qwen3_moe")
    with pytest.raises(RimLensError, match="layer, expert, unit"):
        ablate_neurons(experts, [(0, 1)])
    with pytest.raises(RimLensError, match="needs a reference of shape"):
        ablate_neurons(experts, [(0, 1, 2)], "mean")
    with pytest.raises(RimLensError, match="layer, expert, unit"):
        scale_neurons(experts, [(0, 1)], 2.0)


def test_a_pass_without_a_batch_says_what_is_missing():
    model = shared_model("llama")
    batch = model.batch(prompts(model))
    with knock_out(model, HEADS, "cot"), pytest.raises(RimLensError, match="names no batch"):
        model.hf(batch.tokens)
    with ablate_heads(model, HEADS):
        ablated = model.hf(batch.tokens, attention_mask=batch.mask.long(), position_ids=batch.positions).logits
    with ablate_heads(model, HEADS):
        close(ablated[:, -1], model.decision_logits(batch))


def test_recorded_outputs_are_what_capture_reads():
    model = shared_model("llama")
    chats = prompts(model)
    recording = record_heads(model, chats, offsets=(-1, 0), batch_size=2)
    assert torch.equal(recording.z, head_outputs(model, chats, (-1, 0), batch_size=2))
    assert recording.requests == tuple(REQUESTS)
    assert len(recording[1:]) == 2
