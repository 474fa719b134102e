"""The direct path from what a component writes to the logits: output matrices, norms as linear maps, the unembedding.

A norm is linear once the length σ of what goes into it is taken as given (*frozen*):

    norm(x) = scale ⊙ c(x) / σ(x) + bias        c takes the mean away where the norm centres

Scale, bias, centring and σ are found by asking the norm itself: every architecture's own (1 + w) or ε is in them.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from rim_lens.errors import RimLensError
from rim_lens.model.lens_model import LensModel
from rim_lens.model.sites import Layer, sites_of

FINAL_NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm", "norm_f", "final_norm")


def need_plain_tree(model: LensModel) -> None:
    """Raise where the model is not a transformers model, whose modules alone say what writes to the stream."""
    if model.hf is None:
        raise RimLensError(f"{model.name} is not a transformers model; its direct paths to the logits are not known.")


def unembedding(model: LensModel) -> nn.Linear:
    """The module that makes logits from the stream behind the final norm."""
    need_plain_tree(model)
    module = model.hf.get_output_embeddings()
    if module is None:
        raise RimLensError(f"{model.name} has no unembedding, so no token that anything could promote.")
    return module


def final_norm(model: LensModel) -> nn.Module:
    """The norm between the last layer and the unembedding."""
    trunk = sites_of(model).trunk
    for name in FINAL_NORMS:
        module = getattr(trunk, name, None)
        if isinstance(module, nn.Module) and len(list(module.parameters())) > 0:
            return module
    raise RimLensError(f"{model.name} has no final norm under any known name ({', '.join(FINAL_NORMS)}).")


def output_matrix(module: nn.Module | None, width: int, what: str) -> Float[Tensor, "unit d_model"]:
    """The matrix that multiplies a row of `width` units: `nn.Linear` keeps its transpose, GPT-2's Conv1D itself.

    Raises:
        RimLensError: no such module, or one whose weight has another shape.
    """
    weight = getattr(module, "weight", None)
    if isinstance(weight, Tensor) and weight.ndim == 2:
        matrix = weight.detach().T if isinstance(module, nn.Linear) else weight.detach()
        if len(matrix) == width:
            return matrix
    raise RimLensError(f"{what} has no output matrix ({type(module).__name__}) whose rows are known.")


def head_matrix(model: LensModel, layer: int) -> Float[Tensor, "head_x_d_head d_model"] | None:
    """What heads' outputs are multiplied with; None for a layer without attention."""
    if model.hf is None:
        return model.bridge.blocks[layer].attn.W_O.detach().reshape(-1, model.d_model)
    site = sites_of(model).layers[layer]
    if site.output is None:
        return None
    width = getattr(site.output, "in_features", model.n_heads * model.d_head)
    return output_matrix(site.output, width, f"The attention of layer {layer} of {model.name}")


def neuron_matrix(model: LensModel, layer: int) -> Float[Tensor, "neuron d_model"]:
    """What a dense layer's neurons are multiplied with."""
    if model.hf is None:
        return model.bridge.blocks[layer].mlp.W_out.detach()
    down = sites_of(model).layers[layer].down
    return output_matrix(down, model.d_mlp, f"The MLP of layer {layer} of {model.name}")


def output_norms(model: LensModel) -> Float[np.ndarray, "layer unit"] | None:
    """‖W_out‖: the norm of what each neuron writes per unit of activation.

    None for a mixture of experts, and where the output matrix cannot be read (packed quantized weights).
    """
    if model.is_moe:
        return None
    try:
        matrices = [neuron_matrix(model, layer) for layer in range(model.n_layers)]
    except RimLensError:
        return None
    return np.stack([matrix.float().norm(dim=1).cpu().numpy() for matrix in matrices])


def bias_of(module: nn.Module | None) -> Float[Tensor, "d_model"] | None:
    """A module's bias, if it has one."""
    bias = getattr(module, "bias", None)
    return bias.detach() if isinstance(bias, Tensor) else None


def multiplier(layer: Layer) -> float:
    """What a block multiplies its writes with before they are added (Granite)."""
    return float(getattr(layer.block, "residual_multiplier", 1.0))


@dataclass(frozen=True, eq=False)
class FrozenNorm:
    """A norm as a linear map but for the length of what goes into it."""

    norm: nn.Module
    scale: Float[Tensor, "d_model"]  # float64, as all that follows
    bias: Float[Tensor, "d_model"]
    centres: bool

    def centred(self, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        """The vectors without their mean, where the norm takes it away."""
        return x - x.mean(dim=-1, keepdim=True) if self.centres else x

    def through(self, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        """Vectors behind the norm, times σ and without the bias."""
        return self.centred(x) * self.scale

    def back(self, direction: Float[Tensor, "d_model"]) -> Float[Tensor, "d_model"]:
        """The direction in front of the norm that reads what `direction` reads behind it, times σ."""
        return self.centred(direction * self.scale)

    def length(self, x: Float[Tensor, "row d_model"]) -> Float[Tensor, " row"]:
        """σ of what goes into the norm, as the norm itself has it."""
        base = self.through(x.double())
        return base.square().sum(-1) / (odd_part(self.norm, x) * base).sum(-1)


def odd_part(norm: nn.Module, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
    """A norm's output without its bias, in float64."""
    parameter = next(norm.parameters())
    x = x.to(parameter)
    return ((norm(x).double() - norm(-x).double()) / 2).to(x.device)


@torch.no_grad()
def frozen(norm: nn.Module | None, d_model: int) -> FrozenNorm | None:
    """A norm's scale, bias and centring; None for no norm."""
    if norm is None:
        return None
    parameter = next(norm.parameters())
    probe = torch.linspace(1, 2, d_model, dtype=torch.float64, device=parameter.device)
    probe[::2] *= -1
    ones = torch.ones_like(probe)
    centres = bool(odd_part(norm, ones).abs().max() < 1e-4)
    centred = probe - probe.mean() if centres else probe
    scale = odd_part(norm, probe) * centred.square().mean().sqrt() / centred
    bias = norm(torch.zeros_like(ones).to(parameter)).double()
    return FrozenNorm(norm, scale, bias, centres)


def layer_norms(model: LensModel, layer: int) -> tuple[FrozenNorm | None, FrozenNorm | None]:
    """The norms on what a layer's attention and MLP write, where the architecture has them."""
    site: Any = sites_of(model).layers[layer]
    return frozen(site.attention_norm, model.d_model), frozen(site.mlp_norm, model.d_model)
