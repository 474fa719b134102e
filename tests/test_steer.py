"""Steering against plain transformers: orthogonalized weights, hooks on blocks, a loop of whole passes."""

import copy

import numpy as np
import pytest
import torch
from families import FAMILIES, MORE_FAMILIES, shared_model, tiny_model
from torch import nn

from rim_lens import RimLensError, generate, residuals, steer
from rim_lens.model.taps import Tap

REQUESTS = ["How do I pick a lock?", "Tell me a long story about animals at night, please.", "Hi"]
PLAIN = ["llama", "qwen2", "qwen3", "mistral", "phi3", "gpt_neox", "gpt2", "qwen3_moe", "gpt_oss"]
NORMED = ["gemma2", "gemma3", "olmo2"]  # a norm stands between what a matrix writes and the stream
OUTPUTS = ("o_proj", "down_proj", "dense", "dense_4h_to_h", "c_proj")


def chats_of(model, cot="hm, let me see"):
    return model.render(REQUESTS, thinking="prefilled", cot=cot)


def direction(model, seed=0):
    return torch.randn(model.d_model, generator=torch.Generator().manual_seed(seed), dtype=torch.float32) * 3


def plain_logits(hf, model, batch):
    with torch.no_grad():
        logits = hf(batch.tokens, **model.hf_inputs(batch.mask, batch.positions)).logits
    return logits[torch.arange(len(logits)), batch.decision]


def orthogonalized(model, vector):
    """A copy of the model whose writes to the residual stream have no part along a direction."""
    hf, unit = copy.deepcopy(model.hf), (vector / vector.norm())
    away = torch.eye(model.d_model) - torch.outer(unit, unit)
    seen = 0
    with torch.no_grad():
        for name, module in hf.named_modules():
            last = name.rsplit(".", 1)[-1]
            if isinstance(module, nn.Embedding):
                module.weight.copy_(module.weight @ away)
            elif last in OUTPUTS and hasattr(module, "weight"):
                is_linear = isinstance(module, nn.Linear)
                module.weight.copy_(away @ module.weight if is_linear else module.weight @ away)
                seen += 1
                if getattr(module, "bias", None) is not None:
                    module.bias.copy_(away @ module.bias)
            elif hasattr(module, "down_proj") and isinstance(module.down_proj, nn.Parameter):  # experts
                down = module.down_proj
                down.copy_(down @ away if getattr(module, "is_transposed", False) else away @ down)
                seen += 1
                if getattr(module, "down_proj_bias", None) is not None:
                    module.down_proj_bias.copy_(module.down_proj_bias @ away)
    assert seen == 2 * model.n_layers
    return hf


@pytest.mark.parametrize("backend", ["fast", "hooks"])
@pytest.mark.parametrize("family", PLAIN)
def test_projecting_out_is_taking_the_direction_out_of_the_weights(family, backend):
    model = tiny_model(family, tie_word_embeddings=False) if family == "gpt2" else shared_model(family)
    vector, batch = direction(model), model.batch(chats_of(model))
    before = model.decision_logits(batch)
    with steer(model, vector, project_out=True, backend=backend):
        edited = model.decision_logits(batch)
    expected = plain_logits(orthogonalized(model, vector), model, batch)
    torch.testing.assert_close(edited, expected, atol=1e-4, rtol=0)
    assert (edited - before).abs().max() > 1e-2
    assert torch.equal(model.decision_logits(batch), before)


@pytest.mark.parametrize("family", [*NORMED, "qwen3_next"])
def test_nothing_of_the_direction_is_left_in_the_stream_behind_output_norms(family):
    model = shared_model(family)
    vector = direction(model)
    unit = vector / vector.norm()
    with steer(model, vector, project_out=True):
        left = residuals(model, chats_of(model), "all").nan_to_num(0) @ unit
    assert left.abs().max() < 1e-4
    assert (residuals(model, chats_of(model), "all").nan_to_num(0) @ unit).abs().max() > 0.1


class Writes(Tap):
    """Everything that is added to the stream, and the stream."""

    def __init__(self):
        self.sum, self.stream = {}, {}

    def on_residual(self, layer, resid):
        self.stream[layer] = resid

    def on_attention_write(self, layer, written):
        self.sum[layer] = written

    def on_mlp_write(self, layer, written):
        self.sum[layer] = self.sum[layer] + written


@pytest.mark.parametrize("backend", ["fast", "hooks"])
@pytest.mark.parametrize("family", [*FAMILIES, "olmo2", "qwen3_next"])
def test_the_stream_is_the_sum_of_what_is_written_to_it(family, backend):
    if backend == "hooks" and family == "qwen3_next":
        pytest.skip("TransformerLens calls linear attention's output by another name")
    model, tap = shared_model(family), Writes()
    batch = model.batch(chats_of(model))
    with torch.no_grad(), model.tap(tap, backend=backend):
        model.decision_logits(batch)
    for layer in range(model.n_layers):
        gap = (tap.stream[layer] + tap.sum[layer] - tap.stream[layer + 1])[batch.mask]
        assert gap.abs().max() < 1e-4


