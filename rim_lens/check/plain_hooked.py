"""A model with TransformerLens' hook points, run one chat at a time with plain torch hooks on these points.

Hook points are modules that pass their input on, so torch's own forward hooks read and change what passes, without any
of TransformerLens' hook machinery.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rim_lens.chat.chat import Chat
from rim_lens.errors import RimLensError
from rim_lens.model.lens_model import LensModel

PATTERN, HEADS, NEURONS = "attn.hook_pattern", "attn.hook_z", "mlp.hook_post"


class PlainHooked:
    """The reference for HookedTransformers and for bridges that somebody else made."""

    kind = "hooks"

    def __init__(self, model: LensModel) -> None:
        self.model, self.root = model, model.bridge
        self.points: dict[str, Any] = dict(self.root.hook_dict)

    # ---- passes ---------------------------------------------------------------------------------------------------
    def logits(self, chat: Chat) -> Float[Tensor, "pos vocab"]:
        """Logits of one chat alone."""
        return self._of_tokens(chat.token_ids.tolist())

    def _of_tokens(self, tokens: Sequence[int]) -> Float[Tensor, "pos vocab"]:
        return self.root(torch.tensor([tokens], device=self.model.device), return_type="logits")[0].float()

    def greedy(self, chat: Chat, n_tokens: int) -> list[int]:
        """The likeliest token after the chat and all tokens written so far, up to the end of the turn."""
        written: list[int] = []
        while len(written) < n_tokens and not set(written) & set(self.model.chat_format.eos_ids):
            written.append(int(self._of_tokens([*chat.token_ids.tolist(), *written])[-1].argmax()))
        return written

    def patterns(self, chat: Chat) -> dict[int, Float[Tensor, "head query key"]]:
        """What passes the pattern's hook points."""
        return {layer: pattern[0].float() for layer, pattern in self._read(chat, PATTERN).items()}

    def neurons(self, chat: Chat, last: int) -> Float[Tensor, "layer pos unit"]:
        """What passes the neurons' hook points at the last tokens."""
        if self.model.is_moe:
            raise RimLensError("the hook points of a mixture of experts show no neurons.")
        return torch.stack([post[0, -last:].float().cpu() for post in self._read(chat, NEURONS).values()])

    def _read(self, chat: Chat, name: str) -> dict[int, Tensor]:
        read: dict[int, Tensor] = {}

        def keep(layer: int) -> Callable[..., None]:
            return lambda module, args, output: read.__setitem__(layer, output)

        with ExitStack() as undo:
            for layer in self._layers(name):
                undo.callback(self._point(layer, name).register_forward_hook(keep(layer)).remove)
            self.logits(chat)
        return read

    # ---- heads and neurons ----------------------------------------------------------------------------------------
    def _layers(self, name: str) -> list[int]:
        return [layer for layer in range(self.model.n_layers) if f"blocks.{layer}.{name}" in self.points]

    def _point(self, layer: int, name: str) -> Any:
        return self.points[f"blocks.{layer}.{name}"]

    @property
    def with_heads(self) -> list[int]:
        """Layers with attention heads."""
        return self._layers(HEADS)

    @property
    def with_neurons(self) -> list[int]:
        """Layers with plain MLP neurons."""
        return [] if self.model.is_moe else self._layers(NEURONS)

    @contextmanager
    def without_head(self, layer: int, head: int) -> Iterator[None]:
        """Zero the head's output where it passes."""

        def zero(module: Any, args: Any, z: Tensor) -> Tensor:
            split = z.clone().view(*z.shape[:2], self.model.n_heads, -1)
            split[:, :, head] = 0
            return split.view(z.shape)

        with self._changed(layer, HEADS, zero):
            yield

    @contextmanager
    def without_neuron(self, layer: int, *unit: int) -> Iterator[None]:
        """Zero one neuron where it passes."""

        def zero(module: Any, args: Any, post: Tensor) -> Tensor:
            post = post.clone()
            post[..., unit[-1]] = 0
            return post

        with self._changed(layer, NEURONS, zero):
            yield

    @contextmanager
    def _changed(self, layer: int, name: str, change: Callable[[Any, Any, Tensor], Tensor]) -> Iterator[None]:
        handle = self._point(layer, name).register_forward_hook(change)
        try:
            yield
        finally:
            handle.remove()
