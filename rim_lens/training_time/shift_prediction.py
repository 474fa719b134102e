"""The shift of safety neurons that one gradient step on fine-tuning data would cause, before anything is trained.

    f(a; D, θ + s u) ≈ f(a; D, θ) + s ∂f/∂u        u = −∇L / ‖∇L‖ ("sgd") or −sign(∇L) / ‖sign(∇L)‖ ("sign", Adam's
    first step)

L is the mean negative log-likelihood of the tokens that the model would write, s = size · ‖θ‖. The directional
derivative is the central difference (f(θ + h u) − f(θ − h u)) / 2h with h = 1e-4 ‖θ‖; its error is of second order in
h, and `curvature` says how far f is from linear over that range. The parameters are moved in place and put back.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rim_lens.capture.neuron_activations import Measure, NeuronActivations
from rim_lens.capture.neuron_sets import NeuronRows, matched_controls, neuron_rows, of_sets
from rim_lens.chat.chat import Chat
from rim_lens.chat.positions import Positions
from rim_lens.chat.segments import segment_id
from rim_lens.errors import RimLensError
from rim_lens.model.as_chats import answered_chats, as_chats
from rim_lens.model.fitting import halves_batches
from rim_lens.model.lens_model import LensModel
from rim_lens.model.requests import Prompts
from rim_lens.model.stored_weights import StoredWeights
from rim_lens.model.swap import shown, squared_norm, swap_of
from rim_lens.progress import track
from rim_lens.results import Manifest, Result
from rim_lens.stats import Correlation, correlation, empirical_p, percentile
from rim_lens.training_time.prompt_pass import pass_over
from rim_lens.training_time.ras import harmonic
from rim_lens.training_time.series_measures import REQUEST_AND_ANSWER
from rim_lens.training_time.shift import ActivationShift, neuron_changes, relative_change
from rim_lens.units import index_columns

ACTIVATION_BATCH = 32
REACH = 1e-4  # h / ‖θ‖: above rounding in float32, below where f bends

Gradients = dict[str, Float[Tensor, "..."]]


@dataclass(frozen=True, eq=False)
class PredictedShift(Result):
    """What one step of relative length `size` = ‖Δθ‖ / ‖θ‖ would do to a set of neurons, to first order.

    `table`: one row for the safety and one for the task prompts, where these were given: F before, the predicted change
    (F₁ − F₀) / F₀, the control sets' mean change, percentile and two-sided p. `neurons`: the same per neuron, on the
    safety prompts; `f_before` and `f_after`: of all neurons. `ras`: RAS of the predicted shifts, with the control sets'
    mean and one-sided p; NaN without task prompts. `curvature`: ‖f₊ − 2 f₀ + f₋‖ / ‖f₊ − f₋‖ over all neurons.
    """

    table: pd.DataFrame
    neurons: pd.DataFrame
    ras: float
    ras_control: float
    ras_p: float
    size: float
    step: str
    curvature: float
    loss: float
    n_examples: int
    n_controls: int
    f_before: Float[np.ndarray, "layer ..."]
    f_after: Float[np.ndarray, "layer ..."]

    def __repr__(self) -> str:
        shifts = ", ".join(f"{row.prompts} {100 * row.change:+.2f} %" for row in self.table.itertuples())
        ras = "" if math.isnan(self.ras) else f", RAS {self.ras:.2g}, p = {self.ras_p:.2g}"
        return f"PredictedShift(a {self.step} step of {self.size:g} ‖θ‖: {shifts}{ras})"

    def against(self, shift: ActivationShift) -> Correlation:
        """Correlation over neurons of the predicted change with what then happened on the same neurons.

        Raises:
            RimLensError: the shift was measured on other neurons.
        """
        index = list(index_columns(3 if "expert" in self.neurons else 2))
        both = self.neurons.merge(shift.neurons, on=index, suffixes=("_predicted", "_seen"))
        if len(both) != len(self.neurons):
            raise RimLensError("The shift was measured on other neurons than were predicted; use the same set.")
        return correlation(both["change_predicted"].to_numpy(), both["change_seen"].to_numpy())


def predict_shift(
    model: LensModel,
    neurons: NeuronRows,
    data: Sequence[Chat],
    safety: Prompts,
    task: Prompts | None = None,
    *,
    before: NeuronActivations | None = None,
    step: Literal["sgd", "sign"] = "sgd",
    size: float = 1e-3,
    positions: Positions = REQUEST_AND_ANSWER,
    measure: Measure = "magnitude",
    controls: Int[np.ndarray, "set neuron index"] | None = None,
    n_controls: int = 1000,
    batch_size: int = 4,
    seed: int = 0,
) -> PredictedShift:
    """First-order shift of a set of neurons under one gradient step on fine-tuning data.

    Args:
        model: the checkpoint that would be fine-tuned; its weights are the same afterwards.
        neurons: `SafetyNeurons`, or rows of neurons.
        data: fine-tuning chats with their CoT and response.
        safety: chats that the neurons' safety activation is measured on.
        task: chats that their task activation is measured on; None for no RAS.
        before: activations on `safety` as the model is, where they were measured already.
        step: "sgd" along −∇L, or "sign" along −sign(∇L), Adam's first step.
        size: length of the step, ‖Δθ‖ / ‖θ‖.
        positions: where activations are measured.
        measure: "magnitude" or "signed".
        controls: matched random sets; drawn where not given.
        n_controls: how many are drawn.
        batch_size: chats per pass, with gradients.
        seed: of the control sets.

    Raises:
        RimLensError: data without a token to learn, or a loss without gradient.
    """
    data = answered_chats(data, "data")
    safety = as_chats(model, safety)
    task = None if task is None else as_chats(model, task)
    rows = neuron_rows(neurons)
    loss, gradient = gradient_of(model, data, batch_size)
    direction = unit(gradient, step)
    length = math.sqrt(sum(squared_norm(value) for _, value in model.hf.named_parameters()))
    f0, slope, bend = [], [], []
    sides = {"safety": safety} | ({} if task is None else {"task": task})
    for name, chats in sides.items():
        known = before if name == "safety" else None
        here = [] if known is not None else [0.0]
        values = [] if known is None else [known.values(measure).astype(np.float64)]
        values += [
            pass_over(moved, chats, positions, batch_size=ACTIVATION_BATCH).neurons.values(measure).astype(np.float64)
            for _, moved in along(model, direction, [*here, REACH * length, -REACH * length])
        ]
        f0.append(values[0])
        slope.append((values[1] - values[2]) / (2 * REACH))  # per unit of ‖Δθ‖ / ‖θ‖
        there = [value[np.isfinite(value)] for value in values]
        bend.append((np.linalg.norm(there[1] + there[2] - 2 * there[0]), np.linalg.norm(there[1] - there[2])))
    f1 = [start + size * change for start, change in zip(f0, slope, strict=True)]
    if controls is None:
        controls = matched_controls(neurons, n_controls, base=f0[0], seed=seed)
    table, changes, nulls = [], [], []
    for name, start, end in zip(sides, f0, f1, strict=True):
        sets = [of_sets(side, np.concatenate([rows[None], controls])).mean(axis=1) for side in (start, end)]
        change = relative_change(*sets)
        changes.append(float(change[0]))
        nulls.append(change[1:])
        place = {"percentile": float(percentile(change[0], change[1:])), "p": float(empirical_p(change[0], change[1:]))}
        table.append(
            {"prompts": name, "f_before": sets[0][0], "change": change[0], "control_change": change[1:].mean(), **place}
        )
    return PredictedShift(
        table=pd.DataFrame(table),
        neurons=neuron_changes(rows, f0[0][tuple(rows.T)], f1[0][tuple(rows.T)]),
        **(
            predicted_ras(changes, nulls)
            if task is not None
            else dict.fromkeys(("ras", "ras_control", "ras_p"), math.nan)
        ),
        size=size,
        step=step,
        curvature=float(max(part / whole if whole else 0.0 for part, whole in bend)),
        loss=loss,
        n_examples=len(data),
        n_controls=len(controls),
        f_before=f0[0],
        f_after=f1[0],
        manifest=Manifest.collect(model, seed=seed, step=step, size=size, measure=measure),
    )


def predicted_ras(changes: list[float], nulls: list[Float[np.ndarray, "set"]]) -> dict[str, float]:
    """RAS of predicted changes (safety, task), beside the control sets'."""
    null = harmonic(np.maximum(0, -nulls[0]), np.maximum(0, nulls[1]))
    value = float(harmonic(np.array(max(0.0, -changes[0])), np.array(max(0.0, changes[1]))))
    return {"ras": value, "ras_control": float(null.mean()), "ras_p": float(empirical_p(value, null, "greater"))}


