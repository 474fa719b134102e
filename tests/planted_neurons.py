"""A tiny Llama with planted safety neurons, and checkpoints that move them by known amounts.

Bytes carry concepts on axes of their own in the residual stream, which attention and MLPs leave alone: "!" is refusal,
digits are the task, "X", "Y", "Z" mark one group of requests each. Planted neurons read refusal and task; decoys read
the mark of one group only, more strongly, so that they are in the top of their group but not of the others. None of
them writes anything, so all other neurons are the same at every checkpoint.

A checkpoint scales what planted neurons read: refusal by (1 − loss), task by (1 + gain). Requests without digits then
lose exactly `loss`, task prompts without "!" gain exactly `gain`. It is a LoRA adapter of rank 2.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from families import tiny_hf, tiny_tokenizer
from safetensors.torch import save_file

from rim_lens.data.prompts import Prompt
from rim_lens.model.lens_model import LensModel
from rim_lens.training_time.counterfactuals import CounterfactualPairs

REFUSAL, TASK, CONSTANT = 0, 1, 5
MARKS = {"X": 2, "Y": 3, "Z": 4}
N_CONCEPTS = 6
PLANTED = [(0, 3), (0, 17), (1, 5), (1, 30), (1, 41), (2, 11)]
DECOYS = {"X": [(0, 8), (2, 20)], "Y": [(1, 9), (1, 22)], "Z": [(0, 40), (2, 2)]}
WORDS = ("take", "the", "old", "lamp", "over", "there", "with", "a", "rope", "at", "night", "home")


@dataclass(frozen=True)
class PlantedNeurons:
    """The model, what was planted, and prompts that show it."""

    model: LensModel
    neurons: set[tuple[int, int]]
    harmful: list[Prompt] = field(repr=False)
    task: list[Prompt] = field(repr=False)
    pairs: CounterfactualPairs = field(repr=False)
    strength: dict[tuple[int, int], tuple[float, float]]  # weight on (refusal, task)


def planted_neurons(seed=0, n_prompts=24) -> PlantedNeurons:
    rng = np.random.default_rng(seed)
    hf = tiny_hf("llama", seed, intermediate_size=240)
    model = LensModel("planted-neurons", tiny_tokenizer(), hf=hf)
    clear_axes(hf, model.tokenizer)
    strength = {neuron: (float(rng.uniform(80, 120)), float(rng.uniform(80, 120))) for neuron in PLANTED}
    for neuron, (refusal, task) in strength.items():
        plant(hf, neuron, {REFUSAL: refusal, TASK: task})
    for mark, neurons in DECOYS.items():
        for neuron in neurons:
            plant(hf, neuron, {MARKS[mark]: 400.0})
    texts, harmful, forced = [], [], []
    for number in range(n_prompts):
        mark = list(MARKS)[number % 3]
        text = " ".join(rng.choice(WORDS, 6)) + " !"
        texts.append(Prompt(text, f"group {mark}", f"p{number}"))
        harmful.append(text)
        forced.append(f"{text}!!!! {mark}{mark}")
    task = [Prompt(f"add {rng.integers(10, 99)} and {rng.integers(100, 999)}", None, f"t{i}") for i in range(n_prompts)]
    pairs = CounterfactualPairs(
        tuple(model.render(harmful)), tuple(model.render(forced)), tuple(p.category for p in texts), "given", "user"
    )
    return PlantedNeurons(model, set(PLANTED), texts, task, pairs, strength)


@torch.no_grad()
def clear_axes(hf, tokenizer):
    """Concepts reach every layer as they are embedded, and nothing but the planted neurons reads them."""
    embedding = hf.model.embed_tokens.weight
    embedding[:, :N_CONCEPTS] = 0
    embedding[:, CONSTANT] = 1
    carried = {"!": REFUSAL, **dict.fromkeys("0123456789", TASK), **MARKS}
    for byte, axis in carried.items():
        embedding[tokenizer.convert_tokens_to_ids(byte), axis] = 3
    for layer in hf.model.layers:
        layer.self_attn.o_proj.weight[:N_CONCEPTS] = 0
        layer.mlp.down_proj.weight[:N_CONCEPTS] = 0
        for weight in (layer.mlp.gate_proj.weight, layer.mlp.up_proj.weight):
            weight[:, :N_CONCEPTS] = 0
        layer.post_attention_layernorm.weight.fill_(1)


@torch.no_grad()
def plant(hf, neuron, reads):
    """The neuron is silu(c) · Σ weight · concept, and writes nothing."""
    layer, unit = neuron
    mlp = hf.model.layers[layer].mlp
    mlp.gate_proj.weight[unit] = 0
    mlp.gate_proj.weight[unit, CONSTANT] = 4
    mlp.up_proj.weight[unit] = 0
    for axis, weight in reads.items():
        mlp.up_proj.weight[unit, axis] = weight
    mlp.down_proj.weight[:, unit] = 0


def save_shift(folder: Path, planted: PlantedNeurons, loss, gain) -> Path:
    """The checkpoint at which every planted neuron lost `loss` and gained `gain`, as an adapter.

    Dicts give one per neuron.
    """
    folder.mkdir(parents=True)
    tensors = {}
    for layer in sorted({layer for layer, _ in planted.neurons}):
        a, b = torch.zeros(2, planted.model.d_model), torch.zeros(planted.model.d_mlp, 2)
        a[0, REFUSAL] = a[1, TASK] = 1
        for neuron in planted.neurons:
            if neuron[0] == layer:
                refusal, task = planted.strength[neuron]
                b[neuron[1], 0] = -refusal * (loss[neuron] if isinstance(loss, dict) else loss)
                b[neuron[1], 1] = task * (gain[neuron] if isinstance(gain, dict) else gain)
        name = f"base_model.model.model.layers.{layer}.mlp.up_proj"
        tensors |= {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 2,
        "target_modules": ["up_proj"],
        "base_model_name_or_path": "planted",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder
