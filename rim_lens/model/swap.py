"""Weights swapped in place: one model in memory shows several checkpoints, one after the other.

New values are written into the parameters' own storage, so everything that shares them (the plain tree and the bridge)
uses them at once and nothing is built anew. Base values of the parameters that were ever touched are kept once, on the
CPU.
"""

import math
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from jaxtyping import Float
from torch import Tensor

from rim_lens.errors import RimLensError
from rim_lens.model.lens_model import LensModel
from rim_lens.model.stored_weights import StoredWeights, stored_names

_SWAPS: WeakKeyDictionary[LensModel, "WeightSwap"] = WeakKeyDictionary()


def swap_of(model: LensModel) -> "WeightSwap":
    """The swap that belongs to a model; the model's weights at the first call are its base."""
    if model not in _SWAPS:
        _SWAPS[model] = WeightSwap(model)
    return _SWAPS[model]


class WeightSwap:
    """What is loaded into a model now, and the base values needed to take it out again."""

    def __init__(self, model: LensModel) -> None:
        if model.hf is None:
            raise RimLensError(f"{model.name} is not a transformers model; checkpoints can be swapped into these only.")
        self.parameters: dict[str, Tensor] = stored_names(model.hf)  # and buffers: whatever a checkpoint may hold
        meta = [name for name, value in self.parameters.items() if value.device.type == "meta"]
        if meta:
            raise RimLensError(f"{model.name} is partly offloaded ({meta[0]}); load it on devices that hold it whole.")
        self.base: dict[str, Tensor] = {}
        self.current: StoredWeights | None = None  # None: the base
        self.base_shown = model.shown
        self.model = ref(model)  # the swap must not keep its model alive

    @torch.no_grad()
    def put(self, weights: StoredWeights | None) -> None:
        """Show `weights`, or the base for None. If that fails the model is at its base."""
        try:
            self._write(weights)
            self._name(weights)
        except BaseException:
            self._write(None)
            self._name(None)
            raise

    def _name(self, weights: StoredWeights | None) -> None:
        """Let the model's name say what is in it."""
        if model := self.model():
            model.shown = self.base_shown if weights is None else weights.label

    def _write(self, weights: StoredWeights | None) -> None:
        names = [] if weights is None else weights.names
        leaving = set() if self.current is None else set(self.current.names) - set(names)
        if self.current is not None and self.current is not weights:
            self.current.release()
        self.current = weights  # before the first write, so that a failed one is taken back
        for name in leaving & set(self.base):
            self.parameters[name].copy_(self.base[name])
        for name in names:
            parameter = self.parameters[name]
            if name not in self.base:
                self.base[name] = parameter.detach().to("cpu", copy=True)
            parameter.copy_(weights.value(name, self.base[name].to(parameter.device)))  # type: ignore[union-attr]
        if model := self.model():
            model.weights_changed([*names, *leaving])

    @torch.no_grad()
    def distance(self, reference: StoredWeights | None) -> float:
        """‖θ − θ_ref‖ / ‖θ_ref‖ of the weights shown now against `reference` (None: the base), over all parameters."""
        touched = {name for weights in (self.current, reference) if weights is not None for name in weights.names}
        moved = length = 0.0
        for name, parameter in self.parameters.items():
            if not isinstance(parameter, torch.nn.Parameter):
                continue
            value = self._value(reference, name)
            length += squared_norm(value)
            if name in touched:
                moved += squared_norm(parameter.float() - value.float())
        return math.sqrt(moved / length)

    def _value(self, weights: StoredWeights | None, name: str) -> Float[Tensor, "..."]:
        parameter = self.parameters[name]
        base = self.base[name].to(parameter.device) if name in self.base else parameter
        return base if weights is None or name not in weights.names else weights.value(name, base)


def squared_norm(value: Float[Tensor, "..."]) -> float:
    """‖value‖² in float64, summed without a wide copy."""
    return float(torch.linalg.vector_norm(value.float()).double() ** 2)


def shown(model: LensModel) -> Any:
    """What is loaded into the model by a swap: its stored weights, or None for the base."""
    return _SWAPS[model].current if model in _SWAPS else None
