"""Which fields of a model's config change what it computes: all of them, but for a list of those known not to.

A checkpoint that is shown in another model's place is computed under that model's config, so the two must say the same.
"""

from collections.abc import Mapping
from typing import Any

# Names, bookkeeping, training and what is passed at the call. Dropout and losses play no part in evaluation, the ids of
# special tokens none in a pass (where an answer ends is compared apart), and `dtype` is the loader's choice.
WITHOUT_EFFECT = frozenset(
    {
        "_name_or_path", "name_or_path", "_commit_hash", "architectures", "auto_map", "transformers_version", "dtype",
        "torch_dtype", "use_cache", "bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "cls_token_id",
        "decoder_start_token_id", "unk_token_id", "mask_token_id", "attention_dropout", "attn_pdrop", "resid_pdrop",
        "embd_pdrop", "hidden_dropout", "hidden_dropout_prob", "attention_probs_dropout_prob", "residual_dropout",
        "embedding_dropout", "embd_dropout", "dropout", "classifier_dropout", "summary_first_dropout",
        "initializer_range", "initializer_factor", "router_aux_loss_coef", "router_z_loss_coef",
        "router_jitter_noise", "output_router_logits", "output_attentions", "output_hidden_states", "return_dict",
        "id2label", "label2id", "num_labels", "problem_type", "finetuning_task", "task_specific_params",
        "tokenizer_class", "prefix", "chunk_size_feed_forward", "gradient_checkpointing", "unsloth_version",
        "unsloth_fixed", "_attn_implementation", "attn_implementation", "_attn_implementation_autoset",
        "_experts_implementation", "torchscript", "use_bfloat16", "pretraining_tp", "generation_config",
    }
)  # fmt: skip
PLAIN_ROPE = ("default", None)


def differing_fields(mine: Mapping[str, Any], theirs: Mapping[str, Any], where: str = "") -> dict[str, tuple[Any, Any]]:
    """Fields that may change the computation and are not the same in both configs, with both values.

    Nested names dotted.
    """
    found: dict[str, tuple[Any, Any]] = {}
    for name in sorted({*mine, *theirs}):
        if name in WITHOUT_EFFECT or has_no_effect_here(name, mine, theirs):
            continue
        one, other = mine.get(name), theirs.get(name)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            found |= differing_fields(one, other, f"{where}{name}.")
        elif plain(one) != plain(other):
            found[where + name] = (one, other)
    return found


def has_no_effect_here(name: str, *configs: Mapping[str, Any]) -> bool:
    """Whether a field enters no formula under these configs, though it may under others.

    The longest length, where positions are rotary and of the default kind; sliding windows, where no layer has one.
    """
    if name == "max_position_embeddings":
        rope = [config.get("rope_parameters") for config in configs]
        return all(isinstance(one, Mapping) and one.get("rope_type", "absent") in PLAIN_ROPE for one in rope)
    if name in ("max_window_layers", "sliding_window", "use_sliding_window"):
        kinds = [config.get("layer_types") for config in configs]
        return all(one and set(one) == {"full_attention"} for one in kinds)
    return False


def plain(value: Any) -> Any:
    """A value as JSON would hold it: no tuples, and numbers by their value."""
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return value
