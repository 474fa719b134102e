"""Ablating and scaling neurons, for the time of a block.

A neuron is one input of an MLP's down projection: (layer, unit). zero: a ← 0; mean: a ← its mean over a reference set;
resample: a ← another prompt's; scale: a ← factor · a. In a mixture of experts it is (layer, expert, unit) and can be
zeroed.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from rim_lens.chat.chat import Chat
from rim_lens.chat.positions import Positions
from rim_lens.errors import RimLensError
from rim_lens.intervene.experts import ablate_expert_neurons
from rim_lens.intervene.recording import donor_rows
from rim_lens.intervene.selection import Chosen, Neurons, UnitTap, chosen_neurons
from rim_lens.model.lens_model import LensModel
from rim_lens.model.taps import Backend, Pass


def ablate_neurons(
    model: LensModel,
    neurons: Neurons,
    method: Literal["zero", "mean", "resample"] = "zero",
    *,
    reference: Float[Tensor, "layer d_mlp"] | Float[Tensor, "prompt layer d_mlp"] | None = None,
    requests: Sequence[str] = (),
    positions: Positions = "all",
    seed: int = 0,
    backend: Backend = "auto",
) -> AbstractContextManager[LensModel]:
    """Take neurons out of every pass inside the block.

    Args:
        model: the model; it is restored when the block is left.
        neurons: (layer, unit) pairs, (layer, expert, unit) in a mixture of experts, or one such list per row of the
            batch.
        method: "zero"; "mean", the values in `reference`; "resample", another prompt's values in `reference`.
        reference: [layer, d_mlp] for "mean", [prompt, layer, d_mlp] for "resample".
        requests: the request of each prompt in `reference`, for "resample".
        positions: "all", "decision", "from_decision" (that and later ones), or a phase: "prompt", "cot", "answer".
        seed: for "resample".
        backend: how passes are changed; "auto" takes the fast way where there is one.

    Raises:
        RimLensError: an unknown neuron, a method without its reference; in a mixture of experts anything but zeroing
            everywhere.

    """
    if model.is_moe:
        if method != "zero" or positions != "all" or backend == "hooks":
            raise RimLensError(
                f"Neurons of {model.name}, a mixture of experts, can be zeroed at all positions through transformers "
                'only: leave method=, positions= and backend="hooks" out.'
            )
        return ablate_expert_neurons(model, neurons)
    chosen = chosen_neurons(model, neurons)
    if method == "zero":
        return model.tap(ZeroNeurons(chosen, positions), backend=backend)
    if method not in ("mean", "resample"):
        raise RimLensError(f"unknown ablation {method!r}: use 'zero', 'mean' or 'resample'.")
    n_dims = 2 if method == "mean" else 3
    if reference is None or reference.ndim != n_dims or (method == "resample" and len(requests) != len(reference)):
        shape = "[layer, d_mlp]" if method == "mean" else "[prompt, layer, d_mlp] with one of requests= a prompt"
        raise RimLensError(f"ablation of neurons by {method!r} needs a reference of shape {shape}.")
    if method == "mean":
        return model.tap(ReplacedNeurons(chosen, positions, reference[None]), backend=backend)
    return model.tap(ResampledNeurons(chosen, positions, reference, requests, seed), backend=backend)


def scale_neurons(
    model: LensModel, neurons: Neurons, factor: float, *, positions: Positions = "all", backend: Backend = "auto"
) -> AbstractContextManager[LensModel]:
    """Multiply neurons by `factor` in every pass inside the block."""
    if model.is_moe:  # also where some layers are dense: their neurons are not as many as an expert's
        raise RimLensError(
            f"Neurons of {model.name}, a mixture of experts, can be zeroed by ablate_neurons, not scaled."
        )
    return model.tap(ScaledNeurons(chosen_neurons(model, neurons), positions, factor), backend=backend)


class ZeroNeurons(UnitTap):
    """a ← 0."""

    what = "zero ablation of neurons"
    site = "neurons"

    def on_neurons(self, layer: int, post: Float[Tensor, "row pos d_mlp"]) -> Tensor | None:
        """See the class."""
        return None if self.idle else post.masked_fill(self.mask(layer), 0)


class ScaledNeurons(UnitTap):
    """a ← factor · a."""

    what = "scaling of neurons"
    site = "neurons"

    def __init__(self, chosen: Chosen, where: Positions, factor: float) -> None:
        super().__init__(chosen, where)
        self.factor = factor

    def on_neurons(self, layer: int, post: Float[Tensor, "row pos d_mlp"]) -> Tensor | None:
        """See the class."""
        return None if self.idle else torch.where(self.mask(layer), post * self.factor, post)


class ReplacedNeurons(UnitTap):
    """a ← given values, one set for all rows or one per row."""

    what = "mean ablation of neurons"
    site = "neurons"

    def __init__(self, chosen: Chosen, where: Positions, values: Float[Tensor, "#row layer d_mlp"]) -> None:
        super().__init__(chosen, where)
        self.values = values

    def replacement(self, layer: int, chat: Chat) -> Tensor:
        """The values, one set for all rows."""
        return self.values[0, layer]

    def on_neurons(self, layer: int, post: Float[Tensor, "row pos d_mlp"]) -> Tensor | None:
        """See the class."""
        if self.idle:
            return None
        return torch.where(self.mask(layer), self.values[:, layer].to(post)[:, None], post)


class ResampledNeurons(ReplacedNeurons):
    """a ← another prompt's."""

    what = "resample ablation of neurons"

    def __init__(
        self,
        chosen: Chosen,
        where: Positions,
        reference: Float[Tensor, "prompt layer d_mlp"],
        requests: Sequence[str],
        seed: int,
    ) -> None:
        super().__init__(chosen, where, reference)
        self.reference, self.requests, self.seed = reference, requests, seed

    def edit_key(self, row: int, chat: Chat) -> tuple[Any, ...]:
        """Each request has its donor."""
        return (chat.request, *super().edit_key(row, chat))

    def replacement(self, layer: int, chat: Chat) -> Tensor:
        """The donor's."""
        return self.reference[donor_rows(self.requests, [chat.request], self.seed)[0], layer]

    def on_pass(self, here: Pass) -> None:
        """Choose each row's donor."""
        super().on_pass(here)
        requests = [chat.request for chat in here.known_batch(self.what).chats]
        self.values = self.reference[donor_rows(self.requests, requests, self.seed)]
