"""Zeroing neurons of mixture-of-experts layers, for the time of a block.

(layer, expert, unit), a ← 0 wherever it is used.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rim_lens.capture.experts import ExpertCall, ExpertTap, expert_taps
from rim_lens.capture.mixture_layers import existing
from rim_lens.errors import RimLensError
from rim_lens.intervene.selection import Neurons
from rim_lens.model.lens_model import LensModel
from rim_lens.units import Neuron, is_per_row


def ablate_expert_neurons(model: LensModel, neurons: Neurons) -> AbstractContextManager[LensModel]:
    """Zero neurons of experts in every pass inside the block; one list for all rows, or one list per row of the batch.

    Raises:
        RimLensError: an unknown neuron, or a model without experts.
    """
    there = existing(model)  # raises now rather than when the block is entered
    if there.ndim == 2:
        raise RimLensError(f"{model.name} has no experts: name its neurons as (layer, unit).")
    rows: Sequence[Any] = neurons if is_per_row(neurons) else [neurons]
    shape = there.shape
    chosen: dict[tuple[int, int], Bool[Tensor, "#row unit"]] = {}
    for row, units in enumerate(rows):
        for unit in (Neuron.parse(one).place for one in units):
            inside = len(unit) == 3 and all(0 <= index < size for index, size in zip(unit, shape, strict=True))
            if not inside or not there[unit]:
                raise RimLensError(f"There is no neuron {unit}: give (layer, expert, unit) below {shape}.")
            mask = chosen.setdefault((unit[0], unit[1]), torch.zeros(len(rows), shape[2], dtype=torch.bool))
            mask[row, unit[2]] = True
    return expert_taps(model, ZeroExpertNeurons(chosen))


class ZeroExpertNeurons(ExpertTap):
    """a ← 0."""

    def __init__(self, chosen: dict[tuple[int, int], Bool[Tensor, "#row unit"]]) -> None:
        self.chosen = chosen

    def on_expert(self, call: ExpertCall, post: Float[Tensor, "slot d_mlp"]) -> Tensor | None:
        """See the class."""
        mask = self.chosen.get((call.layer, call.expert))
        if mask is None:
            return None
        if len(mask) > 1 and int(call.row.max()) >= len(mask):
            raise RimLensError(f"The ablation was given for {len(mask)} rows, but the batch has more.")
        mask = mask.to(post.device)
        return post.masked_fill(mask[call.row] if len(mask) > 1 else mask, 0)
