"""What each head writes along a direction of the residual stream: u[l, h] = W_O[l, h] · direction, so that z · u is its share.

Holds where a head's output reaches the residual stream through its output projection alone.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from rim_lens.errors import RimLensError
from rim_lens.model.lens_model import LensModel
from rim_lens.model.taps_fast import sites_of

# What some architectures put between the output projection and the residual stream.
_BEHIND = ("pre_feedforward_layernorm", "post_feedforward_layernorm", "post_attention_norm", "post_self_attn_layernorm")


def write_vectors(
    model: LensModel, direction: Float[np.ndarray, "d_model"], n_layers: int | None = None
) -> Float[Tensor, "layer head d_head"]:
    """The vectors u of the first `n_layers` layers (all by default), float32 on the CPU; 0 for layers without attention.

    Raises:
        RimLensError: the architecture normalises or scales the attention's output before it is added.

    """
    n_layers = model.n_layers if n_layers is None else n_layers
    along = torch.from_numpy(np.asarray(direction)).float()
    vectors = torch.zeros(n_layers, model.n_heads, model.d_head)
    for layer in range(n_layers):
        weight = _output_weight(model, layer)
        if weight is not None:
            vectors[layer] = (weight.detach().float().cpu() @ along).view(model.n_heads, model.d_head)
    return vectors


def _output_weight(model: LensModel, layer: int) -> Float[Tensor, "head_x_d_head d_model"] | None:
    """The output projection as a matrix that a row of head outputs is multiplied with."""
    if model.hf is None:
        return model.bridge.blocks[layer].attn.W_O.reshape(model.n_heads * model.d_head, model.d_model)
    site = sites_of(model).layers[layer]
    _need_plain_sum(site.block)
    if site.output is None:
        return None
    weight = site.output.weight
    return weight.T if isinstance(site.output, nn.Linear) else weight  # Conv1D keeps [in, out]


def _need_plain_sum(block: Any) -> None:
    scale = getattr(block, "residual_multiplier", 1.0)
    if scale != 1.0 or any(hasattr(block, name) for name in _BEHIND):
        raise RimLensError(
            f"{type(block).__name__} normalises or scales the attention's output before the residual stream, so what "
            "a head writes there is no plain sum; use an ablation of the head at these positions instead."
        )
