"""What a head looks at, token by token: its attention from the decision position over a few chosen chats.

    weight[k] = pattern[decision, k]                      in [0, 1]; the tokens of a chat sum to 1

Span attention reduces this to segments; here the tokens stay, so that a reader can see which words a head attends to.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd
from jaxtyping import Float

from rim_lens.capture.attention import attention_rows
from rim_lens.chat.segments import SEGMENTS
from rim_lens.errors import RimLensError
from rim_lens.model.as_chats import as_chats
from rim_lens.model.lens_model import LensModel
from rim_lens.model.requests import Prompts
from rim_lens.results import Manifest, Result
from rim_lens.units import AnyHead, Head, heads_from


@dataclass(frozen=True, eq=False)
class TokenAttention(Result):
    """Attention of heads from the decision position to every token up to it, in chosen chats.

    `chats`: one row per chat: its request, thinking mode and, where given, a note such as the label of its answer.
    `tokens`: one row per token, chat after chat, with `chat`, `text` and `segment`. `weights`: a row per head in the
    order of `heads`, a column per row of `tokens`.
    """

    figure: ClassVar = "tokens:token_view"

    weights: Float[np.ndarray, "head token"]
    tokens: pd.DataFrame
    chats: pd.DataFrame
    heads: list[Head]

    def of(self, chat: int, head: AnyHead) -> pd.DataFrame:
        """The tokens of one chat with the weights of one head."""
        head = Head.parse(head)
        inside = (self.tokens["chat"] == chat).to_numpy(dtype=bool)
        if head not in self.heads or not inside.any():
            raise RimLensError(
                f"There is no chat {chat} with head {head}; there are {len(self.chats)} chats of "
                f"{len(self.heads)} heads."
            )
        rows = self.tokens[inside].reset_index(drop=True)
        weights = self.weights[self.heads.index(head)][inside].astype(np.float64)
        return rows.assign(layer=head[0], head=head[1], token=np.arange(len(rows)), weight=weights)

    def to_dataframe(self) -> pd.DataFrame:
        """One row per chat and head: the token that it attends to most, with its weight and segment."""
        tables = []
        for chat, rows in self.tokens.groupby("chat", sort=False):
            weights = self.weights[:, rows.index]
            most = weights.argmax(axis=1)
            where = {
                "chat": chat,
                "layer": [layer for layer, _ in self.heads],
                "head": [head for _, head in self.heads],
            }
            chosen = rows.iloc[most][["text", "segment"]].reset_index(drop=True)
            table = pd.DataFrame(where | {"n_tokens": len(rows), "token": most}).join(chosen)
            tables.append(table.assign(weight=weights.max(axis=1)))
        return pd.concat(tables, ignore_index=True)

    def caption(self) -> str:
        """Heads and chats."""
        names = ", ".join(str(Head.parse(head)) for head in self.heads)
        named = names if len(self.heads) <= 8 else f"{len(self.heads)} heads"
        return f"Attention from the decision position of {named} in {len(self.chats)} chats."


def token_attention(
    model: LensModel,
    chats: Prompts,
    heads: Sequence[Head] | None = None,
    *,
    notes: Sequence[str] | None = None,
) -> TokenAttention:
    """Attention of heads to every token of a few chats.

    Args:
        model: the model.
        chats: rendered chats, a few: every token is kept.
        heads: (layer, head) pairs; every head where none are given.
        notes: a word on each chat, for instance how its answer was judged.

    Raises:
        RimLensError: no chats or heads, an unknown head, or notes of another number.
    """
    chats = as_chats(model, chats)
    if not chats or (heads is not None and not len(heads)) or (notes is not None and len(notes) != len(chats)):
        raise RimLensError("token_attention needs at least one chat and one head, and as many notes as chats, if any.")
    rows = [one_chat[:, :, 0] for one_chat in attention_rows(model, chats)]
    if heads is None:
        has_attention = ~rows[0].isnan().all(dim=-1)  # layers without attention have none
        heads = [Head(layer, head) for layer, head in has_attention.nonzero().tolist()]
    heads = heads_from(heads)
    for layer, head in heads:
        if not (0 <= layer < model.n_layers and 0 <= head < model.n_heads):
            raise RimLensError(
                f"There is no head {Head(layer, head)}; the model has {model.n_layers} layers of {model.n_heads} heads."
            )
    layers, places = (list(part) for part in zip(*heads, strict=True))
    tables, weights = [], []
    for i, (chat, one_chat) in enumerate(zip(chats, rows, strict=True)):
        n = chat.decision_position + 1  # later tokens cannot be seen
        texts = [model.chat_format.decode([int(token)]) for token in chat.token_ids[:n]]
        segments = [SEGMENTS[segment] for segment in chat.segment_ids[:n]]
        tables.append(pd.DataFrame({"chat": i, "text": texts, "segment": segments}))
        weights.append(one_chat[layers, places, :n].float().numpy())
    about = pd.DataFrame(
        {
            "chat": range(len(chats)),
            "request": [chat.request for chat in chats],
            "thinking": [chat.thinking for chat in chats],
            "note": [""] * len(chats) if notes is None else list(notes),
        }
    )
    return TokenAttention(
        np.concatenate(weights, axis=1),
        pd.concat(tables, ignore_index=True),
        about,
        heads,
        manifest=Manifest.collect(model),
    )
