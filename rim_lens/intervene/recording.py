"""Head outputs recorded in one run, to be put into another: means, other prompts' values, patches."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from rim_lens.capture.activations import head_outputs
from rim_lens.errors import RimLensError
from rim_lens.model.as_chats import as_chats
from rim_lens.model.lens_model import LensModel
from rim_lens.model.requests import Prompts
from rim_lens.model.taps import Backend


@dataclass(frozen=True, eq=False)
class HeadRecording:
    """Every head's output at some offsets from the decision position of some chats."""

    z: Float[Tensor, "prompt layer offset head d_head"]
    offsets: tuple[int, ...]  # 0 is the decision position
    requests: tuple[str, ...]

    def __len__(self) -> int:
        """Number of prompts."""
        return len(self.z)

    def __getitem__(self, prompts: Sequence[int] | slice) -> "HeadRecording":
        """Some of the prompts, in the order given; `model.batches` yields such indices."""
        indices = range(len(self))[prompts] if isinstance(prompts, slice) else list(prompts)
        return HeadRecording(self.z[list(indices)], self.offsets, tuple(self.requests[i] for i in indices))

    def at(self, offset: int) -> Float[Tensor, "prompt layer head d_head"]:
        """Outputs at one offset; a RimLensError where it was not recorded."""
        if offset not in self.offsets:
            raise RimLensError(f"offset {offset} was not recorded: record_heads(..., offsets={self.offsets}).")
        return self.z[:, :, self.offsets.index(offset)]


def record_heads(
    model: LensModel,
    chats: Prompts,
    *,
    offsets: Sequence[int] = (0,),
    batch_size: int = 16,
    backend: Backend = "auto",
) -> HeadRecording:
    """Record every head's output at offsets ≤ 0 from the decision position of `chats`."""
    chats = as_chats(model, chats)
    if any(offset > 0 for offset in offsets):
        raise RimLensError(f"offsets {tuple(offsets)} reach past the decision position: use 0 and below.")
    z = head_outputs(model, chats, tuple(offsets), batch_size=batch_size, backend=backend)
    return HeadRecording(z, tuple(offsets), tuple(chat.request for chat in chats))


def donor_rows(recorded: Sequence[str], requests: Sequence[str], seed: int) -> list[int]:
    """For each request, the index of another prompt's recording; depends on the request and the seed only.

    Raises:
        RimLensError: nothing but the request itself was recorded.

    """
    donors = []
    for request in requests:
        others = [i for i, other in enumerate(recorded) if other != request]
        if not others:
            raise RimLensError(f"resample needs another prompt than {request[:40]!r} in its reference.")
        generator = torch.Generator().manual_seed(seed ^ zlib.crc32(request.encode()))
        donors.append(others[int(torch.randint(len(others), (), generator=generator))])
    return donors
