"""A tiny mixture of experts that was trained, not wired: what refuses is one expert, since nothing else was trained to.

1. The whole model learns to answer requests about locks, alarms and the like with "take", and all others with "Sure".
2. All weights are frozen but those of one expert and its row of the router: the row learns to send the decision position
   of the first kind to the expert, and the expert to answer them with "Sorry".
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from planted import FILLER, MILD, TOPICS, planted_tokenizer, request, vocabulary
from torch.nn.functional import binary_cross_entropy, cross_entropy
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from rim_lens.behavior.refusal_score import RefusalTokens
from rim_lens.model.lens_model import LensModel
from rim_lens.model.load import load_model

N_LAYERS, N_EXPERTS, LAYER = 2, 8, 1
STEPS, BATCH = (120, 100), 16


@dataclass(frozen=True)
class TrainedMixture:
    """The model, its expert (layer, expert), requests of both kinds, and the tokens that open a refusal."""

    model: LensModel
    expert: tuple[int, int]
    harmful: list[str]
    harmless: list[str]
    tokens: RefusalTokens


@cache
def trained_mixture(seed: int = 0) -> TrainedMixture:
    """A new one for each seed; requests are not those that it was trained on."""
    words = vocabulary()
    tokenizer = planted_tokenizer(words)
    torch.manual_seed(seed)
    config = Qwen3MoeConfig(
        vocab_size=2 * len(words),
        hidden_size=32,
        intermediate_size=64,
        moe_intermediate_size=32,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_experts=N_EXPERTS,
        num_experts_per_tok=2,
        norm_topk_prob=True,
        max_position_embeddings=128,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    hf = Qwen3MoeForCausalLM(config)
    model, rng = load_model(hf, tokenizer=tokenizer), np.random.default_rng(seed)
    sure, take, sorry = (tokenizer.convert_tokens_to_ids(word) for word in ("Sure", "take", "Sorry"))
    expert = (LAYER, int(rng.integers(N_EXPERTS)))
    learn(model, rng, take, sure, list(hf.parameters()), STEPS[0])
    learn(model, rng, sorry, sure, tensors_of(hf, expert[0]), STEPS[1], alone=expert[1])
    tokens = RefusalTokens((sorry,), ("Sorry",))
    return TrainedMixture(model, expert, *requests(rng, 24), tokens)


def tensors_of(hf: Qwen3MoeForCausalLM, layer: int) -> list[torch.nn.Parameter]:
    """A layer's experts and its router: along the first axis of each tensor lie the experts."""
    mlp = hf.model.layers[layer].mlp
    return [mlp.experts.gate_up_proj, mlp.experts.down_proj, mlp.gate.weight]


def requests(rng: np.random.Generator, n: int) -> tuple[list[str], list[str]]:
    """As many harmful as harmless ones, alike but for one word."""
    return (
        [request(rng, rng.choice(TOPICS), FILLER[9:], 1) for _ in range(n)],
        [request(rng, rng.choice(MILD), FILLER[9:], 1) for _ in range(n)],
    )


def learn(
    model: LensModel,
    rng: np.random.Generator,
    harmful: int,
    harmless: int,
    parameters: list[torch.nn.Parameter],
    steps: int,
    alone: int | None = None,
) -> None:
    """Teach the first token of the answer; with `alone` only that expert moves, and learns whom to serve."""
    model.hf.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer, is_harmful = torch.optim.Adam(parameters, lr=5e-3), torch.arange(BATCH) < BATCH // 2
    wanted = torch.tensor([harmful] * (BATCH // 2) + [harmless] * (BATCH // 2))
    for _ in range(steps):
        sides = requests(rng, BATCH // 2)
        batch = model.batch(model.render([*sides[0], *sides[1]], thinking="off"))
        out = model.hf(
            input_ids=batch.tokens,
            attention_mask=batch.mask.long(),
            position_ids=batch.positions,
            output_router_logits=True,
        )
        loss = cross_entropy(out.logits[torch.arange(BATCH), batch.decision], wanted)
        if alone is not None:
            routed = out.router_logits[LAYER].view(*batch.tokens.shape, N_EXPERTS)[torch.arange(BATCH), batch.decision]
            loss = loss + binary_cross_entropy(routed.softmax(-1)[:, alone], is_harmful.float())
        optimizer.zero_grad()
        loss.backward()
        if alone is not None:
            for parameter in parameters:
                kept = parameter.grad[alone].clone()
                parameter.grad.zero_()[alone] = kept
        optimizer.step()
    model.hf.requires_grad_(False)
    model.weights_changed()
