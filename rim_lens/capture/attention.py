"""Attention of chosen queries, reduced to the mass on each segment while the pass runs, or as whole rows.

    mass[prompt, layer, head, segment] = mean_q Σ_{k in segment} pattern[q, k]

Patterns are never stored T × T: memory grows linearly with length.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from rim_lens.capture.passes import passes
from rim_lens.capture.positions import Columns, columns_of
from rim_lens.chat.positions import Positions
from rim_lens.chat.segments import SEGMENTS
from rim_lens.errors import RimLensError
from rim_lens.model.as_chats import as_chats
from rim_lens.model.fitting import halves_batches
from rim_lens.model.lens_model import LensModel
from rim_lens.model.requests import Prompts
from rim_lens.model.taps import AttentionCall, Backend, Pass, Tap
from rim_lens.processes import all_rows, gather_items

QUERIES_AT_ONCE = 64


@halves_batches
def segment_masses(
    model: LensModel,
    chats: Prompts,
    queries: Positions = "decision",
    *,
    batch_size: int = 8,
    backend: Backend = "auto",
) -> Float[Tensor, "prompt layer head segment"]:
    """Mean attention mass from `queries` to every segment (order of SEGMENTS), float32 on the CPU.

    Segments sum to 1 (less where the model has an attention sink, which takes the rest). NaN for layers without
    attention and for chats that have none of the queries.
    """
    chats = as_chats(model, chats)
    masses = torch.full((len(chats), model.n_layers, model.n_heads, len(SEGMENTS)), torch.nan)
    tap, order = MassTap(queries), list[int]()
    for indices, _ in passes(
        model, chats, tap, batch_size=batch_size, backend=backend, description="attention to segments"
    ):
        for layer, mass in tap.mass.items():
            masses[indices, layer] = mass.cpu()
        order += indices
    return all_rows(masses, order)


def attention_rows(
    model: LensModel, chats: Prompts, queries: Positions = "decision", *, backend: Backend = "auto"
) -> list[Float[Tensor, "layer head query key"]]:
    """Whole attention rows of each chat, keys being the chat's own tokens; for a few prompts."""
    chats = as_chats(model, chats)
    rows: list[Tensor] = []
    tap, order = RowTap(queries), list[int]()
    for indices, _ in passes(model, chats, tap, batch_size=1, backend=backend, description="attention rows"):
        if not tap.rows:
            raise RimLensError(f"no layer of {model.name} has attention whose rows can be read.")
        blank = torch.full_like(next(iter(tap.rows.values())), torch.nan)
        rows.append(torch.cat([tap.rows.get(layer, blank) for layer in range(model.n_layers)]).cpu())
        order += indices
    return gather_items(len(chats), order, rows)


class _QueryTap(Tap):
    """Knows the query columns of the running pass."""

    def __init__(self, queries: Positions) -> None:
        self.queries = queries
        self.columns: Columns

    def on_pass(self, here: Pass) -> None:
        """Find the queries in this batch."""
        super().on_pass(here)
        self.columns = columns_of(here.known_batch("reading attention"), self.queries).to(here.device)


class MassTap(_QueryTap):
    """Segment masses of the latest pass, `mass[layer]` of [row, head, segment]."""

    def __init__(self, queries: Positions) -> None:
        super().__init__(queries)
        self.mass: dict[int, Float[Tensor, "row head segment"]] = {}

    def on_pass(self, here: Pass) -> None:
        """Lay out which key belongs to which segment."""
        super().on_pass(here)
        self.mass = {}
        segments = here.known_batch("reading attention").segments.to(here.device)
        self.member = (segments[..., None] == torch.arange(len(SEGMENTS), device=here.device)).float()
        real = self.columns.real
        self.weight = torch.where(real, 1.0 / real.sum(dim=1, keepdim=True), 0.0)
        self.absent = ~real.any(dim=1)

    def on_attention(self, layer: int, call: AttentionCall) -> None:
        """Reduce this layer's rows."""
        index, weight = self.columns.index, self.weight
        mass = 0.0
        for start in range(0, index.shape[1], QUERIES_AT_ONCE):
            part = slice(start, start + QUERIES_AT_ONCE)
            rows = call.rows(index[:, part])
            mass = mass + torch.einsum("rhqk,rq->rhk", rows, weight[:, part]) @ self.member
        self.mass[layer] = torch.where(self.absent[:, None, None], torch.nan, mass)


class RowTap(_QueryTap):
    """Whole rows of the latest pass, `rows[layer]` of [row, head, query, key]."""

    def __init__(self, queries: Positions) -> None:
        super().__init__(queries)
        self.rows: dict[int, Float[Tensor, "row head query key"]] = {}

    def on_pass(self, here: Pass) -> None:
        """Forget the pass before."""
        super().on_pass(here)
        self.rows = {}

    def on_attention(self, layer: int, call: AttentionCall) -> None:
        """Keep this layer's rows."""
        self.rows[layer] = call.rows(self.columns.index)
