"""Direct logit attribution of a neuron: its down projection, through the final norm, to the unembedding.

    logit(v) gets, per unit of activation,   W_U[v] · ( s ⊙ w_out )        less its mean over the vocabulary

w_out is the neuron's column of the down projection (in a mixture of experts: of its expert's), s the scale of the final
norm (and of a norm on the MLP's output, where the architecture has one); a LayerNorm's centring applies to w_out. The
norm's division by the length of the stream, which is the same for all tokens of the vocabulary, is left out, and so is
everything that later layers make of the neuron's output. On given prompts, with that length: `direct_attribution`.
Source: the logit lens; Geva et al. 2022 read neurons' columns in this way.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from rim_lens.errors import RimLensError
from rim_lens.model.direct_path import final_norm, frozen, layer_norms, neuron_matrix, output_matrix, unembedding
from rim_lens.model.lens_model import LensModel
from rim_lens.model.mixture_layers import checked_neurons, mixture_layers


@torch.no_grad()
def direct_effects(model: LensModel, neurons: Int[np.ndarray, "neuron index"]) -> Float[Tensor, "neuron vocab"]:
    """Each neuron's direct effect on every logit, per unit of activation, in float32 on the CPU.

    Raises:
        RimLensError: a model whose down projections, final norm or unembedding are not found.
    """
    weight = unembedding(model).weight
    last, effects = frozen(final_norm(model), model.d_model), []
    for row in checked_neurons(model, neurons).tolist():
        written = written_by(model, row).double()
        for norm in (layer_norms(model, row[0])[1], last):
            written = written if norm is None else norm.through(written.to(norm.scale))
        effect = nn.functional.linear(written.to(weight), weight).float().cpu()
        effects.append(effect - effect.mean())
    return torch.stack(effects)


def written_by(model: LensModel, neuron: list[int]) -> Float[Tensor, " d_model"]:
    """A neuron's column of its down projection."""
    if not model.is_moe:
        return neuron_matrix(model, neuron[0])[neuron[-1]]
    layer, expert, unit = neuron
    routed, dense = mixture_layers(model)[layer]
    if dense is not None and expert >= dense.first:
        matrix = output_matrix(dense.down, dense.width, f"The dense MLP of layer {layer} of {model.name}")
        return matrix[(expert - dense.first) * model.d_mlp + unit]
    experts: Any = routed
    if experts.has_post_expert_norm:
        raise RimLensError(f"The experts of {model.name} are normalised each by itself; a neuron has no direct path.")
    matrix = experts.down_proj[expert]
    return matrix[unit] if experts.is_transposed else matrix[:, unit]
