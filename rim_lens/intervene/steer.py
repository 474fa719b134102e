"""Steering: a direction of the residual stream is added, projected out, or clamped, for the time of a block.

    with steer(model, direction, project_out=True):
        generate(model, requests)           # and passes inside the block

Of a direction r with unit vector u, at the chosen positions x of the residual stream:

add           x ← x + add · r          where x enters the layers
clamp         x ← x − (x · u) u + clamp · u        where x enters the layers
project_out   x ← x − (x · u) u        of everything that is written to the stream: embedding, attention and MLP of
              every layer; at all positions this is the same as taking u out of the matrices (and biases) that write

Source: Arditi et al. 2024, "Refusal in Language Models Is Mediated by a Single Direction" (activation addition,
directional ablation, weight orthogonalization).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rim_lens.chat.positions import Positions
from rim_lens.errors import RimLensError
from rim_lens.intervene.selection import UnitTap
from rim_lens.model.lens_model import LensModel
from rim_lens.model.taps import Backend


def steer(
    model: LensModel,
    direction: Any,
    *,
    add: float | None = None,
    project_out: bool = False,
    clamp: float | None = None,
    layers: int | Iterable[int] | None = None,
    positions: Positions = "all",
    backend: Backend = "auto",
) -> AbstractContextManager[LensModel]:
    """Change the residual stream along a direction in every pass inside the block. One of three ways must be chosen.

    Args:
        model: the model; it is restored when the block is left.
        direction: a vector [d_model]; anything with a `vector` (a `RefusalDirection`, a probe's `Direction`); or a list
            of these, one per row of the batch.
        add: how many times the direction, in its own length, is added.
        project_out: take the direction out of all that is written to the stream.
        clamp: the component along the unit vector that the stream gets, in the stream's units.
        layers: the layers at whose entry the stream is changed; `n_layers` is behind the last one. By default for `add`
            and `clamp` the direction's own `layer`; for `project_out` all writes, in all layers.
        positions: "all", "decision", "from_decision", or a phase: "prompt", "thinking", "answer" (a tag counts with
            what is written behind it).
        backend: how passes are changed; "auto" takes the fast way where there is one.

    Raises:
        RimLensError: no way or several, a direction of another width, of length 0 or with NaN, no layer or an unknown
            one; for `project_out` a layer whose writes are not known.

    """
    if [add is not None, project_out, clamp is not None].count(True) != 1:
        raise RimLensError("steer takes one of add=, project_out=True and clamp=; nest two blocks for two of them.")
    vectors = vectors_of(model, direction)
    if project_out and layers is None:
        return model.tap(WritesWithout(vectors, positions), backend=backend)
    where = steered_layers(model, direction, layers)
    if add is not None:
        return model.tap(Added(vectors, positions, where, add), backend=backend)
    return model.tap(Clamped(vectors, positions, where, clamp or 0.0), backend=backend)


def vectors_of(model: LensModel, direction: Any) -> Float[Tensor, "row d_model"]:
    """One direction for all rows, or one per row, in float32."""
    is_list = isinstance(direction, Sequence) and not all(isinstance(one, int | float) for one in direction)
    rows = [torch.as_tensor(np.asarray(getattr(one, "vector", one))) for one in (direction if is_list else [direction])]
    if not rows or any(row.shape != (model.d_model,) for row in rows):
        shapes = sorted({tuple(row.shape) for row in rows})
        raise RimLensError(
            f"A direction of {model.name} is a vector of {model.d_model} numbers, or a list with one per row; "
            f"got shapes {shapes}."
        )
    vectors = torch.stack([row.float() for row in rows])
    lengths = vectors.norm(dim=-1)
    if not bool(torch.isfinite(lengths).all()) or bool((lengths == 0).any()):
        raise RimLensError("A direction to steer along has length 0, or is not finite.")
    return vectors


def steered_layers(model: LensModel, direction: Any, layers: int | Iterable[int] | None) -> frozenset[int]:
    """The layers that were named, or the direction's own."""
    if layers is None:
        layers = getattr(direction, "layer", None)
    if layers is None:
        raise RimLensError("steer has no layer at which to change the stream; pass layers=.")
    chosen = frozenset([layers] if isinstance(layers, int) else layers)
    if not chosen or any(not 0 <= layer <= model.n_layers for layer in chosen):
        raise RimLensError(f"layers {sorted(chosen)} are not all among 0 to {model.n_layers}, or there is none.")
    return chosen


class SteerTap(UnitTap, ABC):
    """Base of taps that change the stream along a direction at some positions."""

    what = "steering"

    def __init__(self, vectors: Float[Tensor, "#row d_model"], where: Positions, layers: frozenset[int] | None) -> None:
        super().__init__({}, where)
        self.layers, self.vectors = layers, vectors

    @property
    def n_given(self) -> int:
        """Rows that have a direction of their own; 1 stands for any."""
        return len(self.vectors)

    @abstractmethod
    def new(
        self, stream: Float[Tensor, "row pos d_model"], vectors: Float[Tensor, "#row #pos d_model"]
    ) -> Float[Tensor, "row pos d_model"]:
        """The stream after the change, in float32."""

    def steered(self, stream: Float[Tensor, "row pos d_model"]) -> Tensor | None:
        """The stream with the chosen positions changed."""
        if self.idle:
            return None
        vectors = self.vectors if self.rows is None else self.vectors[self.rows]
        new = self.new(stream.float(), vectors[:, None].to(stream.device)).to(stream.dtype)
        return new if self.at is None else torch.where(self.at[..., None].to(stream.device), new, stream)

    def on_residual(self, layer: int, resid: Float[Tensor, "row pos d_model"]) -> Tensor | None:
        """See the class."""
        return self.steered(resid)


class Added(SteerTap):
    """x ← x + add · r."""

    def __init__(self, vectors: Tensor, where: Positions, layers: frozenset[int], add: float) -> None:
        super().__init__(vectors, where, layers)
        self.add = add

    def new(self, stream: Tensor, vectors: Tensor) -> Tensor:
        """See the class."""
        return stream + self.add * vectors


class Clamped(SteerTap):
    """x ← x − (x · u) u + clamp · u."""

    def __init__(self, vectors: Tensor, where: Positions, layers: frozenset[int] | None, clamp: float) -> None:
        lengths = vectors.norm(dim=-1, keepdim=True)
        super().__init__(vectors / torch.where(lengths > 0, lengths, 1.0), where, layers)  # zeros: an unchanged row
        self.clamp = clamp

    def new(self, stream: Tensor, vectors: Tensor) -> Tensor:
        """See the class."""
        return stream + (self.clamp - (stream * vectors).sum(-1, keepdim=True)) * vectors


class WritesWithout(Clamped):
    """The component is taken out of the embedding and of what every attention and MLP writes."""

    def __init__(self, vectors: Tensor, where: Positions) -> None:
        super().__init__(vectors, where, None, 0.0)

    def on_residual(self, layer: int, resid: Float[Tensor, "row pos d_model"]) -> Tensor | None:
        """The embedding; later streams are sums of what is written."""
        return self.steered(resid) if layer == 0 else None

    def on_attention_write(self, layer: int, written: Float[Tensor, "row pos d_model"]) -> Tensor | None:
        """See the class."""
        return self.steered(written)

    def on_mlp_write(self, layer: int, written: Float[Tensor, "row pos d_model"]) -> Tensor | None:
        """See the class."""
        return self.steered(written)
