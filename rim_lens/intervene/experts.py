"""Zeroing neurons of mixture-of-experts layers, for the time of a block: (layer, expert, unit), a ← 0 wherever it is used."""

from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rim_lens.capture.experts import ExpertCall, ExpertTap, expert_taps
from rim_lens.capture.mixture_layers import existing
from rim_lens.errors import RimLensError
from rim_lens.model.lens_model import LensModel

ExpertNeuron = tuple[int, int, int]
ExpertNeurons = Sequence[ExpertNeuron] | Sequence[Sequence[ExpertNeuron]]


def ablate_expert_neurons(model: LensModel, neurons: ExpertNeurons) -> AbstractContextManager[LensModel]:
    """Zero neurons of experts in every pass inside the block; one list for all rows, or one list per row of the batch.

    Raises:
        RimLensError: an unknown neuron, or a model without experts.
    """
    there = existing(model)  # raises now rather than when the block is entered
    if there.ndim == 2:
        raise RimLensError(f"{model.name} has no experts: name its neurons as (layer, unit).")
    per_row = any(len(unit) == 0 or not hasattr(unit[0], "__index__") for unit in neurons)
    rows: Sequence[Sequence[ExpertNeuron]] = neurons if per_row else [neurons]  # type: ignore[assignment, list-item]
    shape = there.shape
    chosen: dict[tuple[int, int], Bool[Tensor, "#row unit"]] = {}
    for row, units in enumerate(rows):
        for unit in units:
            inside = len(unit) == 3 and all(0 <= index < size for index, size in zip(unit, shape, strict=True))
            if not inside or not there[tuple(unit)]:
                raise RimLensError(f"There is no neuron {tuple(unit)}: give (layer, expert, unit) below {shape}.")
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
