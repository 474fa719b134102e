"""Ablating and scaling neurons, for the time of a block.

A neuron is one input of an MLP's down projection: (layer, unit). zero: a ← 0; mean: a ← its mean over a reference set;
resample: a ← another prompt's; scale: a ← factor · a. In a mixture of experts it is (layer, expert, unit), and is
changed at the tokens that are sent to its expert.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from rim_lens.chat.positions import Positions
from rim_lens.errors import RimLensError
from rim_lens.intervene.selection import Neurons, chosen_neurons
from rim_lens.intervene.unit_edit import UnitEdit
from rim_lens.model.lens_model import LensModel
from rim_lens.model.mixture_layers import existing
from rim_lens.model.taps import Backend


def ablate_neurons(
    model: LensModel,
    neurons: Neurons,
    method: Literal["zero", "mean", "resample"] = "zero",
    *,
    reference: Float[Tensor, "... d_mlp"] | None = None,
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
        reference: [layer, d_mlp] for "mean", [prompt, layer, d_mlp] for "resample"; with experts
            [..., layer, expert, d_mlp], as `capture.neurons.values_to_put` gives them.
        requests: the request of each prompt in `reference`, for "resample".
        positions: "all", "decision", "from_decision" (that and later ones), or a phase: "prompt", "cot", "answer".
        seed: for "resample".
        backend: how passes are changed; "auto" takes the fast way where there is one.

    Raises:
        RimLensError: an unknown neuron, or a method without its reference.

    """
    chosen = chosen_neurons(model, neurons)
    if method == "zero":
        return model.tap(UnitEdit("zero ablation", "neurons", chosen, positions), backend=backend)
    if method not in ("mean", "resample"):
        raise RimLensError(f"unknown ablation {method!r}: use 'zero', 'mean' or 'resample'.")
    shape = existing(model).shape
    expected = shape if method == "mean" else (len(requests), *shape)
    if reference is None or tuple(reference.shape) != expected:
        first = "" if method == "mean" else ", with one of requests= per prompt"
        raise RimLensError(f"ablation of neurons by {method!r} needs a reference of shape {list(expected)}{first}.")
    values = reference[None] if method == "mean" else reference
    edit = UnitEdit(
        f"{method} ablation",
        "neurons",
        chosen,
        positions,
        reference=values,
        requests=requests if method == "resample" else (),
        seed=seed,
    )
    return model.tap(edit, backend=backend)


def scale_neurons(
    model: LensModel, neurons: Neurons, factor: float, *, positions: Positions = "all", backend: Backend = "auto"
) -> AbstractContextManager[LensModel]:
    """Multiply neurons by `factor` in every pass inside the block."""
    return model.tap(
        UnitEdit("scaling", "neurons", chosen_neurons(model, neurons), positions, factor=factor), backend=backend
    )
