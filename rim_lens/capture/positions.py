"""Positions of chats as columns of a batch."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from rim_lens.chat.chat import Chat
from rim_lens.chat.positions import Positions, positions_in
from rim_lens.model.batch import Batch


@dataclass(frozen=True, eq=False)
class Columns:
    """Columns of a batch to read; rows with fewer positions than the widest repeat their decision column."""

    index: Int[Tensor, "row position"]
    real: Bool[Tensor, "row position"]  # False where a row has no such position

    def to(self, device: torch.device) -> "Columns":
        """On another device."""
        return Columns(self.index.to(device), self.real.to(device))


def most_positions(chats: Sequence[Chat], positions: Positions) -> int:
    """The largest number of positions that any chat has."""
    return max((len(positions_in(chat, positions)) for chat in chats), default=0)


def columns_of(batch: Batch, positions: Positions) -> Columns:
    """The columns of `positions` in every row of a batch."""
    columns = [positions_in(chat, positions) for chat in batch.chats]
    width = max(map(len, columns))
    offset = batch.decision.cpu() - torch.tensor([chat.decision_position for chat in batch.chats])
    index = batch.decision.cpu()[:, None].repeat(1, width)
    real = torch.zeros_like(index, dtype=torch.bool)
    for row, places in enumerate(columns):
        index[row, : len(places)] = torch.from_numpy(places) + offset[row]
        real[row, : len(places)] = True
    return Columns(index, real).to(batch.decision.device)
