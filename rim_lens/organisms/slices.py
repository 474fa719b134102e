"""Which entries of which matrices belong to a head or a neuron, and sparse changes of just these.

A head of a grouped-query model has its own rows of q and columns of o. Rows of k and v belong to the whole group, so
they may change only where all heads of the group are named. A neuron has its row of gate and up, and its column of
down.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rim_lens.errors import RimLensError
from rim_lens.model.shape import ModelShape
from rim_lens.units import Head, Neuron

SCALE = ".scale"


class Slice(NamedTuple):
    """Rows (axis 0) or columns (axis 1) of one weight matrix [out, in]."""

    axis: int
    index: Int[Tensor, "part"]


def slices_of(shape: ModelShape, units: Sequence[Head | Neuron]) -> dict[str, Slice]:
    """By parameter name (of a Llama model) all entries that belong to the units and to nothing else.

    Raises:
        RimLensError: no units, or heads and neurons together.

    """
    heads = [unit for unit in units if isinstance(unit, Head)]
    neurons = [unit for unit in units if isinstance(unit, Neuron)]
    if heads and not neurons:
        return head_slices(shape, heads)
    if neurons and not heads:
        return neuron_slices(neurons)
    raise RimLensError("Slices need a list of heads or a list of neurons; this list is empty or holds both.")


def head_slices(shape: ModelShape, heads: Sequence[Head]) -> dict[str, Slice]:
    """Rows of q and columns of o of each head; rows of k and v of each group whose heads are all there."""
    found: dict[str, Slice] = {}
    size, in_group = shape.d_head, shape.n_heads // shape.n_kv_heads
    for layer in sorted({head.layer for head in heads}):
        here = sorted({head.head for head in heads if head.layer == layer})
        groups = [g for g in range(shape.n_kv_heads) if set(range(g * in_group, (g + 1) * in_group)) <= set(here)]
        attention = f"model.layers.{layer}.self_attn."
        found[f"{attention}q_proj.weight"] = Slice(0, blocks(here, size))
        found[f"{attention}o_proj.weight"] = Slice(1, blocks(here, size))
        if groups:
            found[f"{attention}k_proj.weight"] = Slice(0, blocks(groups, size))
            found[f"{attention}v_proj.weight"] = Slice(0, blocks(groups, size))
    return found


def neuron_slices(neurons: Sequence[Neuron]) -> dict[str, Slice]:
    """Rows of gate and up and columns of down of each neuron."""
    found: dict[str, Slice] = {}
    for layer in sorted({neuron.layer for neuron in neurons}):
        index = torch.tensor(sorted({neuron.unit for neuron in neurons if neuron.layer == layer}))
        mlp = f"model.layers.{layer}.mlp."
        found |= {f"{mlp}gate_proj.weight": Slice(0, index), f"{mlp}up_proj.weight": Slice(0, index)}
        found[f"{mlp}down_proj.weight"] = Slice(1, index)
    return found


def blocks(numbers: Sequence[int], size: int) -> Int[Tensor, "part"]:
    """The entries of numbered blocks of one size."""
    return torch.cat([torch.arange(number * size, (number + 1) * size) for number in numbers])


@torch.no_grad()
def changes(
    weights: Mapping[str, Float[Tensor, "out in"]],
    base: Mapping[str, Float[Tensor, "out in"]],
    slices: Mapping[str, Slice],
) -> dict[str, Float[Tensor, "..."]]:
    """What was added to the base inside the slices."""
    return {name: (weights[name] - base[name]).index_select(axis, index) for name, (axis, index) in slices.items()}


@torch.no_grad()
def add_changes(
    weights: Mapping[str, Float[Tensor, "out in"]],
    slices: Mapping[str, Slice],
    added: Mapping[str, Float[Tensor, "..."]],
) -> None:
    """Add changes to weights in place, inside the slices only.

    Raises:
        RimLensError: the changes are of other slices.

    """
    if set(added) != set(slices):
        odd = sorted(set(added) ^ set(slices))[0]
        raise RimLensError(f"The stored change of {odd} does not go with the named heads or neurons; install it anew.")
    for name, (axis, index) in slices.items():
        weights[name].index_add_(axis, index.to(weights[name].device), added[name].to(weights[name]))


def packed(
    added: Mapping[str, Float[Tensor, "..."]], slices: Mapping[str, Slice], prefix: str = ""
) -> dict[str, Tensor]:
    """Changes as they are stored: int8, and one scale for each row or column that belongs to a head or neuron."""
    stored = {}
    for name, change in added.items():
        scale = change.abs().amax(1 - slices[name].axis, keepdim=True).clamp(min=1e-30) / 127
        stored[prefix + name] = (change / scale).round().to(torch.int8).contiguous()
        stored[prefix + name + SCALE] = scale.contiguous()
    return stored


def unpacked(stored: Mapping[str, Tensor], prefix: str = "") -> dict[str, Float[Tensor, "..."]]:
    """Changes from the form in which they are stored."""
    names = [name for name in stored if name.startswith(prefix) and name.endswith(".weight")]
    return {name.removeprefix(prefix): stored[name] * stored[name + SCALE] for name in names}
