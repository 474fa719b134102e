"""Residual stream at the positions that all chats of a template share: the request's last token to the decision.

The CoT is not among them: what comes before it is read in the chat cut off there (later tokens cannot change it), what
comes after it counted back from the decision position.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int

from rim_lens.capture.activations import residuals
from rim_lens.chat.chat import Chat
from rim_lens.errors import RimLensError
from rim_lens.model.lens_model import LensModel

_LONGEST_TAIL = 6  # template tokens that may close the user's turn


@dataclass(frozen=True, eq=False)
class Template:
    """The shared positions of some chats: token indices before and after the CoT, and the tokens' texts."""

    before: Int[np.ndarray, "chat before"]
    after: Int[np.ndarray, "chat after"]
    labels: list[str]


def shared_template(model: LensModel, chats: Sequence[Chat]) -> Template:
    """Find the positions; a token that differs between chats is labelled by where it stands.

    Raises:
        RimLensError: a chat without a user's turn.

    """
    ends = []
    for chat in chats:
        users = np.flatnonzero(chat.where("user"))
        if not len(users):
            raise RimLensError("A chat without a user's turn has no template positions; render chats from requests.")
        ends.append(int(users[-1]))
    tail = _shared_tail([chat.token_ids[: end + 1] for chat, end in zip(chats, ends, strict=True)])
    blocks = [_blocks(chat, end - tail) for chat, end in zip(chats, ends, strict=True)]
    n_before, n_after = (min(len(block[side]) for block in blocks) for side in (0, 1))
    before = np.stack([first[:n_before] for first, _ in blocks])
    after = np.stack([last[len(last) - n_after :] for _, last in blocks])
    labels = ["last request token"] + [_label(model, chats, column) for column in (*before.T[1:], *after.T)]
    return Template(before, after, labels)


def template_residuals(
    model: LensModel, chats: Sequence[Chat], template: Template, batch_size: int = 16
) -> Float[np.ndarray, "chat depth position d_model"]:
    """Residual stream (float32) entering every layer and after the last block, at the template's positions."""
    decision = np.array([chat.decision_position for chat in chats])[:, None]
    offsets = np.concatenate([template.before, template.after], axis=1) - decision
    if (offsets == offsets[0]).all():
        return residuals(model, chats, tuple(offsets[0].tolist()), batch_size=batch_size).numpy()
    last = template.before[:, -1]
    cut = [_cut(chat, int(end)) for chat, end in zip(chats, last, strict=True)]
    parts = [residuals(model, cut, tuple(range(1 - template.before.shape[1], 1)), batch_size=batch_size).numpy()]
    if template.after.shape[1]:
        back = tuple(range(1 - template.after.shape[1], 1))
        parts.append(residuals(model, chats, back, batch_size=batch_size).numpy())
    return np.concatenate(parts, axis=2)


def _blocks(chat: Chat, start: int) -> tuple[Int[np.ndarray, "before"], Int[np.ndarray, "after"]]:
    """Token indices from `start` up to the CoT (or its place), and from behind it to the decision position."""
    inside = np.arange(start, chat.decision_position + 1)
    closing = chat.where("think_close")[inside]
    return inside[~closing & ~chat.where("cot")[inside]], inside[closing]


def _shared_tail(prompts: Sequence[Int[np.ndarray, "pos"]]) -> int:
    """How many last tokens of the user's turn are the same in all chats: those of the template."""
    tail = 0
    shortest = min(map(len, prompts))
    while tail < min(_LONGEST_TAIL, shortest - 1) and len({int(tokens[-1 - tail]) for tokens in prompts}) == 1:
        tail += 1
    return tail if len(prompts) > 1 else 0


def _label(model: LensModel, chats: Sequence[Chat], column: Int[np.ndarray, "chat"]) -> str:
    """The commonest token text at a position."""
    tokens = Counter(int(chat.token_ids[i]) for chat, i in zip(chats, column, strict=True))
    return model.chat_format.decode([tokens.most_common(1)[0][0]])


def _cut(chat: Chat, end: int) -> Chat:
    """The chat up to and including token `end`, which becomes its decision position."""
    return replace(
        chat, token_ids=chat.token_ids[: end + 1], segment_ids=chat.segment_ids[: end + 1], decision_position=end
    )
