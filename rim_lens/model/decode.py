"""Next-token logits one step after another: with the KV cache on transformers models, by recomputation through hooks.

Both give the taps the same view: the prompt's batch stays the active one, and the columns of later tokens follow it.
"""

import sys
from dataclasses import replace
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rim_lens.chat.segments import SEGMENTS
from rim_lens.model.batch import Batch
from rim_lens.model.finite import check_finite
from rim_lens.model.lens_model import LensModel
from rim_lens.model.shared_prefix import columns_cache, prefix_first, shared_length

USED_MEMORY = 0.7  # of what is free: appending to the cache and the pass itself need some too


class Decoder(Protocol):
    """A batch whose rows end at the same column and grow by one token per step."""

    batch: Batch

    def first(self) -> Float[Tensor, "row vocab"]:
        """Logits after the prompts."""
        ...

    def step(self, tokens: Int[Tensor, " row"], segments: Int[Tensor, " row"]) -> Float[Tensor, "row vocab"]:
        """Logits after one more token in every row; `segments` says what the token belongs to."""
        ...

    def keep(self, rows: list[int]) -> None:
        """Go on with these rows only."""
        ...


def decoder(model: LensModel, batch: Batch) -> Decoder:
    """The decoder for the backend in use."""
    if model.hf is None or model.through_hooks:
        return RecomputingDecoder(model, batch)
    return CachedDecoder(model, batch)


def grown(batch: Batch, tokens: Int[Tensor, " row"], segments: Int[Tensor, " row"]) -> Batch:
    """The batch with one more column; a token that is not a response moves its row's decision position there."""
    width = batch.tokens.shape[1]
    answering = segments == SEGMENTS.index("response")
    return replace(
        batch,
        tokens=torch.cat([batch.tokens, tokens[:, None]], dim=1),
        mask=torch.cat([batch.mask, torch.ones_like(batch.mask[:, :1])], dim=1),
        segments=torch.cat([batch.segments, segments[:, None].to(batch.segments)], dim=1),
        positions=torch.cat([batch.positions, batch.positions[:, -1:] + 1], dim=1),
        decision=torch.where(answering, batch.decision, width),
    )


def selected(batch: Batch, rows: list[int]) -> Batch:
    """The batch with some of its rows."""
    return replace(
        batch,
        tokens=batch.tokens[rows],
        mask=batch.mask[rows],
        segments=batch.segments[rows],
        positions=batch.positions[rows],
        decision=batch.decision[rows],
        chats=tuple(batch.chats[row] for row in rows),
    )


def distinct(batch: Batch) -> tuple[list[int], list[int]]:
    """The first row of each chat, and for every row which of them it repeats."""
    firsts: dict[int, int] = {}
    rows = [firsts.setdefault(id(chat), len(firsts)) for chat in batch.chats]
    return [rows.index(one) for one in range(len(firsts))], rows


def rows_that_fit(model: LensModel, length: int) -> int:
    """How many rows of this many tokens the free memory holds keys and values of, at least 1; an estimate from above.

    A batch that outgrows the memory after thousands of tokens would be decoded again from the start (`model.fitting`).
    """
    if model.hf is None or model.through_hooks:
        return sys.maxsize
    from accelerate.utils import get_max_memory

    device = model.device
    free = get_max_memory().get("cpu" if device.type == "cpu" else device.index or 0, 0)
    if device.type == "cuda":
        free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    shape = model.shape
    a_row = 2 * shape.n_layers * shape.n_kv_heads * shape.d_head * model.dtype.itemsize * length
    return max(1, int(USED_MEMORY * free) // a_row)


class CachedDecoder:
    """Decoding with transformers' KV cache; a step costs one token per row.

    `cache`: keys and values of the batch's first columns, where these were computed before.
    """

    def __init__(self, model: LensModel, batch: Batch, cache: Any = None) -> None:
        self.model, self.batch, self.cache = model, batch, cache

    def first(self, done: int | None = None) -> Float[Tensor, "row vocab"]:
        """Logits after the prompts; fills the cache.

        `done`: columns that the cache holds already, by default all but the last where there is a cache. A chat that
        stands in several rows is computed once.
        """
        if self.cache is not None or done is not None:
            return self._last(self.batch.tokens.shape[1] - done if done is not None else 1)[:, -1]
        firsts, copies = distinct(self.batch)
        if len(firsts) == len(copies) or self.model.active_taps:  # a tap may differ by row
            return self._first()
        self.batch = selected(self.batch, firsts)
        logits = self._first()
        self.keep(copies)
        return logits[copies]

    def _first(self) -> Float[Tensor, "row vocab"]:
        shared = shared_length(self.model, self.batch)
        if shared:
            self.batch = prefix_first(self.batch, shared)
            self.cache = columns_cache(self.model, self.batch, shared, once=True)
        return self._last(self.batch.tokens.shape[1] - shared)[:, -1]

    def step(self, tokens: Int[Tensor, " row"], segments: Int[Tensor, " row"]) -> Float[Tensor, "row vocab"]:
        """Logits after one more token in every row."""
        self.batch = grown(self.batch, tokens, segments)
        return self._last(1)[:, -1]

    def read(
        self, tokens: Int[Tensor, "row new"], segments: Int[Tensor, "row new"]
    ) -> Float[Tensor, "row one_more vocab"]:
        """Logits at the last column of the prompts and at each of these tokens, which come after them, in one pass."""
        for token, segment in zip(tokens.unbind(1), segments.unbind(1), strict=True):
            self.batch = grown(self.batch, token, segment)
        return self._last(1 + tokens.shape[1], every=True)

    def keep(self, rows: list[int]) -> None:
        """Go on with these rows of the batch and the cache alone; a row may be named more than once."""
        self.batch = selected(self.batch, rows)
        # transformers' selection for beams: its batch_select_indices is missing for recurrent layers
        self.cache.reorder_cache(torch.tensor(rows, device=self.batch.tokens.device))

    def _last(self, n: int, *, every: bool = False) -> Float[Tensor, "row new vocab"]:
        """Compute the last n columns; logits of the last of them, or of `every` one."""
        batch = self.batch
        with self.model.during(batch):
            output = self.model.hf(
                batch.tokens[:, -n:],
                **self.model.hf_inputs(batch.mask, batch.positions[:, -n:]),
                **({} if every else self.model.last_logit_only),
                past_key_values=self.cache,
                use_cache=True,
            )
        self.cache = output.past_key_values
        logits = output.logits.float()
        check_finite(self.model, batch, logits[:, -1])
        return logits


class RecomputingDecoder:
    """Decoding by whole forward passes, for models that are reached through TransformerLens' hooks only."""

    def __init__(self, model: LensModel, batch: Batch) -> None:
        self.model, self.batch = model, batch

    def first(self) -> Float[Tensor, "row vocab"]:
        """Logits after the prompts."""
        return self.model.logits(self.batch)[:, -1]

    def step(self, tokens: Int[Tensor, " row"], segments: Int[Tensor, " row"]) -> Float[Tensor, "row vocab"]:
        """Logits after one more token in every row."""
        self.batch = grown(self.batch, tokens, segments)
        return self.first()

    def keep(self, rows: list[int]) -> None:
        """Drop the other rows from the batch."""
        self.batch = selected(self.batch, rows)
