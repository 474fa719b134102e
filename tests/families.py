"""Tiny random models of real architectures, with a byte-level ChatML tokenizer: `tiny_model("qwen3")`.

Weights are random and larger than at initialisation, so that attention patterns are far from uniform; every
architecture keeps what is special about it (grouped queries, q/k-norm, soft-capping, sliding windows shorter than the
prompts, experts).
"""

from functools import lru_cache
from typing import Any

import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rim_lens.model.lens_model import LensModel

WINDOW = 24  # sliding windows, in tokens: shorter than any rendered prompt
SPECIAL = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer (a token a byte, no merges) with ChatML's special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*SPECIAL, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\s+|\S+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return with_chat_template(tokenizer)


def with_chat_template(tokenizer):
    """The tokenizer as transformers has it, with ChatML."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=CHATML,
        clean_up_tokenization_spaces=False,
    )


BASE: dict[str, Any] = {
    "vocab_size": 3 + 256,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "eos_token_id": 1,
    "bos_token_id": None,
    "pad_token_id": 2,
}
ONE_KEY_HEAD_A_HEAD = {"num_key_value_heads": 4}
LOCAL = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
EXPERTS = {"moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": True}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {}),
    "gemma2": ("Gemma2", {**LOCAL, "query_pre_attn_scalar": 8, "attn_logit_softcapping": 2.0}),
    "gemma3": ("Gemma3Text", {**LOCAL, "query_pre_attn_scalar": 8}),
    "mistral": ("Mistral", {"sliding_window": WINDOW}),
    "phi3": ("Phi3", {}),
    "gpt_neox": ("GPTNeoX", ONE_KEY_HEAD_A_HEAD),
    "qwen3_moe": ("Qwen3Moe", EXPERTS),
    "gpt2": ("GPT2", ONE_KEY_HEAD_A_HEAD),
    "gpt_oss": ("GptOss", {**LOCAL, "num_local_experts": 4, "num_experts_per_tok": 2}),
}
# A hybrid, kept apart because two of its three layers have no attention.
HYBRID = {
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    **EXPERTS,
    "shared_expert_intermediate_size": 16,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
LATENT = {  # multi-head latent attention: queries and keys are wider than values; the first layer is dense
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 10,
    "head_dim": 4,  # of the rotary part, as DeepSeek's configs have it
    "moe_intermediate_size": 16,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
# The rest of the matrix of supported families (see matrix.py).
MORE_FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3_next": ("Qwen3Next", HYBRID),
    "qwen3_5": (
        "Qwen3_5Text",
        {name: value for name, value in HYBRID.items() if "expert" not in name and "topk" not in name},
    ),
    "mixtral": ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None}),
    "phimoe": ("Phimoe", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "olmo2": ("Olmo2", {}),
    "olmoe": ("Olmoe", {"intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2}),
    "smollm3": ("SmolLM3", {"no_rope_layers": [1, 0, 1]}),
    "deepseek_v2": ("DeepseekV2", LATENT),
    "deepseek_v3": ("DeepseekV3", LATENT),
}
CLASSES = {"Gemma3Text": "Gemma3ForCausalLM", "GPT2": "GPT2LMHeadModel", "Qwen3_5Text": "Qwen3_5ForCausalLM"}
GPT2_NAMES = {
    "hidden_size": "n_embd",
    "intermediate_size": "n_inner",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
}


def tiny_hf(family: str, seed: int = 0, **overrides: Any) -> Any:
    """A tiny transformers model of `family` in float32 with random weights."""
    name, special = {**FAMILIES, **MORE_FAMILIES}[family]
    settings = {**BASE, **special, **overrides}
    if name == "GPT2":
        unknown = ("num_key_value_heads", "head_dim")
        settings = {GPT2_NAMES.get(k, k): v for k, v in settings.items() if k not in unknown}
    config = getattr(transformers, f"{name}Config")(**settings)
    architecture = CLASSES.get(name, f"{name}ForCausalLM")
    config.architectures = [architecture]  # as in a saved model; TransformerLens chooses its adapter by it
    torch.manual_seed(seed)
    model = getattr(transformers, architecture)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 1.6 / parameter.shape[-1] ** 0.5)
            else:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model.requires_grad_(False)


@lru_cache
def shared_model(family: str = "llama") -> LensModel:
    """A tiny model that tests of one process share: they must leave it as it was."""
    return tiny_model(family)


def tiny_model(family: str = "llama", seed: int = 0, **overrides: Any) -> LensModel:
    """A LensModel over a tiny random model; `overrides` go to its config."""
    return LensModel(f"tiny-{family}", tiny_tokenizer(), hf=tiny_hf(family, seed, **overrides))