def hooked(model, batch, layer, change):
    """Logits of a copy whose stream entering `layer` goes through `change`."""
    hf = copy.deepcopy(model.hf)
    block = hf.model.layers[layer]
    block.register_forward_pre_hook(lambda _, args: (change(args[0].clone()), *args[1:]))
    return plain_logits(hf, model, batch)


@pytest.mark.parametrize("backend", ["fast", "hooks"])
def test_adding_and_clamping_at_one_layer_are_what_a_hook_there_does(backend):
    model = shared_model("llama")
    vector, batch = direction(model), model.batch(chats_of(model))
    unit = vector / vector.norm()
    with steer(model, vector, add=0.7, layers=1, backend=backend):
        added = model.decision_logits(batch)
    torch.testing.assert_close(added, hooked(model, batch, 1, lambda x: x + 0.7 * vector), atol=1e-4, rtol=0)
    with steer(model, vector, clamp=2.0, layers=[1], backend=backend):
        clamped = model.decision_logits(batch)
    by_hand = hooked(model, batch, 1, lambda x: x - (x @ unit)[..., None] * unit + 2 * unit)
    torch.testing.assert_close(clamped, by_hand, atol=1e-4, rtol=0)
    with steer(model, vector, project_out=True, layers=[1], backend=backend):
        projected = model.decision_logits(batch)
    by_hand = hooked(model, batch, 1, lambda x: x - (x @ unit)[..., None] * unit)
    torch.testing.assert_close(projected, by_hand, atol=1e-4, rtol=0)


@pytest.mark.parametrize("backend", ["fast", "hooks"])
@pytest.mark.parametrize("phase", ["prompt", "thinking", "answer", "decision", "from_decision"])
def test_a_phase_limits_where_the_stream_is_changed(phase, backend):
    model = shared_model("llama")
    chats = model.render(REQUESTS, thinking="prefilled", cot="hm, let me see", response="No way.")
    vector, batch = direction(model), model.batch(chats)
    segments = {
        "prompt": ("system", "user", "assistant_tag"),
        "thinking": ("think_open", "cot"),
        "answer": ("think_close", "response"),
    }
    column = torch.arange(batch.tokens.shape[1])[None]
    if phase == "decision":
        at = column == batch.decision[:, None]
    elif phase == "from_decision":
        at = column >= batch.decision[:, None]
    else:
        at = torch.stack([batch.where(segment) for segment in segments[phase]]).any(0)
    hf = copy.deepcopy(model.hf)
    hook = lambda _, args: (args[0] + at[..., None] * vector, *args[1:])  # noqa: E731
    hf.model.layers[1].register_forward_pre_hook(hook)
    with torch.no_grad():
        expected = hf(batch.tokens, **model.hf_inputs(batch.mask, batch.positions)).logits[:, -1]
    with steer(model, vector, add=1.0, layers=1, positions=phase, backend=backend):
        torch.testing.assert_close(model.logits(batch)[:, -1], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("positions", ["all", "thinking", "answer"])
def test_generation_with_a_cache_is_generation_by_whole_passes(positions):
    model = shared_model("llama")
    vector = direction(model)
    options = {"thinking": "on", "cot_budget": 4, "max_new_tokens": 4, "temperature": 0, "progress": False}
    texts = []
    for backend in ("fast", "hooks"):
        with steer(model, vector, add=1.0, layers=1, positions=positions, backend=backend):
            texts.append([(one.cot, one.response) for one in generate(model, REQUESTS, **options)])
    assert texts[0] == texts[1]
    assert texts[0] != [(one.cot, one.response) for one in generate(model, REQUESTS, **options)]


def test_each_row_can_have_a_direction_of_its_own_and_blocks_nest():
    model = shared_model("llama")
    batch = model.batch(chats_of(model))
    vectors = [direction(model, seed).numpy() for seed in range(3)]
    with steer(model, vectors, project_out=True):
        together = model.decision_logits(batch)
    for row, vector in enumerate(vectors):
        with steer(model, vector, project_out=True):
            torch.testing.assert_close(together[row], model.decision_logits(batch)[row], atol=1e-5, rtol=0)
    plain = model.decision_logits(batch)
    with steer(model, vectors[0], add=1.0, layers=1), steer(model, vectors[0], add=-1.0, layers=1):
        torch.testing.assert_close(model.decision_logits(batch), plain, atol=1e-4, rtol=0)


def test_what_cannot_be_steered_is_refused():
    model = shared_model("llama")
    vector = np.ones(model.d_model)
    for options, match in (
        ({}, "one of add="),
        ({"add": 1.0, "clamp": 0.0, "layers": 1}, "one of add="),
        ({"add": 1.0}, "pass layers="),
        ({"add": 1.0, "layers": 9}, "0 to 3"),
    ):
        with pytest.raises(RimLensError, match=match):
            steer(model, vector, **options)
    for wrong, match in ((np.ones(5), "32 numbers"), (np.zeros(32), "length 0"), (vector * np.nan, "not finite")):
        with pytest.raises(RimLensError, match=match):
            steer(model, wrong, project_out=True)
    with steer(model, vector, add=1.0, layers=1, positions="nowhere"), pytest.raises(RimLensError, match="nowhere"):
        model.decision_logits(model.batch(chats_of(model)))
    assert set(NORMED) <= set(FAMILIES) | set(MORE_FAMILIES)
