"""The numbers of a model that analyzers need, read from a transformers config or a TransformerLens config."""

from dataclasses import dataclass
from typing import Any

from rim_lens.errors import RimLensError


@dataclass(frozen=True)
class ModelShape:
    """Layers, heads and widths; `n_experts` is 0 for dense models."""

    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    d_model: int
    d_mlp: int
    max_length: int
    n_experts: int


def first(config: Any, *names: str, default: Any = None) -> Any:
    """The first attribute among `names` that the config has and that is not None."""
    for name in names:
        try:
            value = getattr(config, name, None)
        except Exception as error:  # transformers refuses to name one value where layers differ
            raise RimLensError(
                f"The config {type(config).__name__} has another {name} in some layers than in others; rim_lens "
                "supports models whose layers have one shape."
            ) from error
        if value is not None:
            return value
    return default


def shape_of(model: Any) -> ModelShape:
    """Shape of a transformers model (`.config`) or of an object with TransformerLens' `.cfg`.

    Raises:
        RimLensError: the config does not say how many layers or heads there are.

    """
    if hasattr(model, "cfg"):
        return hooked_shape(model.cfg)
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    n_layers = first(config, "num_hidden_layers", "n_layer")
    n_heads = first(config, "num_attention_heads", "n_head")
    d_model = first(config, "hidden_size", "n_embd")
    if None in (n_layers, n_heads, d_model):
        raise RimLensError(
            f"The config of {type(model).__name__} names no layers, heads or width; it is not supported."
        )
    n_experts = first(config, "num_experts", "num_local_experts", "n_routed_experts", default=0)
    expert_width = first(config, "moe_intermediate_size", "intermediate_size") if n_experts else None
    return ModelShape(
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=first(config, "num_key_value_heads", default=n_heads),
        # Latent attention (DeepSeek) has values of another width than queries; a head's output is as wide as its
        # values.
        d_head=first(config, "v_head_dim", "head_dim", default=d_model // n_heads),
        d_model=d_model,
        d_mlp=expert_width or first(config, "intermediate_size", "n_inner", "ffn_dim", default=4 * d_model),
        max_length=first(config, "max_position_embeddings", "n_positions", default=1 << 20),
        n_experts=n_experts,
    )


def hooked_shape(cfg: Any) -> ModelShape:
    """Shape from a TransformerLens config."""
    return ModelShape(
        n_layers=cfg.n_layers,
        n_heads=cfg.n_heads,
        n_kv_heads=first(cfg, "n_key_value_heads", default=cfg.n_heads),
        d_head=cfg.d_head,
        d_model=cfg.d_model,
        d_mlp=first(cfg, "d_mlp", default=4 * cfg.d_model),
        max_length=cfg.n_ctx,
        n_experts=first(cfg, "num_experts", default=0) or 0,
    )
