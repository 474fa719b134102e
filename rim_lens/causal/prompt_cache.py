"""Prompts whose columns before the decision position are computed once: a change at that position then costs one token a run.

1. One pass over a batch keeps keys and values of every column but the last, which is every row's decision position.
   Tokens that all rows begin with (a system prompt) are computed once for all of them.
2. Any number of runs computes the last column alone, under whatever interventions are active: those at "all" positions
   of such a pass are at the decision position.

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
from rim_lens.model.attached_taps import detached
from rim_lens.model.batch import Batch
from rim_lens.model.decode import grown
from rim_lens.model.finite import check_finite
from rim_lens.model.lens_model import LensModel
from rim_lens.model.shared_prefix import attends_everywhere, prefix_first, shared_length
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

    def decision_logits(self, rows: Sequence[int]) -> Float[Tensor, "row vocab"]:
        """Logits of one run a row under the active taps; `rows` says which of the prompts each row runs."""
        return Continued(self, rows).logits

    def answer_logits(self, answers: Int[Tensor, "row new"], rows: Sequence[int]) -> Float[Tensor, "row new vocab"]:
        """Logits that predict each token of given answers, in one pass under the active taps; rows as above.

        Shorter answers may be filled up on the right: what follows a token does not change what predicts it.
        """
        return Continued(self, rows, at_once=answers[:, :-1]).all_logits


class Continued:
    """Runs of prefilled prompts from the decision position on, one token a step, under the taps that are active then.

    `logits` are those after the latest token; rows as in `PromptCache.decision_logits`. Tokens given `at_once` are
    computed together with the decision position, and `all_logits` has the logits of all these columns.
    """

    def __init__(self, part: PromptCache, rows: Sequence[int], at_once: Int[Tensor, "row new"] | None = None) -> None:
        prompts = torch.tensor(list(rows))
        self.model, self.batch = part.model, repeated(part.batch, prompts)
        self.cache = DynamicCache(config=part.model.hf.config)
        for layer, (keys, values) in enumerate(part.layers):
            self.cache.update(keys[prompts.to(keys.device)], values[prompts.to(values.device)], layer)
        columns = 1
        for token in () if at_once is None else at_once.unbind(1):
            self.batch = grown(self.batch, token, torch.full_like(token, SEGMENTS.index("response")))
            columns += 1
        self.all_logits = self._last_columns(columns)
        self.logits = self.all_logits[:, -1]

    def step(self, tokens: Int[Tensor, " row"]) -> Float[Tensor, "row vocab"]:
        """Logits after one more token of the answer in every row."""
        answer = torch.full_like(tokens, SEGMENTS.index("response"))
        self.batch = grown(self.batch, tokens, answer)
        self.logits = self._last_columns(1)[:, -1]
        return self.logits

    @torch.no_grad()
    def _last_columns(self, n: int) -> Float[Tensor, "row new vocab"]:
        batch = self.batch
        with self.model.during(batch):
            return self.model.hf(
                batch.tokens[:, -n:],
                **self.model.hf_inputs(batch.mask, batch.positions[:, -n:]),
                past_key_values=self.cache,
                use_cache=True,
            ).logits.float()


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
    cache: Any = DynamicCache(config=model.hf.config)
    if shared:
        first = slice(0, 1)
        inputs = model.hf_inputs(batch.mask[first, :shared], batch.positions[first, :shared])
        with detached(model):
            model.hf.base_model(batch.tokens[first, :shared], **inputs, past_key_values=cache, use_cache=True)
        cache.batch_repeat_interleave(len(batch))
    with model.during(batch):
        output = model.hf(
            batch.tokens[:, shared:],
            **model.hf_inputs(batch.mask, batch.positions[:, shared:]),
            **model.last_logit_only,
            past_key_values=cache,
            use_cache=True,
        )
    logits = output.logits[:, -1].float()
    check_finite(model, batch, logits)
    return logits, cache


def prefilled(model: LensModel, indices: Sequence[int], batch: Batch, cache: Any) -> PromptCache:
    """What the cache of a whole pass holds of all columns but the last."""
    layers = [(layer.keys[:, :, :-1], layer.values[:, :, :-1]) for layer in cache.layers]
    return PromptCache(model, list(indices), batch, layers)


def prefill(model: LensModel, indices: Sequence[int], batch: Batch) -> PromptCache:
    """Compute a batch's prompts once; `can_prefill` says whether that is possible. No tap may be active."""
    shared = shared_length(model, batch)
    moved = prefix_first(batch, shared) if shared else batch
    return prefilled(model, indices, moved, prefilling_pass(model, moved, shared)[1])
