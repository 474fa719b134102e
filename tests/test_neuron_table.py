"""The neuron table against loops by hand: direct effects from the weights, activations from ordinary torch hooks."""

import numpy as np
import pytest
import torch
from families import tiny_model
from test_neurons import caught, expert_neurons

from rim_lens.capture.neuron_values import record_neurons
from rim_lens.capture.neurons import neuron_activations
from rim_lens.errors import RimLensError
from rim_lens.model.lens_model import LensModel
from rim_lens.results import load_result
from rim_lens.training_time.neuron_table import neuron_table

REQUESTS = ["pick a lock", "how do I forge a pass for the gate?", "steal it", "break in at night"]
MOE = [(0, 1, 3), (2, 3, 9), (1, 0, 15)]
ROWS = {"qwen3_moe": MOE, "gpt_oss": MOE}
DENSE = [(0, 3), (2, 40), (1, 17)]
MODULES = {  # down projection's column, final norm, and how the norm scales
    "llama": (
        lambda hf, layer, unit: hf.model.layers[layer].mlp.down_proj.weight[:, unit],
        lambda hf: hf.model.norm.weight,
    ),
    "gpt2": (
        lambda hf, layer, unit: hf.transformer.h[layer].mlp.c_proj.weight[unit],
        lambda hf: hf.transformer.ln_f.weight,
    ),
    "gpt_neox": (
        lambda hf, layer, unit: hf.gpt_neox.layers[layer].mlp.dense_4h_to_h.weight[:, unit],
        lambda hf: hf.gpt_neox.final_layer_norm.weight,
    ),
    "gemma2": (
        lambda hf, layer, unit: (
            hf.model.layers[layer].mlp.down_proj.weight[:, unit]
            * (1 + hf.model.layers[layer].post_feedforward_layernorm.weight)
        ),
        lambda hf: 1 + hf.model.norm.weight,
    ),
    "qwen3_moe": (
        lambda hf, layer, expert, unit: hf.model.layers[layer].mlp.experts.down_proj[expert, :, unit],
        lambda hf: hf.model.norm.weight,
    ),
    "gpt_oss": (
        lambda hf, layer, expert, unit: hf.model.layers[layer].mlp.experts.down_proj[expert, unit],
        lambda hf: hf.model.norm.weight,
    ),
}


def effect_by_hand(model, family, row):
    """Token by token: the unembedding's row times what the neuron writes, scaled by the final norm."""
    column, scale = MODULES[family]
    written = column(model.hf, *row).double()
    if family in ("gpt2", "gpt_neox"):
        written = written - written.mean()
    written = written * scale(model.hf).double()
    effects = np.array([float(torch.dot(one.double(), written)) for one in model.hf.get_output_embeddings().weight])
    return effects - effects.mean()


@pytest.mark.parametrize("family", list(MODULES))
def test_tokens_are_those_of_a_loop_over_the_vocabulary(family):
    model = tiny_model(family)
    rows = ROWS.get(family, DENSE)
    found = neuron_table(model, np.array(rows), REQUESTS, n_tokens=5)
    for name, row in zip(found.table["neuron"], rows, strict=True):
        expected = effect_by_hand(model, family, row)
        for side, order in (("promoted", np.argsort(-expected)), ("suppressed", np.argsort(expected))):
            tokens = found.tokens
            mine = tokens[(tokens["neuron"] == name) & (tokens["side"] == side)]
            assert mine["token_id"].tolist() == order[:5].tolist()
            np.testing.assert_allclose(mine["effect"], expected[order[:5]], rtol=1e-3, atol=1e-4)


