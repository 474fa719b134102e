"""Attention knock-out: chosen heads may not look at a segment.

The keys of the segment are hidden before the softmax, so the pattern over the other keys grows in proportion; a query
with no other key gets nothing from the head. Holds for every query, the segment's own and later ones, generated ones
included.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
from jaxtyping import Int
from torch import Tensor

from rim_lens.chat.positions import Positions
from rim_lens.chat.segments import segment_id
from rim_lens.intervene.selection import Chosen, Heads, UnitTap, chosen_heads
from rim_lens.model.lens_model import LensModel
from rim_lens.model.taps import AttentionCall, Backend


def knock_out(
    model: LensModel,
    heads: Heads,
    segment: str | Sequence[str],
    *,
    positions: Positions = "all",
    backend: Backend = "auto",
) -> AbstractContextManager[LensModel]:
    """Keep heads from looking at a segment, or several, in every pass inside the block.

    Args:
        model: the model; it is restored when the block is left.
        heads: (layer, head) pairs, or one such list per row of the batch.
        segment: a name in SEGMENTS, or several.
        positions: which queries are held: "all", "decision", or "from_decision" (that and later ones).
        backend: how passes are changed; "auto" takes the fast way where there is one.

    Raises:
        RimLensError: an unknown head or segment; in the pass: a backend that cannot hide keys.

    """
    names = [segment] if isinstance(segment, str) else list(segment)
    ids = torch.tensor([segment_id(name) for name in names])
    return model.tap(KnockOut(chosen_heads(model, heads), positions, ids), backend=backend)


class KnockOut(UnitTap):
    """Hides the keys of some segments from chosen heads."""

    what = "attention knock-out"

    def __init__(self, chosen: Chosen, where: Positions, segments: Int[Tensor, " segment"]) -> None:
        super().__init__(chosen, where)
        self.segments = segments

    def on_keys(self, layer: int, call: AttentionCall) -> None:
        """See the class."""
        if self.idle:
            return
        ids = call.here.segments(call.key_start, call.key_start + call.n_keys, self.what)
        keys = torch.isin(ids, self.segments.to(ids.device))
        if not bool(keys.any()):
            return
        hidden = self.units(layer)[:, :, None, None] & keys[:, None, None]
        call.block(hidden if self.at is None else hidden & self.at[:, None, :, None])
