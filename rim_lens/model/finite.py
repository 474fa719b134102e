"""NaN in a pass: seen in its logits, then traced to the prompt and to the layer in which it arises.

A NaN in the residual stream reaches every later layer, and through attention every later token, so that the logits of
the decision position tell of all of them at next to no cost. Only when there is one, the pass is run again to find its
layer.
"""

from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rim_lens.errors import RimLensError
from rim_lens.model.batch import Batch
from rim_lens.model.taps import Tap

if TYPE_CHECKING:
    from rim_lens.model.lens_model import LensModel


class _NaNFinder(Tap):
    """Remembers where each row of the pass first had a NaN in its residual stream."""

    def __init__(self, batch: Batch) -> None:
        self.mask = batch.mask
        self.first: dict[int, int] = {}

    def on_residual(self, layer: int, resid: Float[Tensor, "row pos d_model"]) -> None:
        """Look at the real tokens of this depth."""
        broken = resid.isnan().any(dim=-1) & self.mask.to(resid.device)
        for row in broken.any(dim=1).nonzero()[:, 0].tolist():
            self.first.setdefault(row, layer)


def check_finite(
    model: "LensModel", batch: Batch, values: Float[Tensor, "row ..."], real: Bool[Tensor, "row pos"] | None = None
) -> None:
    """Raise unless the logits or hidden states of a pass over `batch` are free of NaN.

    Columns outside `real` may be NaN.

    Raises:
        RimLensError: with the prompt and the layer.
    """
    broken = values.isnan().any(dim=-1)
    if real is not None:
        broken &= real.to(broken.device)
    if not bool(broken.any()):
        return
    row = int(broken.flatten(1).any(dim=1).nonzero()[0, 0] if broken.ndim > 1 else broken.nonzero()[0, 0])
    finder = _NaNFinder(batch)
    with torch.no_grad(), model.tap(finder):
        model.raw_logits(batch)
    depth = finder.first.get(row)
    if depth is None:
        where = "after the last layer (final norm or unembedding)"
    else:
        where = "in the embedding" if depth == 0 else f"in layer {depth - 1}"
    raise RimLensError(
        f"{model.name} computes NaN for the prompt {batch.chats[row].request[:60]!r}: it arises {where}. Check the "
        f"weights there and what is changed in the pass, or use a wider type than {model.dtype}."
    )
