"""Objects with TransformerLens' hooks over the weights of a tiny transformers model, in the releases that have them.

bridge · bridge folded                       TransformerBridge, as it is and in compatibility mode (3.x and 4.x)
HookedTransformer · HookedTransformer folded built from a HookedTransformerConfig, weights copied into it (3.x only)

Folded: layer norm folded into the weights that read from it, writing weights and unembedding centred.
"""

from importlib.util import find_spec
from typing import Any

import transformer_lens
from families import tiny_hf, tiny_tokenizer
from transformer_lens.model_bridge import TransformerBridge

HAS_HOOKED_TRANSFORMER = find_spec("transformer_lens.HookedTransformer") is not None
KINDS = ["bridge", "bridge folded"]
KINDS += ["HookedTransformer", "HookedTransformer folded"] if HAS_HOOKED_TRANSFORMER else []


def hooked_object(kind: str, family: str) -> Any:
    """An object of `kind` over the weights of `tiny_hf(family)`."""
    folded = kind.endswith("folded")
    return bridge(family, folded) if kind.startswith("bridge") else hooked_transformer(family, folded)


def bridge(family: str, folded: bool) -> Any:
    made = TransformerBridge.boot_transformers(f"tiny-{family}", hf_model=tiny_hf(family), tokenizer=tiny_tokenizer())
    if folded:
        made.enable_compatibility_mode(fold_value_biases=False)
    return made.eval()


def hooked_transformer(family: str, folded: bool) -> Any:
    hf = tiny_hf(family)
    cfg = transformer_lens.HookedTransformerConfig(**settings(hf.config, family))
    model = transformer_lens.HookedTransformer(cfg, tokenizer=tiny_tokenizer())
    conversions = transformer_lens.pretrained.weight_conversions
    state = {"llama": conversions.convert_llama_weights, "gpt2": conversions.convert_gpt2_weights}[family](hf, cfg)
    # Folding value biases moves them out of the heads' outputs: zeroing a head is then another intervention.
    model.load_and_process_state_dict(
        state, fold_ln=folded, center_writing_weights=folded, center_unembed=folded, fold_value_biases=False
    )
    return model.eval()


def settings(config: Any, family: str) -> dict[str, Any]:
    """HookedTransformerConfig's names for a tiny model's config."""
    shared = {
        "n_layers": config.num_hidden_layers,
        "d_model": config.hidden_size,
        "n_heads": config.num_attention_heads,
        "d_head": config.hidden_size // config.num_attention_heads,
        "n_ctx": config.max_position_embeddings,
        "d_vocab": config.vocab_size,
        "original_architecture": config.architectures[0],
        "model_name": f"tiny-{family}",
        "device": "cpu",
    }
    if family == "gpt2":
        own = {
            "d_mlp": config.n_inner,
            "act_fn": "gelu_new",
            "normalization_type": "LN",
            "eps": config.layer_norm_epsilon,
        }
        return {**shared, **own}
    return {
        **shared,
        "d_mlp": config.intermediate_size,
        "act_fn": "silu",
        "normalization_type": "RMS",
        "eps": config.rms_norm_eps,
        "n_key_value_heads": config.num_key_value_heads,
        "positional_embedding_type": "rotary",
        "rotary_adjacent_pairs": False,
        "rotary_dim": shared["d_head"],
        "rotary_base": config.rope_parameters["rope_theta"],
        "gated_mlp": True,
        "final_rms": True,
    }
