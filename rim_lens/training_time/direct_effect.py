"""What a neuron writes to the logits on the direct path, from its down projection through the final norm to the unembedding.

    logit(v) gets, per unit of activation,   W_U[v] · ( s ⊙ w_out )        less its mean over the vocabulary

w_out is the neuron's column of the down projection (in a mixture of experts: of its expert's), s the scale of the final
norm (and of a norm on the MLP's output, where the architecture has one); a LayerNorm's centring applies to w_out. The
norm's division by the length of the stream, which is the same for all tokens of the vocabulary, is left out, and so is
everything that later layers make of the neuron's output. Source: the logit lens; Geva et al. 2022 read neurons' columns
in this way.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from rim_lens.capture.mixture_layers import checked_neurons, mixture_layers
from rim_lens.errors import RimLensError
from rim_lens.model.lens_model import LensModel
from rim_lens.model.taps_fast import sites_of

FINAL_NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm", "norm_f", "final_norm")
OUTPUT_NORMS = ("post_feedforward_layernorm", "post_mlp_layernorm")  # on what an MLP writes


@torch.no_grad()
def direct_effects(model: LensModel, neurons: Int[np.ndarray, "neuron index"]) -> Float[Tensor, "neuron vocab"]:
    """Each neuron's direct effect on every logit, per unit of activation, in float32 on the CPU.

    Raises:
        RimLensError: a model whose down projections, final norm or unembedding are not found.
    """
    if model.hf is None:
        raise RimLensError(
            f"{model.name} is no transformers model; the path from its neurons to the logits is not known."
        )
    unembedding = model.hf.get_output_embeddings()
    if unembedding is None:
        raise RimLensError(f"{model.name} has no unembedding, so no token that a neuron could promote.")
    norm, found = final_norm(model), []
    for row in checked_neurons(model, neurons).tolist():
        written = written_by(model, row)
        written = through(norm, through(output_norm(model, row[0]), written))
        weight = unembedding.weight
        effect = nn.functional.linear(written.to(weight), weight).float().cpu()
        found.append(effect - effect.mean())
    return torch.stack(found)


def written_by(model: LensModel, neuron: list[int]) -> Float[Tensor, " d_model"]:
    """A neuron's column of its down projection."""
    if not model.is_moe:
        return column_of(sites_of(model).layers[neuron[0]].down, neuron[-1], model, neuron[0])
    layer, expert, unit = neuron
    routed, dense = mixture_layers(model)[layer]
    if dense is not None and expert >= dense.first:
        return column_of(dense.down, (expert - dense.first) * model.d_mlp + unit, model, layer)
    experts: Any = routed
    if experts.has_post_expert_norm:
        raise RimLensError(f"The experts of {model.name} are normalised each by itself; a neuron has no direct path.")
    matrix = experts.down_proj[expert]
    return (matrix[unit] if experts.is_transposed else matrix[:, unit]).float()


def column_of(down: nn.Module | None, unit: int, model: LensModel, layer: int) -> Float[Tensor, " d_model"]:
    """What one input of a down projection writes."""
    if isinstance(down, nn.Linear):
        return down.weight[:, unit].float()
    weight = getattr(down, "weight", None)
    if isinstance(weight, Tensor) and tuple(weight.shape) == (model.d_mlp, model.d_model):  # GPT-2's Conv1D
        return weight[unit].float()
    raise RimLensError(
        f"Layer {layer} of {model.name} has no down projection ({type(down).__name__}) whose columns are known."
    )


def final_norm(model: LensModel) -> nn.Module:
    """The norm between the last layer and the unembedding."""
    trunk = sites_of(model).trunk
    for name in FINAL_NORMS:
        module = getattr(trunk, name, None)
        if isinstance(module, nn.Module) and len(list(module.parameters())) > 0:
            return module
    raise RimLensError(f"{model.name} has no final norm under any known name ({', '.join(FINAL_NORMS)}).")


def output_norm(model: LensModel, layer: int) -> nn.Module | None:
    """The norm on what a layer's MLP writes, in the architectures that have one."""
    block = sites_of(model).layers[layer].block
    return next((getattr(block, name) for name in OUTPUT_NORMS if hasattr(block, name)), None)


def through(norm: nn.Module | None, vector: Float[Tensor, " d_model"]) -> Float[Tensor, " d_model"]:
    """A vector times a norm's scale, centred first where the norm centres; found by asking the norm itself."""
    if norm is None:
        return vector
    parameter = next(norm.parameters())
    probe = torch.linspace(1, 2, len(vector), dtype=torch.float32, device=parameter.device)
    probe[::2] *= -1
    odd = (norm(probe.to(parameter.dtype)).float() - norm(-probe.to(parameter.dtype)).float()) / 2  # without a bias
    ones = torch.ones_like(probe).to(parameter.dtype)
    centres = torch.allclose(norm(ones).float(), norm(-ones).float(), atol=1e-4)
    if centres:
        probe, vector = probe - probe.mean(), vector - vector.mean()
    scale = odd * probe.square().mean().sqrt() / probe
    return vector.to(scale) * scale