@halves_batches
def gradient_of(model: LensModel, data: Sequence[Chat], batch_size: int) -> tuple[float, Gradients]:
    """Mean negative log-likelihood per learned token, and its gradient for every parameter."""
    if model.hf is None:
        raise RimLensError(f"{model.name} is not a transformers model; its gradients cannot be taken.")
    if model.dtype != torch.float32:
        raise RimLensError(
            f"A shift is predicted from small changes of weights, which {model.dtype} rounds off; use float32."
        )
    n_tokens = sum(int(written(chat).sum()) for chat in data)
    if n_tokens == 0:
        raise RimLensError("The fine-tuning data has no token that the model would write; render it with response=.")
    total = 0.0
    with torch.enable_grad(), gradients(model.hf) as parameters:
        for _, batch in track(list(model.batches(data, batch_size)), "gradient of the fine-tuning loss"):
            learned = torch.zeros_like(batch.mask)
            learned[batch.mask] = torch.from_numpy(np.concatenate([written(chat) for chat in batch.chats])).to(
                learned.device
            )
            log_p = model.logits(batch)[:, :-1].log_softmax(-1).gather(-1, batch.tokens[:, 1:, None])[..., 0]
            loss = -(log_p * learned[:, 1:]).sum() / n_tokens
            loss.backward()
            total += float(loss.detach())
        by_name = {name: value.grad.detach().clone() for name, value in parameters.items() if value.grad is not None}
    return total, by_name


