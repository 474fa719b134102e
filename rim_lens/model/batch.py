"""Chats as padded tensors: tokens, mask, segments, position ids and the column of the decision position."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from rim_lens.chat.chat import Chat
from rim_lens.chat.segments import segment_id
from rim_lens.errors import RimLensError

Side = Literal["left", "right"]


@dataclass(frozen=True, eq=False)
class Batch:
    """Chats of different length in one rectangle, padded on the left unless asked otherwise."""

    tokens: Int[Tensor, "row pos"]
    mask: Bool[Tensor, "row pos"]  # True at real tokens
    segments: Int[Tensor, "row pos"]  # index into SEGMENTS, -1 on padding
    positions: Int[Tensor, "row pos"]  # position ids: 0 at the first real token, and on padding before it
    decision: Int[Tensor, "row"]  # column of the decision position
    chats: tuple[Chat, ...]

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.chats)

    def where(self, segment: str) -> Bool[Tensor, "row pos"]:
        """True at the tokens of `segment`, False elsewhere and on padding."""
        return self.segments == segment_id(segment)

    @property
    def first(self) -> Int[Tensor, "row"]:
        """Column of each row's first real token."""
        return self.mask.to(torch.int8).argmax(dim=1)


def make_batch(chats: Sequence[Chat], pad_id: int, *, device: str | torch.device = "cpu", side: Side = "left") -> Batch:
    """Pad chats to the longest one. Raises RimLensError without chats or with an unknown side."""
    if not chats:
        raise RimLensError("a batch needs at least one chat.")
    if side not in ("left", "right"):
        raise RimLensError(f"unknown padding side {side!r}: use 'left' or 'right'.")
    width = max(len(chat) for chat in chats)
    shape = (len(chats), width)
    tokens, segments = np.full(shape, pad_id, dtype=np.int64), np.full(shape, -1, dtype=np.int64)
    mask, positions = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=np.int64)
    decision = np.zeros(len(chats), dtype=np.int64)
    for row, chat in enumerate(chats):
        first = width - len(chat) if side == "left" else 0
        columns = slice(first, first + len(chat))
        tokens[row, columns] = chat.token_ids
        segments[row, columns] = chat.segment_ids
        mask[row, columns] = True
        positions[row, columns] = np.arange(len(chat))
        decision[row] = first + chat.decision_position
    tokens_t, mask_t, segments_t, positions_t, decision_t = (
        torch.from_numpy(array).to(device) for array in (tokens, mask, segments, positions, decision)
    )
    return Batch(tokens_t, mask_t, segments_t, positions_t, decision_t, tuple(chats))


def batches(
    chats: Sequence[Chat],
    pad_id: int,
    *,
    batch_size: int = 16,
    device: str | torch.device = "cpu",
    side: Side = "left",
) -> Iterator[tuple[list[int], Batch]]:
    """Batches of chats of like length, longest first, each with the indices of its chats.

    The longest batch comes first so that a lack of memory shows at once. The index lists together are a
    permutation.
    """
    if batch_size < 1:
        raise RimLensError(f"batch_size must be at least 1, got {batch_size}.")
    order = sorted(range(len(chats)), key=lambda index: -len(chats[index]))
    for begin in range(0, len(order), batch_size):
        rows = order[begin : begin + batch_size]
        yield rows, make_batch([chats[row] for row in rows], pad_id, device=device, side=side)
