"""Decision logits of one chat with each sentence of its CoT hidden, or with the CoT cut off before it.

1. The chat is computed once up to the end of its CoT, with a KV cache.
2. Hidden from what follows the CoT, or cut off: all sentences at once, a row each, over the close tag's tokens alone. A
   hidden sentence is masked where it stands; a cut CoT is masked from there on, and what follows it moves up.
   Hidden from all that is later: sentence by sentence, over the tokens behind it.

Exact: no column of the cache depends on what is changed behind it. Where the model does not allow this (windows, layers
without attention, TransformerLens objects, other interventions), every row is a whole pass.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import DynamicCache

from rim_lens.chat.chat import Chat
from rim_lens.inference_time.cot_sentences import CotSentence, cut_before
from rim_lens.intervene.hidden_tokens import HiddenTokens
from rim_lens.intervene.selection import Chosen
from rim_lens.model.lens_model import LensModel
from rim_lens.model.shared_prefix import attends_everywhere
from rim_lens.model.taps_fast import serves

Queries = Literal["answer", "later"]
ROWS = 32


def can_share(model: LensModel) -> bool:
    """Whether a chat's CoT can be computed once for all of its sentences."""
    return serves(model) and not model.active_taps and attends_everywhere(model)


class SentenceScores:
    """The logits of one chat; its rows are sentences."""

    @torch.no_grad()
    def __init__(self, model: LensModel, chat: Chat, sentences: Sequence[CotSentence], chosen: Chosen) -> None:
        self.model, self.sentences, self.chosen = model, sentences, chosen
        self.chat = replace(
            chat,
            token_ids=chat.token_ids[: chat.decision_position + 1],
            segment_ids=chat.segment_ids[: chat.decision_position + 1],
        )
        self.every_head = len(chosen) == model.n_layers and all(bool(mask.all()) for mask in chosen.values())
        self.tokens = torch.from_numpy(self.chat.token_ids).to(model.device)
        self.stop, self.width = sentences[-1].stop, len(self.chat)
        self.cache = None
        if can_share(model):
            self.cache = DynamicCache(config=model.hf.config)
            positions = torch.arange(self.stop, device=model.device)[None]
            inputs = model.hf_inputs(torch.ones_like(positions), positions)
            model.hf.base_model(self.tokens[None, : self.stop], **inputs, past_key_values=self.cache, use_cache=True)

    @torch.no_grad()
    def clean(self) -> Float[Tensor, " vocab"]:
        """Nothing hidden, nothing cut."""
        if self.cache is None:
            return self.model.decision_logits(self.model.batch([self.chat]))[0]
        return self._behind(self.stop, torch.ones(1, self.width, dtype=torch.bool), [self.stop])[0]

    @torch.no_grad()
    def hidden(self, queries: Queries) -> Float[Tensor, "sentence vocab"]:
        """Each sentence hidden from the chosen heads, for queries behind the CoT or behind the sentence."""
        hidden = torch.zeros(len(self.sentences), self.width, dtype=torch.bool)
        for row, one in enumerate(self.sentences):
            hidden[row, one.start : one.stop] = True
        first = torch.tensor([self.stop if queries == "answer" else sentence.stop for sentence in self.sentences])
        groups = [list(range(len(first)))] if queries == "answer" else [[row] for row in range(len(first))]
        scores = [
            self._hidden_rows(hidden[list(rows)], first[list(rows)])
            for group in groups
            for rows in (group[i : i + ROWS] for i in range(0, len(group), ROWS))
        ]
        return torch.cat(scores)

    @torch.no_grad()
    def cut(self) -> Float[Tensor, "sentence vocab"]:
        """The CoT cut off before each sentence."""
        starts = [sentence.start for sentence in self.sentences]
        scores = []
        for rows in self._some(starts):
            if self.cache is None:
                chats = [cut_before(self.model, self.chat, start) for start in rows]
                scores += [self.model.decision_logits(self.model.batch([chat]))[0] for chat in chats]
                continue
            columns = torch.arange(self.width)[None]
            start = torch.tensor(rows)[:, None]
            scores += self._behind(self.stop, (columns < start) | (columns >= self.stop), rows).unbind(0)
        return torch.stack(scores)

    def _some(self, rows: Sequence[int]) -> list[Sequence[int]]:
        return [rows[i : i + ROWS] for i in range(0, len(rows), ROWS)]

    def _hidden_rows(self, hidden: Tensor, first: Tensor) -> Float[Tensor, "row vocab"]:
        """Rows whose queries begin at the same column where the cache is used."""
        begin = int(first[0])
        if self.cache is not None and self.every_head:
            return self._behind(begin, ~hidden, [begin] * len(hidden))
        with self.model.tap(HiddenTokens(self.chosen, hidden, first)):
            if self.cache is not None:
                return self._behind(begin, torch.ones_like(hidden), [begin] * len(hidden))
            return self.model.decision_logits(self.model.batch([self.chat] * len(hidden)))

    def _behind(self, begin: int, visible: Tensor, places: Sequence[int]) -> Float[Tensor, "row vocab"]:
        """Logits after the tokens from column `begin` on, which stand at position `places` in each row."""
        assert self.cache is not None
        n, device = len(visible), self.model.device
        cache = DynamicCache(config=self.model.hf.config)
        for layer, of_layer in enumerate(self.cache.layers):
            keys, values = (part[:, :, :begin].expand(n, -1, -1, -1) for part in (of_layer.keys, of_layer.values))
            cache.update(keys, values, layer)
        more = torch.arange(self.width - begin, device=device)[None]
        positions = torch.tensor(list(places), device=device)[:, None] + more
        return (
            self.model.hf(
                self.tokens[None, begin:].expand(n, -1),
                **self.model.hf_inputs(visible.to(device), positions),
                **self.model.last_logit_only,
                past_key_values=cache,
                use_cache=True,
            )
            .logits[:, -1]
            .float()
        )
