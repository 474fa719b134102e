"""Mixtures of experts with shared experts and dense layers.

Every neuron has a name, is read and ablated, and none is made up.
"""

import numpy as np
import pytest
import torch
from families import tiny_model
from test_check import verdicts
from test_neurons import REQUESTS, chats_of, expert_neurons

from rim_lens import (
    PromptSet,
    RimLensError,
    check_model,
    find_safety_neurons,
    neuron_activations,
    refusal_forcing_pairs,
)
from rim_lens.capture import matched_controls
from rim_lens.capture.neuron_values import record_neurons
from rim_lens.data import Prompt
from rim_lens.intervene.neurons import ablate_neurons
from rim_lens.model.mixture_layers import existing
from rim_lens.stats import activation_strata, matched_neuron_sets
from rim_lens.training_time.direct_effect import direct_effects

DENSE, WIDTH = 1, 40  # two blocks of 16 and one of 8


@pytest.fixture(scope="module")
def model():
    return tiny_model("qwen3_moe", mlp_only_layers=[DENSE], intermediate_size=WIDTH)


@pytest.fixture(scope="module")
def measured(model):
    return neuron_activations(model, chats_of(model), per_prompt=True, batch_size=3)


def dense_of(model, chat):
    """[pos, unit] of the dense layer, caught by a plain hook."""
    inputs = []
    down = model.hf.model.layers[DENSE].mlp.down_proj
    handle = down.register_forward_pre_hook(lambda _, args: inputs.append(args[0][0].double().numpy()))
    with torch.no_grad():
        model.hf(torch.from_numpy(chat.token_ids)[None])
    handle.remove()
    return inputs[0]


def test_dense_neurons_are_read_in_blocks_and_experts_as_before(model, measured):
    chats = chats_of(model)
    dense = np.concatenate([dense_of(model, chat)[chat.where("response")] for chat in chats])
    experts = [expert_neurons(model, "qwen3_moe", chat)[:, chat.where("response")] for chat in chats]
    tokens = np.concatenate(experts, axis=1)
    np.testing.assert_allclose(measured.mean[DENSE].ravel()[:WIDTH], dense.mean(axis=0), atol=2e-5)
    np.testing.assert_allclose(measured.variance[DENSE].ravel()[:WIDTH], dense.var(axis=0), atol=2e-5)
    np.testing.assert_allclose(measured.magnitude[[0, 2]], np.abs(tokens).mean(axis=1), atol=2e-5)
    np.testing.assert_allclose(measured.firing_rate[DENSE].ravel()[:WIDTH], (dense > 0).mean(axis=0), atol=1e-6)


def test_what_lies_beyond_a_dense_layer_does_not_exist(model, measured):
    absent = ~existing(model)
    assert absent.sum() == 4 * 16 - WIDTH
    for name in ("mean", "variance", "magnitude", "firing_rate"):
        assert np.array_equal(np.isnan(getattr(measured, name)), absent)
    assert np.isnan(measured.prompt_mean[:, absent]).all()
    assert not np.isnan(measured.prompt_magnitude[:, ~absent]).any()
    assert measured.n_neurons == len(measured.to_dataframe()) == 2 * 64 + WIDTH
    parts = [neuron_activations(model, part, per_prompt=True) for part in (chats_of(model)[:1], chats_of(model)[1:])]
    np.testing.assert_allclose(parts[0].merge(parts[1]).mean, measured.mean, atol=1e-6)
    for call in (
        lambda: ablate_neurons(model, [(DENSE, 2, 8)]),
        lambda: neuron_activations(model, chats_of(model), per_prompt=np.array([[DENSE, 2, 8]])),
        lambda: direct_effects(model, np.array([[DENSE, 3, 0]])),
        lambda: matched_controls(np.array([[DENSE, 2, 8]]), 2, base=measured),
    ):
        with pytest.raises(RimLensError, match=r"no neuron L1E2N8|lies outside"):
            call()


