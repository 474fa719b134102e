"""The layers of a mixture of experts, and which neurons (layer, expert, unit) exist in it.

    layer of experts    (layer, expert, unit)    the expert's own unit
    dense layer         (layer, block, unit)     unit  block · d_mlp + unit  of the dense MLP, which every token uses with weight 1

Some mixtures (DeepSeek, GLM, Qwen3-MoE's `mlp_only_layers`) have dense layers among those of experts, wider than one expert. They are cut
into blocks as wide as an expert, so that one array holds all neurons. What lies beyond their width does not exist: its activation is NaN.
"""

from math import ceil
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Bool, Int
from torch import nn

from rim_lens.errors import RimLensError
from rim_lens.model.taps_fast import sites_of

if TYPE_CHECKING:
    from rim_lens.model.lens_model import LensModel


class MixtureLayer(NamedTuple):
    """The experts of a layer, or the down projection of a dense one with its number of neurons."""

    module: nn.Module
    dense_width: int | None = None


def mixture_layers(model: "LensModel") -> list[MixtureLayer]:
    """Every layer of a mixture of experts.

    Raises:
        RimLensError: no mixture of experts of transformers, or a layer whose neurons are not found.

    """
    if model.hf is None or not model.is_moe:
        raise RimLensError(
            f"{model.name} has no experts that can be read: it is no mixture of experts of transformers."
        )
    layers = []
    for index, layer in enumerate(sites_of(model).layers):
        groups = [module for module in layer.block.modules() if hasattr(module, "_is_expert_parallel")]
        width = getattr(layer.down, "in_features", None)
        if len(groups) == 1:
            layers.append(MixtureLayer(groups[0]))
        elif not groups and layer.down is not None and width and ceil(width / model.d_mlp) <= model.shape.n_experts:
            layers.append(MixtureLayer(layer.down, width))
        else:
            raise RimLensError(
                f"Layer {index} of {model.name} has {len(groups)} groups of experts and no dense MLP in their place that is read; "
                "experts that run outside transformers' ExpertsInterface are not supported."
            )
    return layers


def existing(model: "LensModel") -> Bool[np.ndarray, "layer ..."]:
    """Which neurons (layer, unit) or (layer, expert, unit) the model has: all but those beyond a dense layer of a mixture."""
    if not model.is_moe:
        return np.ones((model.n_layers, model.d_mlp), dtype=bool)
    found = np.ones((model.n_layers, model.shape.n_experts, model.d_mlp), dtype=bool)
    for index, layer in enumerate(mixture_layers(model)):
        if layer.dense_width is not None:
            found[index].reshape(-1)[layer.dense_width :] = False
    return found


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
