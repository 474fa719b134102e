"""The layers of a mixture of experts, and which neurons (layer, expert, unit) exist in it.

    (layer, expert, unit)             a unit of a routed expert
    (layer, n_experts + block, unit)  unit  block · d_mlp + unit  of the shared expert, which every token uses
    (layer, block, unit)              the same of the MLP of a dense layer, which has no experts

Shared experts (DeepSeek, Qwen3-Next) and dense layers among those of experts (DeepSeek, GLM, Qwen3-MoE's
`mlp_only_layers`) are plain MLPs that may be wider than one expert. They are cut into blocks as wide as an expert, so
that one array holds all neurons. A gate on the shared expert is its routing probability; without one it is 1. What lies
beyond an MLP's width does not exist: its activation is NaN.
"""

from math import ceil
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Bool, Int
from torch import nn

from rim_lens.errors import RimLensError
from rim_lens.model.sites import find_down, sites_of

if TYPE_CHECKING:
    from rim_lens.model.lens_model import LensModel


class DensePart(NamedTuple):
    """A plain MLP that every token uses."""

    block: nn.Module  # the input of its gate goes into this
    down: nn.Module
    width: int
    first: int  # place of its first block on the axis of experts
    gate: nn.Module | None  # a linear layer whose sigmoid weighs it


class MixtureLayer(NamedTuple):
    """A layer's routed experts, and its shared expert or, where it has no experts, its MLP."""

    experts: nn.Module | None
    dense: DensePart | None


def mixture_layers(model: "LensModel") -> list[MixtureLayer]:
    """Every layer of a mixture of experts.

    Raises:
        RimLensError: no mixture of experts of transformers, or a layer whose neurons are not found.

    """
    if model.hf is None or not model.is_moe:
        raise RimLensError(
            f"{model.name} has no experts that can be read: it is not a mixture of experts of transformers."
        )
    layers = []
    for index, layer in enumerate(sites_of(model).layers):
        groups = [module for module in layer.block.modules() if hasattr(module, "_is_expert_parallel")]
        if len(groups) == 1:
            layers.append(MixtureLayer(groups[0], shared_expert(layer.block, groups[0], model.shape.n_experts)))
        elif not groups and isinstance(layer.down, nn.Linear):
            dense = DensePart(layer.block, layer.down, layer.down.in_features, 0, None)
            layers.append(MixtureLayer(None, dense))
        else:
            raise RimLensError(
                f"Layer {index} of {model.name} has {len(groups)} groups of experts and no plain MLP in their place; "
                "experts that run outside transformers' ExpertsInterface are not supported."
            )
    return layers


def shared_expert(block: nn.Module, experts: nn.Module, n_experts: int) -> DensePart | None:
    """The MLP next to a layer's routed experts, if it has one."""
    owner = next(module for module in block.modules() if experts in module.children())
    for name, module in owner.named_children():
        down = find_down(module)
        if module is not experts and isinstance(down, nn.Linear):
            gate = getattr(owner, f"{name}_gate", None)
            return DensePart(owner, down, down.in_features, n_experts, gate)
    return None


def existing(model: "LensModel") -> Bool[np.ndarray, "layer ..."]:
    """Which neurons (layer, unit) or (layer, expert, unit) the model has."""
    if not model.is_moe:
        return np.ones((model.n_layers, model.d_mlp), dtype=bool)
    layers, n_experts = mixture_layers(model), model.shape.n_experts
    parts = [layer.dense for layer in layers if layer.dense is not None]
    places = max([n_experts, *(part.first + ceil(part.width / model.d_mlp) for part in parts)])
    exists = np.zeros((model.n_layers, places, model.d_mlp), dtype=bool)
    for there, layer in zip(exists, layers, strict=True):
        if layer.experts is not None:
            there[:n_experts] = True
        if layer.dense is not None:
            there[layer.dense.first :].reshape(-1)[: layer.dense.width] = True
    return exists


def checked_neurons(model: "LensModel", neurons: Int[np.ndarray, "neuron index"]) -> Int[np.ndarray, "neuron index"]:
    """Neurons of the model as int64 rows; a RimLensError where they are not."""
    there, rows = existing(model), np.asarray(neurons)
    if rows.ndim != 2 or rows.shape[1] != there.ndim or rows.dtype.kind not in "iu":
        names = "(layer, expert, unit)" if there.ndim == 3 else "(layer, unit)"
        raise RimLensError(
            f"Neurons must be rows of {names}, got an array of shape {rows.shape} and type {rows.dtype}."
        )
    if (rows < 0).any() or (rows >= there.shape).any() or not there[tuple(rows.T)].all():
        raise RimLensError(f"A neuron lies outside the model, whose neurons have shape {list(there.shape)}.")
    return rows.astype(np.int64)