def test_values_token_by_token(model):
    rows, chats = np.array([[DENSE, 2, 7], [0, 1, 3], [DENSE, 0, 0]]), chats_of(model)
    with record_neurons(model, rows) as seen:
        model.logits(model.batch(chats))
    for chat in chats:
        np.testing.assert_allclose(seen.of(chat)[:, [0, 2]], dense_of(model, chat)[:, [39, 0]], atol=1e-5)


def test_ablation_equals_zeroing_the_column_for_each_row(model):
    chats = chats_of(model)
    batch = model.batch(chats)
    untouched = model.decision_logits(batch)
    down = model.hf.model.layers[DENSE].mlp.down_proj.weight
    kept = down.detach().clone()
    with torch.no_grad():
        down[:, [5, 16 + 3, 39]] = 0
        expected = model.decision_logits(batch)
        down.copy_(kept)
    neurons = [(DENSE, 0, 5), (DENSE, 1, 3), (DENSE, 2, 7)]
    with ablate_neurons(model, neurons):
        torch.testing.assert_close(model.decision_logits(batch), expected, atol=1e-5, rtol=1e-5)
        with ablate_neurons(model, [(0, 1, 2)]):
            pass
        torch.testing.assert_close(model.decision_logits(batch), expected, atol=1e-5, rtol=1e-5)
    with ablate_neurons(model, [neurons, [], [], neurons]):
        mixed = model.decision_logits(batch)
    torch.testing.assert_close(mixed[[0, 3]], expected[[0, 3]], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(mixed[[1, 2]], untouched[[1, 2]], atol=1e-5, rtol=1e-5)
    assert (expected - untouched).abs().max() > 1e-3
    torch.testing.assert_close(model.decision_logits(batch), untouched, atol=0, rtol=0)


def test_direct_effects_take_the_columns_of_the_dense_layer(model):
    hf, rows = model.hf, np.array([[DENSE, 2, 7], [0, 1, 3]])
    columns = [hf.model.layers[DENSE].mlp.down_proj.weight[:, 39], hf.model.layers[0].mlp.experts.down_proj[1, :, 3]]
    for found, column in zip(direct_effects(model, rows), columns, strict=True):
        effect = hf.lm_head.weight @ (hf.model.norm.weight * column)
        torch.testing.assert_close(found, effect - effect.mean(), atol=1e-5, rtol=1e-4)


def test_safety_neurons_and_their_controls_exist(model):
    prompts = PromptSet("p", "here", tuple(Prompt(f"thing {i} {'x' * i}", f"g{i % 2}", f"p{i}") for i in range(8)))
    found = find_safety_neurons(model, refusal_forcing_pairs(model, prompts), top=0.3, share=0.5, n_resamples=5)
    assert found.n_all == 2 * 64 + WIDTH
    assert found.top == round(0.3 * found.n_all)
    assert f"of {found.n_all}" in repr(found)
    there = existing(model)
    assert there[tuple(found.rows.T)].all()
    assert (found.rows[:, 0] == DENSE).any()
    controls = matched_controls(found, 20)
    assert there[tuple(np.moveaxis(controls, -1, 0))].all()


def test_strata_are_of_what_exists():
    base = np.random.default_rng(0).exponential(size=(2, 3, 20))
    base[1].ravel()[25:] = np.nan
    group = activation_strata(base)
    assert (group[1].ravel()[25:] == -1).all()
    assert np.array_equal(group[1].ravel()[:25], activation_strata(base[1].reshape(1, -1)[:, :25])[0])
    sets = matched_neuron_sets(np.array([[1, 0, 3], [1, 1, 4]]), base, 5)
    assert not np.isnan(base[tuple(np.moveaxis(sets, -1, 0))]).any()
    with pytest.raises(RimLensError, match="without NaN"):
        activation_strata(base[1])


def test_a_dense_layer_may_be_wider_than_all_experts():
    wide = tiny_model("qwen3_moe", mlp_only_layers=[DENSE], intermediate_size=5 * 16)
    assert neuron_activations(wide, chats_of(wide)).n_neurons == 2 * 64 + 80
    assert existing(wide).shape == (3, 5, 16)


def test_a_layer_whose_neurons_are_not_found_is_an_error():
    other = tiny_model("qwen3_moe", mlp_only_layers=[DENSE])
    other.hf.model.layers[DENSE].mlp = torch.nn.Sequential(torch.nn.Linear(32, 32))
    with pytest.raises(RimLensError, match=r"Layer 1 .* 0 groups of experts and no plain MLP"):
        neuron_activations(other, chats_of(other))


@pytest.mark.parametrize("family", ["qwen3_next", "deepseek_v3"])
def test_shared_experts_stand_behind_the_routed_ones(family):
    """Read with their gate, and their ablation equals zeroing the column."""
    model = tiny_model(family)
    layer, (name, gate) = 2, ("shared_expert", True) if family == "qwen3_next" else ("shared_experts", False)
    mlp = model.hf.model.layers[layer].mlp
    down, seen = getattr(mlp, name).down_proj, {}
    handles = [
        down.register_forward_pre_hook(lambda _, args: seen.__setitem__("a", args[0].flatten(0, -2).double())),
        mlp.register_forward_pre_hook(lambda _, args: seen.__setitem__("x", args[0].flatten(0, -2))),
    ]
    chats = model.render(REQUESTS)
    rows = np.array([[layer, 4, unit] for unit in range(16)])
    for chat in chats:
        with torch.no_grad():
            model.hf(torch.from_numpy(chat.token_ids)[None])
        weight = torch.sigmoid(mlp.shared_expert_gate(seen["x"])).double() if gate else 1
        expected = (seen["a"] * weight).detach().numpy()
        with record_neurons(model, rows) as values:
            model.logits(model.batch([chat]))
        np.testing.assert_allclose(values.of(chat), expected, atol=1e-5)
    for handle in handles:
        handle.remove()
    batch = model.batch(chats)
    untouched, kept = model.decision_logits(batch), down.weight.detach().clone()
    with torch.no_grad():
        down.weight[:, [3, 9]] = 0
        without = model.decision_logits(batch)
        down.weight.copy_(kept)
    with ablate_neurons(model, [(layer, 4, 3), (layer, 4, 9)]):
        torch.testing.assert_close(model.decision_logits(batch), without, atol=1e-5, rtol=1e-5)
    assert (without - untouched).abs().max() > 1e-4
    effect = model.hf.lm_head.weight @ (norm_of(model, kept[:, 3]))
    torch.testing.assert_close(direct_effects(model, rows[3:4])[0], effect - effect.mean(), atol=1e-5, rtol=1e-4)
    assert existing(model)[layer, 4].all()


def test_a_shared_expert_of_unknown_weight_is_an_error():
    model = tiny_model("qwen3_next")
    gate = model.hf.model.layers[0].mlp.shared_expert_gate
    gate.register_forward_hook(lambda module, args, output: output if len(seen) % 2 else 2 * output)
    seen = []  # the library's own call of the gate comes first in a layer
    gate.register_forward_pre_hook(lambda module, args: seen.append(1))
    with pytest.raises(RimLensError, match="Layer 0 weighs its shared expert"):
        neuron_activations(model, chats_of(model))
    assert not model.active_taps


def norm_of(model, column):
    """A column times the final norm's scale; Qwen3-Next's norm has 1 + weight."""
    scale = model.hf.model.norm.weight
    return column * (1 + scale if "Next" in type(model.hf).__name__ else scale)


@pytest.mark.parametrize("family", ["deepseek_v2", "deepseek_v3", "qwen3_next"])
@pytest.mark.slow
def test_every_neuron_of_a_mixture_is_checked(family):
    check = check_model(tiny_model(family))
    assert check.holds
    found = verdicts(check)
    assert found["neuron moments, fast"] == found["neuron ablation, fast"] == "holds"
