"""Neurons held still while the rest of a model is trained.

Neuron (layer, unit): row `unit` of the projections into the MLP's hidden layer and column `unit` of the down
projection.

    all weights   gradients of these slices are zero, and the slices are put back after every step (weight decay,
    momentum)
    LoRA, ΔW=BA   rows of B (into the hidden layer) and columns of A (down projection) are zero and stay so: ΔW is
    exactly 0 there

The neuron's activation can still shift, because what flows into it does: see `shift_penalty`.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from rim_lens.errors import RimLensError
from rim_lens.model.sites import find_sites

Rows = Int[np.ndarray, "neuron 2"]


def read_neurons(path: str | Path) -> Rows:
    """Rows (layer, unit) from a JSON file ([[layer, unit], …] or {"neurons": …}) or the folder of saved safety neurons.

    Raises:
        RimLensError: no such file, something else in it, or neurons of a mixture of experts.

    """
    rows = stored_neurons(path)
    if rows.shape[1] != 2:
        raise RimLensError("Neurons of a mixture of experts cannot be held still: their weights are shared tensors.")
    return rows


def stored_neurons(path: str | Path) -> Int[np.ndarray, "neuron index"]:
    """As `read_neurons`, and rows (layer, expert, unit) of a mixture of experts too."""
    from rim_lens.capture.neuron_sets import neuron_rows

    path = Path(path).expanduser()
    if path.is_dir():
        from rim_lens.results import load_result

        return neuron_rows(load_result(path))
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return neuron_rows(document["neurons"] if isinstance(document, dict) else document)
    except (OSError, ValueError, KeyError) as error:
        raise RimLensError(f"{path} cannot be read as neurons ({type(error).__name__}: {error}).") from error


@dataclass(frozen=True, eq=False)
class Held:
    """One layer's held units, with the names of the linear modules that their weights lie in."""

    layer: int
    units: tuple[int, ...]
    into: tuple[str, ...]
    down: str
    width: int


def held_places(hf: Any, neurons: Rows) -> list[Held]:
    """Where the neurons' weights lie in a transformers model.

    Raises:
        RimLensError: a layer or unit that the model has not, or a layer whose MLP is not understood.

    """
    n_layers = hf.config.get_text_config().num_hidden_layers
    sites = find_sites(hf, n_layers)
    names = {module: name for name, module in hf.named_modules()}
    places = []
    for layer in sorted(set(neurons[:, 0].tolist())):
        down = sites.layers[layer].down if 0 <= layer < n_layers else None
        if down is None:
            raise RimLensError(
                f"Layer {layer} has no dense MLP in this model ({n_layers} layers); its neurons cannot be held."
            )
        width = shape_of(down)[1]
        units = tuple(sorted(set(neurons[neurons[:, 0] == layer, 1].tolist())))
        if not 0 <= units[0] <= units[-1] < width:
            raise RimLensError(
                f"Layer {layer} has {width} neurons; unit {units[-1] if units[-1] >= width else units[0]} is not "
                "among them."
            )
        parent = names[down].rpartition(".")[0]
        into = tuple(
            names[module]
            for module in hf.get_submodule(parent).children()
            if module is not down
            and hasattr(module, "weight")
            and module.weight.dim() == 2
            and shape_of(module)[0] % width == 0
        )
        if not into:
            raise RimLensError(
                f"No projection into the {width} neurons of layer {layer} was found; they cannot be held."
            )
        places.append(Held(layer, units, into, names[down], width))
    return places


def shape_of(module: Any) -> tuple[int, int]:
    """(out, in) of a linear module; GPT-2's Conv1D stores its weight the other way round."""
    first, second = module.weight.shape
    return (second, first) if type(module).__name__ == "Conv1D" else (first, second)


@dataclass(eq=False)
class Slice:
    """Some rows (dim 0) or columns (dim 1) of a parameter and the values that they keep."""

    parameter: nn.Parameter
    dim: int
    indices: Int[Tensor, " held"]
    kept: Float[Tensor, "..."]

    @classmethod
    def of(cls, parameter: nn.Parameter, dim: int, indices: Sequence[int], *, zero: bool = False) -> "Slice":
        """The slice with the values that it has now, or with zeros, which are written at once."""
        places = torch.tensor(list(indices), device=parameter.device)
        values = parameter.detach().index_select(dim, places).clone()
        made = cls(parameter, dim, places, torch.zeros_like(values) if zero else values)
        made.restore()
        return made

    @torch.no_grad()
    def restore(self) -> None:
        """Put the kept values back."""
        self.parameter.index_copy_(self.dim, self.indices, self.kept)

    @torch.no_grad()
    def mask(self, gradient: Tensor) -> Tensor:
        """The gradient with zeros in the slice."""
        return gradient.index_fill(self.dim, self.indices, 0.0)


def hold(model: nn.Module, places: Sequence[Held], prefix: str = "") -> list[Slice]:
    """Mask the gradients of the held slices; the caller restores them after each step.

    `prefix` is what PEFT puts before module names; a module with LoRA matrices is held by them, another by its weight.
    """
    slices = [one for place in places for one in slices_of(model, place, prefix)]
    for one in slices:
        one.parameter.register_hook(one.mask)
    return slices


def slices_of(model: nn.Module, place: Held, prefix: str) -> Iterator[Slice]:
    """The slices of one layer."""
    for name in (*place.into, place.down):
        module: Any = model.get_submodule(prefix + name)
        is_down = name == place.down
        out = shape_of(getattr(module, "base_layer", module))[0]
        # A fused gate-and-up projection has each unit's rows once in every block of the hidden width.
        rows = [unit + block for block in range(0, out, place.width) for unit in place.units]
        if hasattr(module, "lora_A"):
            for adapter in module.lora_A:
                if is_down:
                    yield Slice.of(module.lora_A[adapter].weight, 1, place.units, zero=True)
                else:
                    yield Slice.of(module.lora_B[adapter].weight, 0, rows, zero=True)
            continue
        transposed = type(module).__name__ == "Conv1D"
        if module.weight.requires_grad:
            yield Slice.of(module.weight, int(is_down != transposed), place.units if is_down else rows)
        bias = getattr(module, "bias", None)
        if not is_down and bias is not None and bias.requires_grad:
            yield Slice.of(bias, 0, rows)
