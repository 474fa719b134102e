"""What each head writes along a direction of the residual stream: u[l, h] = W_O[l, h] · direction.

A head's share is z · u.

Holds where a head's output reaches the residual stream through its output projection alone.
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rim_lens.errors import RimLensError
from rim_lens.model.direct_path import head_matrix, multiplier
from rim_lens.model.lens_model import LensModel
from rim_lens.model.sites import sites_of


def write_vectors(
    model: LensModel, direction: Float[np.ndarray, "d_model"], n_layers: int | None = None
) -> Float[Tensor, "layer head d_head"]:
    """The vectors u of the first `n_layers` layers (all by default), float32 on the CPU.

    Layers without attention have zeros.

    Raises:
        RimLensError: the architecture normalises or scales the attention's output before it is added.

    """
    n_layers = model.n_layers if n_layers is None else n_layers
    along = torch.from_numpy(np.asarray(direction)).float()
    vectors = torch.zeros(n_layers, model.n_heads, model.d_head)
    for layer in range(n_layers):
        _need_plain_sum(model, layer)
        matrix = head_matrix(model, layer)
        if matrix is not None:
            vectors[layer] = (matrix.float().cpu() @ along).view(model.n_heads, model.d_head)
    return vectors


def _need_plain_sum(model: LensModel, layer: int) -> None:
    if model.hf is None:
        return
    site = sites_of(model).layers[layer]
    if site.attention_norm is not None or multiplier(site) != 1.0:
        raise RimLensError(
            f"{type(site.block).__name__} normalises or scales the attention's output before the residual stream, so "
            "what a head writes there is not a plain sum; use an ablation of the head at these positions instead."
        )
