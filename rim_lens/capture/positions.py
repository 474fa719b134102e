"""Which positions of a chat are read.

"decision"            the last prompt token
(-2, -1, 0)           offsets from the decision position
"last cot"            the last token of a segment
"cot"                 every token of a segment
"all"                 every token
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from rim_lens.chat.chat import Chat
from rim_lens.errors import RimLensError
from rim_lens.model.batch import Batch

Positions = str | Sequence[int]


@dataclass(frozen=True, eq=False)
class Columns:
    """Columns of a batch to read; rows with fewer positions than the widest repeat their decision column."""

    index: Int[Tensor, "row position"]
    real: Bool[Tensor, "row position"]  # False where a row has no such position

    def to(self, device: torch.device) -> "Columns":
        """On another device."""
        return Columns(self.index.to(device), self.real.to(device))


def positions_in(chat: Chat, positions: Positions) -> Int[np.ndarray, " position"]:
    """Token indices that `positions` names in one chat, in order; empty where the chat lacks the segment.

    Raises:
        RimLensError: an unknown name, or an offset that leaves the chat.

    """
    if not isinstance(positions, str):
        found = chat.decision_position + np.asarray(tuple(positions), dtype=np.int64)
        if not len(found) or found.min() < 0 or found.max() >= len(chat):
            raise RimLensError(
                f"offsets {tuple(positions)} from the decision position leave the chat {chat.request[:40]!r} of "
                f"{len(chat)} tokens (decision position {chat.decision_position})."
            )
        return found
    if positions == "decision":
        return np.array([chat.decision_position])
    if positions == "all":
        return np.arange(len(chat))
    if positions.startswith("last "):
        return np.flatnonzero(chat.where(positions.removeprefix("last ")))[-1:]
    return np.flatnonzero(chat.where(positions))


def most_positions(chats: Sequence[Chat], positions: Positions) -> int:
    """The largest number of positions that any chat has."""
    return max((len(positions_in(chat, positions)) for chat in chats), default=0)


def columns_of(batch: Batch, positions: Positions) -> Columns:
    """The columns of `positions` in every row of a batch."""
    found = [positions_in(chat, positions) for chat in batch.chats]
    width = max(map(len, found))
    offset = batch.decision.cpu() - torch.tensor([chat.decision_position for chat in batch.chats])
    index = batch.decision.cpu()[:, None].repeat(1, width)
    real = torch.zeros_like(index, dtype=torch.bool)
    for row, places in enumerate(found):
        index[row, : len(places)] = torch.from_numpy(places) + offset[row]
        real[row, : len(places)] = True
    return Columns(index, real).to(batch.decision.device)
