"""One decoder layer called for rows of its own choosing, with the arguments that the model called it with."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import Cache

from rim_lens.model.sites import Layer


@dataclass(frozen=True, eq=False)
class Call:
    """How the model called one layer in the clean pass."""

    entering: Float[Tensor, "prompt pos d_model"]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def entering(
    call: Call, stream: Float[Tensor, "state pos d_model"] | None, parent: Int[Tensor, " row"]
) -> Float[Tensor, "row pos d_model"]:
    """What enters a layer in rows that come from these states of the layer before, or from the clean pass.

    `parent`: a row of `stream`, or -1 - prompt for what entered in the clean pass.
    """
    if stream is None:
        return call.entering[-1 - parent]
    rows, new = stream[parent.clamp(min=0)].to(call.entering.device), (parent < 0).nonzero()[:, 0]
    rows[new] = call.entering[-1 - parent[new]]
    return rows


class Prefix:
    """Stands for the KV cache in one layer's attention.

    Keys and values of the columns before `start`, never written to.
    """

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values

    def update(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """The prefix and the new columns, as a cache returns them."""
        return torch.cat([self.keys, keys], dim=-2), torch.cat([self.values, values], dim=-2)

    def get_seq_length(self, *args: Any) -> int:
        """Columns held."""
        return self.keys.shape[-2]

    def of(self, prompts: Int[Tensor, " row"]) -> "Prefix":
        """The prefix of each row's prompt."""
        return Prefix(per_row(self.keys, prompts), per_row(self.values, prompts))


class Recorder(Prefix):
    """Stands for an empty KV cache and keeps what it is given; `enough`: nothing else of the layer is needed."""

    def __init__(self, *, enough: bool) -> None:
        self.enough = enough

    def update(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """The columns themselves."""
        self.keys, self.values = keys, values
        if self.enough:
            raise Recorded
        return keys, values

    def get_seq_length(self, *args: Any) -> int:
        """No columns come before."""
        return 0


class Recorded(Exception):
    """A layer's keys and values are there."""


class AttentionReached(Exception):
    """A layer was run up to its attention, which would be called with `call`."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__("attention reached")
        self.call = args, kwargs


def reached(*args: Any, **kwargs: Any) -> None:
    """Stands in place of an attention's forward."""
    raise AttentionReached(args, kwargs)


@contextmanager
def changed_heads(layer: Layer, n_heads: int, change: Callable[[Tensor], Tensor] | None) -> Iterator[None]:
    """Send the input of the layer's output projection through `change`."""
    if change is None or layer.output is None:
        yield
        return

    def hook(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        flat = args[0]
        return (change(flat.view(*flat.shape[:-1], n_heads, -1)).reshape(flat.shape), *args[1:])

    handle = layer.output.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def replaced_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Run `forward` in place of the module's own, which may itself have been replaced on the instance."""
    before = module.__dict__.get("forward")
    module.forward = forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before  # type: ignore[method-assign]


def for_rows(value: Any, prompts: Int[Tensor, " row"], n_prompts: int, cache: Prefix | None) -> Any:
    """Arguments of a layer call for rows of several prompts: what differs by prompt is taken for each row's prompt."""
    if isinstance(value, Cache):
        return cache
    if isinstance(value, tuple | list):
        return type(value)(for_rows(one, prompts, n_prompts, cache) for one in value)
    if isinstance(value, dict):
        return {name: for_rows(one, prompts, n_prompts, cache) for name, one in value.items()}
    if isinstance(value, Tensor) and value.ndim > 1 and len(value) == n_prompts:
        return per_row(value, prompts)
    return value


def per_row(value: Float[Tensor, "prompt *rest"], prompts: Int[Tensor, " row"]) -> Float[Tensor, "row *rest"]:
    """Each row's prompt's entry; without a copy where there is one prompt."""
    return value.expand(len(prompts), *value.shape[1:]) if len(value) == 1 else value[prompts.to(value.device)]
