"""What a model computes at the decision position of anchor prompts is kept near what it was before training.

    λ · mean over prompts and values of ((a − a₀) / s)²,  s = mean |a₀| over the prompts

a: the activations of held neurons (`NeuronShift`), or the stream's component along a direction behind every layer
(`DirectionShift`). Requests only: nothing is learned from the anchors.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import ceil
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rim_lens.chat.chat import Chat
from rim_lens.model.batch import Batch
from rim_lens.model.fitting import AtOnce
from rim_lens.model.sites import find_sites
from rim_lens.patterns.held_neurons import Held


class ShiftPenalty(ABC):
    """`weight` times the mean squared relative shift of some values on `batch_size` anchor prompts per step, in turns.

    `model` is the one that is trained, as it is before the first step.
    """

    def __init__(
        self,
        model: Any,
        chats: Sequence[Chat],
        batched: Callable[[Sequence[Chat]], Batch],
        weight: float,
        batch_size: int,
    ) -> None:
        self.batched, self.batch_size, self.weight = batched, batch_size, weight
        self.chats = sorted(chats, key=len, reverse=True)  # a lack of memory shows at once
        self.turn = 0
        with torch.no_grad():
            values = AtOnce(batch_size, "finetune").parts(self.chats, lambda some: self.values(model, batched(some)))
            self.before: Float[Tensor, "chat value"] = torch.cat(list(values))
        self.scale = self.before.abs().mean(dim=0).clamp(min=1e-6)

    @abstractmethod
    def values(self, model: Any, batch: Batch) -> Float[Tensor, "row value"]:
        """The values at the decision position, with gradients."""

    def addends(self, model: Any, size: int) -> Iterator[Float[Tensor, ""]]:
        """Parts of this turn's penalty, `size` anchor prompts each; their sum is the penalty."""
        first = self.turn % ceil(len(self.chats) / self.batch_size) * self.batch_size
        last = min(first + self.batch_size, len(self.chats))
        for begin in range(first, last, size):
            rows = slice(begin, min(begin + size, last))
            shift = (self.values(model, self.batched(self.chats[rows])) - self.before[rows]) / self.scale
            yield self.weight * shift.square().sum() / ((last - first) * shift.shape[1])


class NeuronShift(ShiftPenalty):
    """Activations of held neurons; `prefix` is what PEFT puts before module names."""

    def __init__(self, places: Sequence[Held], prefix: str, model: Any, *anchors: Any) -> None:
        self.places, self.prefix = places, prefix
        super().__init__(model, *anchors)

    def values(self, model: Any, batch: Batch) -> Float[Tensor, "row value"]:
        """One value per held neuron."""
        modules = [model.get_submodule(self.prefix + place.down) for place in self.places]
        entering = at_decision(model, batch, modules, output=False)
        return torch.cat(
            [here[:, list(place.units)] for here, place in zip(entering, self.places, strict=True)], 1
        ).float()


class DirectionShift(ShiftPenalty):
    """The component of the stream along a direction, behind every layer."""

    def __init__(self, direction: Float[Tensor, " d_model"], model: Any, *anchors: Any) -> None:
        hf = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.blocks = [layer.block for layer in find_sites(hf, hf.config.get_text_config().num_hidden_layers).layers]
        self.unit = direction / direction.norm()
        super().__init__(model, *anchors)

    def values(self, model: Any, batch: Batch) -> Float[Tensor, "row value"]:
        """One value per layer."""
        behind = at_decision(model, batch, self.blocks, output=True)
        return torch.stack([here.float() @ self.unit.to(here.device) for here in behind], 1)


def at_decision(
    model: Any, batch: Batch, modules: Sequence[nn.Module], *, output: bool
) -> list[Float[Tensor, "row width"]]:
    """What enters or, with `output`, leaves each module at the decision positions, in one pass, with gradients."""
    rows = torch.arange(len(batch), device=batch.tokens.device)
    with recorded(modules, output=output) as seen:
        model(input_ids=batch.tokens, attention_mask=batch.mask.long(), position_ids=batch.positions, use_cache=False)
    return [seen[module][rows, batch.decision] for module in modules]


@contextmanager
def recorded(modules: Sequence[nn.Module], *, output: bool) -> Iterator[dict[nn.Module, Tensor]]:
    """The modules' inputs or outputs in the latest pass inside the block."""
    seen: dict[nn.Module, Tensor] = {}

    def keep(module: nn.Module, arguments: tuple[Tensor, ...], result: Any = None) -> None:
        first = result if output else arguments
        seen[module] = first[0] if isinstance(first, tuple) else first

    handles: list[Any] = [
        module.register_forward_hook(keep) if output else module.register_forward_pre_hook(keep) for module in modules
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
