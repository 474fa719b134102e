"""Prompts that are computed once: keys and values up to the decision position, from which any number of runs goes on.

1. One pass over a batch keeps keys and values of every column but the last, which is every row's decision position.
   Tokens that all rows begin with (a system prompt) are computed once for all of them.
2. Any number of runs computes the last column and what follows it, under whatever interventions are active: those at
   "all" positions of such a pass are at the decision position and after it.

Exact: what is left unchanged before the decision position does not depend on what is changed there.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache

from rim_lens.chat.segments import SEGMENTS
from rim_lens.model.batch import Batch
from rim_lens.model.decode import CachedDecoder
from rim_lens.model.lens_model import LensModel
from rim_lens.model.shared_prefix import attends_everywhere, columns_cache, prefix_first, shared_length
from rim_lens.model.taps_fast import serves

KeysValues = tuple[Float[Tensor, "row head key d_head"], Float[Tensor, "row head key d_head"]]


@dataclass(frozen=True, eq=False)
class PromptCache:
    """A batch with the keys and values of all columns but the last, layer by layer; `indices` are its prompts."""

    model: LensModel
    indices: Sequence[int]
    batch: Batch
    layers: Sequence[KeysValues]

    def __len__(self) -> int:
        """Number of prompts."""
        return len(self.batch)

    def decoder(self, rows: Sequence[int]) -> CachedDecoder:
        """Runs from the decision position on; `rows` says which of the prompts each row of them runs."""
        prompts = torch.tensor(list(rows))
        cache = DynamicCache(config=self.model.hf.config)
        for layer, (keys, values) in enumerate(self.layers):
            cache.update(keys[prompts.to(keys.device)], values[prompts.to(values.device)], layer)
        return CachedDecoder(self.model, repeated(self.batch, prompts), cache)

    @torch.no_grad()
    def decision_logits(self, rows: Sequence[int]) -> Float[Tensor, "row vocab"]:
        """Logits of one run per row under the active taps; rows as for `decoder`."""
        return self.decoder(rows).first()

    @torch.no_grad()
    def answer_logits(self, answers: Int[Tensor, "row new"], rows: Sequence[int]) -> Float[Tensor, "row new vocab"]:
        """Logits that predict each token of given answers, in one pass under the active taps; rows as for `decoder`.

        Shorter answers may be filled up on the right: what follows a token does not change what predicts it.
        """
        run = self.decoder(rows)
        return run.read(answers[:, :-1], torch.full_like(answers[:, :-1], SEGMENTS.index("response")))


def repeated(batch: Batch, rows: Tensor) -> Batch:
    """Some rows of a batch, each as often as it is named, every row with a Chat object of its own."""
    chats = tuple(replace(batch.chats[row]) for row in rows.tolist())
    rows = rows.to(batch.tokens.device)
    fields = ("tokens", "mask", "segments", "positions", "decision")
    return replace(batch, chats=chats, **{name: getattr(batch, name)[rows] for name in fields})


def can_prefill(model: LensModel, batch: Batch) -> bool:
    """Whether the model and a batch allow it.

    Full attention over explicit positions, rows that end at their decision.
    """
    ends = bool((batch.decision == batch.tokens.shape[1] - 1).all())
    return ends and batch.tokens.shape[1] > 1 and serves(model) and attends_everywhere(model)


@torch.no_grad()
def prefilling_pass(model: LensModel, batch: Batch, shared: int = 0) -> tuple[Float[Tensor, "row vocab"], Any]:
    """Logits at the decision positions and the KV cache of a whole pass.

    With `shared` > 0 the batch must be `prefix_first(batch, shared)`; taps then see the columns from there on only.
    """
    run = CachedDecoder(model, batch, columns_cache(model, batch, shared, once=True) if shared else None)
    return run.first(shared), run.cache


def prefilled(model: LensModel, indices: Sequence[int], batch: Batch, cache: Any) -> PromptCache:
    """What the cache of a whole pass holds of all columns but the last."""
    layers = [(layer.keys[:, :, :-1], layer.values[:, :, :-1]) for layer in cache.layers]
    return PromptCache(model, list(indices), batch, layers)


def prefill(model: LensModel, indices: Sequence[int], batch: Batch) -> PromptCache:
    """Compute a batch's prompts once; `can_prefill` says whether that is possible. No tap may be active."""
    shared = shared_length(model, batch)
    moved = prefix_first(batch, shared) if shared else batch
    return prefilled(model, indices, moved, prefilling_pass(model, moved, shared)[1])


@dataclass(frozen=True, eq=False)
class SharedStart:
    """A batch that is passed many times under taps that change all columns and rows alike.

    The first `shared` tokens, which all rows have in common, are computed once per pass and not once per row.
    """

    model: LensModel
    batch: Batch
    shared: int

    @classmethod
    def of(cls, model: LensModel, batch: Batch) -> "SharedStart":
        """What can be shared; no tap may be active."""
        shared = shared_length(model, batch) if can_prefill(model, batch) else 0
        return cls(model, prefix_first(batch, shared) if shared else batch, shared)

    @torch.no_grad()
    def decision_logits(self) -> Float[Tensor, "row vocab"]:
        """Logits at the decision positions under the active taps."""
        if not self.shared:
            return self.model.decision_logits(self.batch)
        start = columns_cache(self.model, self.batch, self.shared, once=True, tapped=True)
        return CachedDecoder(self.model, self.batch, start).first(self.shared)
