"""Neuron moments against plain loops over activations that ordinary torch hooks caught, one unpadded chat at a time."""

import numpy as np
import pytest
import torch
from families import FAMILIES, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rim_lens.capture.moments import Moments, moments_of
from rim_lens.capture.neurons import neuron_activations
from rim_lens.errors import RimLensError
from rim_lens.intervene import ablate_neurons

REQUESTS = ["hello there", "how do I do this thing?", "a", "tell me of birds and of the sea, please"]
RESPONSES = ["yes sure", "no", "I cannot say that.", "well, they fly"]
DOWN = {"gpt_neox": "dense_4h_to_h", "gpt2": "c_proj"}
MIXTURES = ("qwen3_moe", "gpt_oss")
DENSE = [family for family in FAMILIES if family not in MIXTURES]


def chats_of(model):
    return model.render(REQUESTS, response=RESPONSES)


def caught(model, modules, chat):
    """What goes into `modules` when one chat runs alone: a list of argument tuples."""
    inputs = []
    handles = [module.register_forward_pre_hook(lambda _, args: inputs.append(args)) for module in modules]
    try:
        with torch.no_grad():
            model.hf(torch.from_numpy(chat.token_ids)[None])
    finally:
        for handle in handles:
            handle.remove()
    return inputs


def dense_neurons(model, family, chat):
    """[layer, pos, unit]"""
    name = DOWN.get(family, "down_proj")
    modules = [m for n, m in model.hf.named_modules() if n.endswith("mlp." + name)]
    return np.stack([args[0][0].double().numpy() for args in caught(model, modules, chat)])


def expert_neurons(model, family, chat):
    """[layer, pos, expert, unit]: token by token and expert by expert, weighted by the routing probability."""
    modules = [m for n, m in model.hf.named_modules() if n.endswith("mlp.experts")]
    layers = []
    for experts, (hidden, index, weights) in zip(modules, caught(model, modules, chat), strict=True):
        found = np.zeros((len(hidden), experts.num_experts, model.d_mlp))
        for token in range(len(hidden)):
            for expert, weight in zip(index[token].tolist(), weights[token].tolist(), strict=True):
                post = one_expert(experts, family, expert, hidden[token])
                found[token, expert] = weight * post.double().numpy()
        layers.append(found)
    return np.stack(layers)


def one_expert(experts, family, expert, x):
    if family == "gpt_oss":
        both = x @ experts.gate_up_proj[expert] + experts.gate_up_proj_bias[expert]
        gate, up = both[::2].clamp(max=experts.limit), both[1::2].clamp(-experts.limit, experts.limit)
        return (up + 1) * gate * torch.sigmoid(gate * experts.alpha)
    gate, up = (experts.gate_up_proj[expert] @ x).chunk(2)
    return torch.nn.functional.silu(gate) * up


def neurons_of(model, family, chat):
    return (expert_neurons if family in MIXTURES else dense_neurons)(model, family, chat)


