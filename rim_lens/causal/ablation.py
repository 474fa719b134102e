"""One ablation of sets of heads or neurons, or of a direction, that every measure can ask for.

Called with one set for all rows or a list of sets, one per row of the batch, it changes them for the time of a block.
A set of kind "direction" holds one vector [d_model]; zero ablation of it is projecting it out of all that is written.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rim_lens.capture.activations import mean_head_outputs
from rim_lens.capture.neurons import values_to_put
from rim_lens.chat.positions import Positions, checked_positions
from rim_lens.errors import RimLensError
from rim_lens.intervene.heads import ablate_heads
from rim_lens.intervene.neurons import ablate_neurons
from rim_lens.intervene.recording import HeadRecording, record_heads
from rim_lens.intervene.steer import WritesWithout
from rim_lens.model.as_chats import as_chats
from rim_lens.model.lens_model import LensModel

Kind = Literal["heads", "neurons", "direction"]
Method = Literal["zero", "mean", "resample"]


@dataclass(frozen=True, eq=False)
class Ablation:
    """Ablation of one kind of unit by one method; `values` are what the method puts in place."""

    model: LensModel
    kind: Kind
    method: Method
    positions: Positions
    values: Any = None
    requests: Sequence[str] = ()
    seed: int = 0

    def __call__(self, units: Any, where: Positions | None = None) -> AbstractContextManager[LensModel]:
        """Ablate a set, or one set per row, at the ablation's positions or at others."""
        at: Positions = self.positions if where is None else where
        if self.kind == "direction":
            return self.model.tap(WritesWithout(vector_per_row(units, self.model.d_model), at))
        if self.kind == "heads":
            return ablate_heads(self.model, units, self.method, reference=self.values, positions=at, seed=self.seed)
        return ablate_neurons(
            self.model, units, self.method, reference=self.values, requests=self.requests, positions=at, seed=self.seed
        )


def vector_per_row(units: Any, d_model: int) -> Float[Tensor, "row d_model"]:
    """The vector of one set for all rows, or of one set per row; zeros, which change nothing, for an empty set."""
    sets = units if units and isinstance(units[0], list) else [units]
    vectors = [one[0] if len(one) else np.zeros(d_model) for one in sets]
    return torch.from_numpy(np.stack(vectors)).float()


def ablation(
    model: LensModel, kind: Kind, method: Method, positions: Positions, reference: Any, seed: int = 0
) -> Ablation:
    """An ablation whose means and donors are taken at the positions where they are put.

    A donor's neurons are its means over these positions; a donor's heads are those at its decision position.

    Raises:
        RimLensError: an unknown method or position, or a direction that is to be replaced by something.
    """
    if method not in ("zero", "mean", "resample"):
        raise RimLensError(f"unknown ablation {method!r}: use 'zero', 'mean' or 'resample'.")
    checked_positions(positions)
    if kind == "direction" and method != "zero":
        raise RimLensError(f"A direction is projected out (method='zero'); {method!r} is for heads and neurons.")
    if method == "zero":
        return Ablation(model, kind, method, positions, seed=seed)
    if isinstance(reference, HeadRecording | Tensor):
        return Ablation(model, kind, method, positions, reference, seed=seed)
    chats = as_chats(model, reference)
    requests = [chat.request for chat in chats]
    if kind == "heads" and method == "mean":
        values: Any = mean_head_outputs(model, chats, positions)
    elif kind == "heads":
        values = record_heads(model, chats)
    else:
        values = values_to_put(model, chats, positions, per_prompt=method == "resample")
    return Ablation(model, kind, method, positions, values, requests, seed)