def written(chat: Chat) -> Bool[np.ndarray, "pos"]:
    """True at the tokens that the model itself would write.

    The answer, and CoT and close tag where it thinks by itself.
    """
    segments = ("cot", "think_close", "response") if chat.thinking == "on" else ("response",)
    return np.isin(chat.segment_ids, [segment_id(segment) for segment in segments])


@contextmanager
def gradients(hf: Any) -> Iterator[dict[str, Tensor]]:
    """Parameters that collect gradients inside the block; afterwards they are as before."""
    parameters = dict(hf.named_parameters())
    before = {name: (value.requires_grad, value.grad) for name, value in parameters.items()}
    try:
        for value in parameters.values():
            value.requires_grad_(True)
            value.grad = None
        yield parameters
    finally:
        for name, value in parameters.items():
            value.grad = before[name][1]
            value.requires_grad_(before[name][0])


def unit(gradient: Gradients, step: str) -> Gradients:
    """The descent direction, of length 1 over all parameters together."""
    if step not in ("sgd", "sign"):
        raise RimLensError(f"Unknown step {step!r}; use 'sgd' (along −∇L) or 'sign' (Adam's first step).")
    raw = {name: -value.sign() if step == "sign" else -value for name, value in gradient.items()}
    length = math.sqrt(sum(squared_norm(value) for value in raw.values()))
    if length == 0 or not math.isfinite(length):
        raise RimLensError(
            "The fine-tuning loss has no finite, non-zero gradient here; check the data and the weights' type."
        )
    return {name: value / length for name, value in raw.items()}


class Moved(StoredWeights):
    """The weights shown before, moved along a direction."""

    def __init__(self, hf: Any, origin: StoredWeights | None, direction: Mapping[str, Tensor], distance: float) -> None:
        super().__init__(hf, Path())
        self.origin, self.direction, self.distance = origin, direction, distance
        self.title = "moved" if origin is None else f"{origin.title}, moved"

    @property
    def names(self) -> list[str]:
        """Parameters that are moved, or that the weights before changed."""
        return list(dict.fromkeys([*self.direction, *(self.origin.names if self.origin else [])]))

    def value(self, name: str, base: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The weight before plus distance · direction."""
        here = self.origin.value(name, base) if self.origin and name in self.origin.names else base
        if name not in self.direction:
            return here
        return (here.float() + self.distance * self.direction[name].to(here.device).float()).to(here.dtype)


def along(
    model: LensModel, direction: Mapping[str, Tensor], distances: Sequence[float]
) -> Iterator[tuple[float, LensModel]]:
    """The model at each distance along a direction, then as it was."""
    swap, before = swap_of(model), shown(model)
    try:
        for distance in distances:
            swap.put(Moved(model.hf, before, direction, distance))
            yield distance, model
    finally:
        swap.put(before)
