"""Running chats through a model with taps attached, a batch at a time."""

from collections.abc import Iterator, Sequence

import torch

from rim_lens.chat.chat import Chat
from rim_lens.model.batch import Batch
from rim_lens.model.lens_model import LensModel
from rim_lens.model.taps import Backend, Tap
from rim_lens.processes import n_processes
from rim_lens.progress import track


def passes(
    model: LensModel, chats: Sequence[Chat], tap: Tap, *, batch_size: int, backend: Backend, description: str
) -> Iterator[tuple[list[int], Batch]]:
    """One pass over every chat of this process.

    After each batch, its chats' indices, with the tap as the pass left it.
    """
    total = -(-len(chats) // batch_size // n_processes())
    with model.tap(tap, backend=backend):
        for indices, batch in track(model.shared_batches(chats, batch_size), description, total=total):
            with torch.no_grad():
                model.decision_logits(batch)
            yield indices, batch