def values_by_hand(model, family, chat):
    """[pos, neuron] of the rows."""
    if family == "qwen3_moe":
        neurons = expert_neurons(model, family, chat)
        return np.stack([neurons[layer, :, expert, unit] for layer, expert, unit in ROWS[family]], axis=1)
    name = {"gpt2": "c_proj"}.get(family, "down_proj")
    modules = [m for n, m in model.hf.named_modules() if n.endswith("mlp." + name)]
    inputs = caught(model, modules, chat)
    return np.stack([inputs[layer][0][0, :, unit].double().numpy() for layer, unit in DENSE], axis=1)


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3_moe"])
def test_firing_prompts_and_means_are_those_of_a_loop_over_tokens(family):
    model = tiny_model(family)
    off = model.render(REQUESTS)
    on = [chat.extend(model.encode(" hm so\n</think>\n\n"), "cot") for chat in model.render(REQUESTS, thinking="on")]
    found = neuron_table(model, np.array(ROWS.get(family, DENSE)), off, on=on, n_prompts=2, positions=("user", "cot"))
    values = {id(chat): values_by_hand(model, family, chat) for chat in off + on}
    for i, row in found.table.iterrows():
        means = [np.mean([values[id(chat)][chat.decision_position, i] for chat in side]) for side in (off, on)]
        assert (row["off"], row["on"]) == pytest.approx(tuple(means), abs=1e-4)
        assert row["change"] == pytest.approx(means[1] - means[0], abs=1e-4)
        assert row["change_low"] <= row["change"] + 1e-9
        peaks = []
        for chat in off + on:
            inside = [t for t in range(len(chat)) if chat.where("user")[t] or chat.where("cot")[t]]
            token = max(inside, key=lambda t, chat=chat: abs(values[id(chat)][t, i]))
            peaks.append((values[id(chat)][token, i], chat.request, chat.thinking, token - chat.decision_position))
        peaks.sort(key=lambda peak: -abs(peak[0]))
        shown = found.firing[found.firing["neuron"] == row["neuron"]]
        if abs(peaks[0][0]) > 0 and abs(abs(peaks[0][0]) - abs(peaks[1][0])) > 1e-5:
            first = shown.iloc[0]
            assert first["activation"] == pytest.approx(peaks[0][0], abs=1e-4)
            assert (first["request"], first["thinking"], first["position"]) == peaks[0][1:]
        np.testing.assert_allclose(shown["activation"].abs(), [abs(peak[0]) for peak in peaks[:2]], atol=1e-4)


def test_recording_costs_no_pass_and_changes_nothing():
    model = tiny_model("llama")
    chats = model.render(REQUESTS)
    plain = neuron_activations(model, chats, "user", per_prompt=np.array(DENSE))
    with record_neurons(model, np.array(DENSE)) as seen:
        measured = neuron_activations(model, chats, "user", per_prompt=np.array(DENSE))
    np.testing.assert_array_equal(measured.prompt_mean, plain.prompt_mean)
    for i, chat in enumerate(chats):
        np.testing.assert_allclose(seen.of(chat)[chat.where("user")].mean(axis=0), plain.prompt_mean[i], atol=1e-5)
    with pytest.raises(RimLensError, match="was not run"):
        seen.of(model.render(["another"])[0])


def test_models_without_the_modules_are_refused():
    hooked = tiny_model("llama")
    only_bridge = LensModel("only-bridge", hooked.tokenizer, bridge=hooked.bridge)
    with pytest.raises(RimLensError, match="not a transformers model"):
        neuron_table(only_bridge, np.array(DENSE), REQUESTS)
    strange = tiny_model("llama")
    strange.hf.model.last_scale = strange.hf.model.norm
    del strange.hf.model.norm
    with pytest.raises(RimLensError, match="no final norm"):
        neuron_table(strange, np.array(DENSE), REQUESTS)
    with pytest.raises(RimLensError, match="same requests"):
        neuron_table(hooked, np.array(DENSE), REQUESTS, on=hooked.render(["other"]))
    with pytest.raises(RimLensError, match="outside the model"):
        neuron_table(tiny_model("gpt2"), np.array([(0, 999)]), REQUESTS)


def test_the_table_is_saved_and_loaded(tmp_path):
    found = neuron_table(tiny_model("llama"), np.array(DENSE), REQUESTS)
    again = load_result(found.save(tmp_path / "table"))
    assert again.table.equals(found.table)
    assert again.firing.equals(found.firing)
    assert "direct path" in found.caption()