@pytest.mark.parametrize("family", FAMILIES)
def test_moments_equal_a_loop_over_cached_activations(family):
    model = tiny_model(family)
    chats = chats_of(model)
    measured = neuron_activations(model, chats, "response", per_prompt=True, batch_size=3, threshold=0.05)
    each = [neurons_of(model, family, chat)[:, chat.where("response")] for chat in chats]
    tokens = np.concatenate(each, axis=1)
    assert measured.n_tokens == tokens.shape[1]
    assert measured.n_prompts == 4
    np.testing.assert_allclose(measured.mean, tokens.mean(axis=1), atol=2e-5)
    np.testing.assert_allclose(measured.variance, tokens.var(axis=1), rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(measured.magnitude, np.abs(tokens).mean(axis=1), atol=2e-5)
    near = (np.abs(tokens - 0.05) < 1e-5).any(axis=1)
    np.testing.assert_allclose(measured.firing_rate[~near], (tokens > 0.05).mean(axis=1)[~near], atol=1e-6)
    for prompt, activations in enumerate(each):
        np.testing.assert_allclose(measured.prompt_mean[prompt], activations.mean(axis=1), atol=2e-5)
        np.testing.assert_allclose(measured.prompt_magnitude[prompt], np.abs(activations).mean(axis=1), atol=2e-5)


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gemma2"])
def test_both_backends_read_the_same_neurons(family):
    model = tiny_model(family)
    chats = chats_of(model)
    fast = neuron_activations(model, chats, ("user", "response"), batch_size=2)
    hooks = neuron_activations(model, chats, ("user", "response"), batch_size=2, backend="hooks")
    for name in ("mean", "variance", "magnitude"):
        np.testing.assert_allclose(getattr(fast, name), getattr(hooks, name), atol=3e-5)


@pytest.mark.parametrize(
    ("positions", "chosen"),
    [
        ("decision", lambda chat: np.arange(len(chat)) == chat.decision_position),
        ("all", lambda chat: np.ones(len(chat), dtype=bool)),
        (("user", "assistant_tag"), lambda chat: chat.where("user") | chat.where("assistant_tag")),
        ((-1, 0), lambda chat: np.isin(np.arange(len(chat)) - chat.decision_position, (-1, 0))),
    ],
)
def test_positions(positions, chosen):
    model = tiny_model("llama")
    chats = chats_of(model)
    measured = neuron_activations(model, chats, positions, batch_size=4)
    tokens = np.concatenate([dense_neurons(model, "llama", chat)[:, chosen(chat)] for chat in chats], axis=1)
    assert measured.n_tokens == tokens.shape[1]
    np.testing.assert_allclose(measured.mean, tokens.mean(axis=1), atol=2e-5)


@pytest.mark.parametrize(
    ("family", "rows"), [("qwen3", [[2, 5], [0, 1], [0, 47]]), ("qwen3_moe", [[1, 3, 2], [0, 0, 15]])]
)
def test_values_per_prompt_of_some_neurons(family, rows):
    model = tiny_model(family)
    rows = np.array(rows)
    every = neuron_activations(model, chats_of(model), per_prompt=True, batch_size=2)
    some = neuron_activations(model, chats_of(model), per_prompt=rows, batch_size=2)
    assert some.prompt_mean.shape == (4, len(rows))
    for measure in ("magnitude", "signed"):
        np.testing.assert_allclose(some.of_prompts(rows, measure), every.of_prompts(rows, measure), atol=1e-6)
        f = (some.of_prompts(rows, measure) * some.prompt_tokens[:, None]).sum(axis=0) / some.n_tokens
        np.testing.assert_allclose(f, every.values(measure)[tuple(rows.T)], atol=1e-6)
    with pytest.raises(RimLensError, match="were not kept"):
        some.of_prompts(rows + 0 * rows + (rows == rows[0]), "signed")
    with pytest.raises(RimLensError, match="per_prompt"):
        neuron_activations(model, chats_of(model)).of_prompts(rows)


def test_merged_parts_equal_the_whole():
    model = tiny_model("llama")
    chats = chats_of(model)
    whole = neuron_activations(model, chats, per_prompt=True)
    parts = [neuron_activations(model, part, per_prompt=True) for part in (chats[:1], chats[1:])]
    merged = parts[0].merge(parts[1])
    assert merged.n_tokens == whole.n_tokens
    for name in ("mean", "variance", "magnitude", "firing_rate", "prompt_mean", "prompt_magnitude"):
        np.testing.assert_allclose(getattr(merged, name), getattr(whole, name), atol=1e-5)
    with pytest.raises(RimLensError, match="cannot be merged"):
        whole.merge(neuron_activations(model, chats, "user", per_prompt=True))


def test_reading_leaves_the_model_and_its_outputs_alone():
    for family in ("llama", "qwen3_moe"):
        model = tiny_model(family)
        batch = model.batch(chats_of(model))
        before = model.logits(batch)
        neuron_activations(model, chats_of(model))
        assert torch.equal(model.logits(batch), before)
        assert not model.active_taps


def test_ablated_neurons_read_as_zero():
    model = tiny_model("llama")
    with ablate_neurons(model, [(1, 7), (2, 0)]):
        measured = neuron_activations(model, chats_of(model))
    assert measured.magnitude[1, 7] == measured.magnitude[2, 0] == 0
    assert (measured.magnitude > 0).sum() == measured.magnitude.size - 2


def test_errors_say_what_is_wrong():
    model = tiny_model("llama")
    with pytest.raises(RimLensError, match="no token at positions 'response'"):
        neuron_activations(model, model.render(["hello"]))
    with pytest.raises(RimLensError, match="unknown positions"):
        neuron_activations(model, chats_of(model), "thoughts")
    with pytest.raises(RimLensError, match="pass at least one"):
        neuron_activations(model, [])
    with pytest.raises(RimLensError, match="outside the model"):
        neuron_activations(model, chats_of(model), per_prompt=np.array([[0, 48]]))
    with pytest.raises(RimLensError, match=r"\(layer, unit\)"):
        neuron_activations(model, chats_of(model), per_prompt=np.array([[0, 1, 2]]))


@settings(max_examples=60, deadline=None)
@given(
    arrays(np.float32, st.tuples(st.integers(1, 300), st.integers(1, 5)), elements=st.floats(-4, 4, width=32)),
    st.floats(-1e3, 1e3),
    st.data(),
)
def test_streamed_moments_equal_numpy_also_far_from_zero(values, offset, data):
    values = (values + np.float32(offset)).astype(np.float32)
    cut = data.draw(st.integers(0, len(values)))
    moments = Moments.zeros(1, values.shape[1])
    for part in (values[:cut], values[cut:]):
        index = torch.arange(len(part))
        moments.add(0, moments_of(torch.from_numpy(part), index, torch.ones(1, len(part))).moments)
    exact = values.astype(np.float64)
    scale = 1 + abs(offset)
    np.testing.assert_allclose(moments.mean[0], exact.mean(axis=0), atol=2e-6 * scale)
    np.testing.assert_allclose(moments.variance[0], exact.var(axis=0), rtol=1e-4, atol=1e-5)
    summing = len(values) * 2.0**-24  # a float32 sum of one sign is off by this share at most
    np.testing.assert_allclose(moments.mean_absolute[0], np.abs(exact).mean(axis=0), rtol=2e-6 + summing, atol=1e-6)
    np.testing.assert_allclose(moments.firing_rate[0], (exact > 0).mean(axis=0))
