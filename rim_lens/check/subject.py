"""What the checks of one model share.

The model, its plain reference, a few short chats and what was computed for them.
"""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rim_lens.chat.chat import Chat
from rim_lens.chat.segments import segment_id
from rim_lens.check.plain_hooked import PlainHooked
from rim_lens.check.plain_tree import PlainTree
from rim_lens.model.lens_model import LensModel

REQUESTS = ("Why is the sky blue?", "Name three rivers, please.")  # of different length: the batch has padding
COT = "Let me think.\nOne moment."
LAST = 8  # tokens at the end of each chat whose neurons are looped over
Plain = PlainTree | PlainHooked


@dataclass(frozen=True, eq=False)
class Subject:
    """One model under check; `templated` says whether its chats come from a chat template."""

    model: LensModel
    plain: Plain
    chats: list[Chat]
    templated: bool
    why_no_template: str = ""
    cache: dict[tuple[int, int], list[Tensor]] = field(default_factory=dict)

    @cached_property
    def clean(self) -> list[Float[Tensor, "pos vocab"]]:
        """Logits of each chat alone, by the plain reference."""
        return [self.plain.logits(chat) for chat in self.chats]

    @property
    def heads(self) -> list[tuple[int, int]]:
        """A head of the first and of the last layer that has heads."""
        layers = self.plain.with_heads
        some = sorted({layers[0], layers[-1]}) if layers else []
        return [(layer, (3 * i + 1) % self.model.n_heads) for i, layer in enumerate(some)]

    def without_head(self, head: tuple[int, int]) -> list[Float[Tensor, " vocab"]]:
        """Decision logits of each chat alone with one head's slice zeroed by hand."""
        if head not in self.cache:
            with self.plain.without_head(*head):
                self.cache[head] = [self.plain.logits(chat)[chat.decision_position] for chat in self.chats]
        return self.cache[head]

    @cached_property
    def neurons(self) -> list[Float[Tensor, "layer pos *unit"]]:
        """Neurons at each chat's last tokens, by the plain reference."""
        return [self.plain.neurons(chat, self.n_last) for chat in self.chats]

    @property
    def n_last(self) -> int:
        """How many tokens at the end of each chat are looked at, neuron by neuron."""
        return min(LAST, *(chat.decision_position + 1 for chat in self.chats))

    @property
    def n_tokens(self) -> int:
        """Tokens of all chats."""
        return sum(map(len, self.chats))


def plain_text_chat(model: LensModel, text: str) -> Chat:
    """A text as a chat of one segment, for models without a chat template."""
    ids = np.array(model.encode(text))
    return Chat(text, ids, np.full(len(ids), segment_id("user")), "off", text, len(ids) - 1)


def decisions(subject: Subject) -> Float[Tensor, "chat vocab"]:
    """Clean decision logits, by the plain reference."""
    return torch.stack(
        [logits[chat.decision_position] for logits, chat in zip(subject.clean, subject.chats, strict=True)]
    )
