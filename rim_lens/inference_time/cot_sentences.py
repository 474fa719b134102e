"""The sentences of a chat's CoT as runs of its tokens, and the chat with its CoT cut off before one of them."""

import itertools
from dataclasses import dataclass, replace

import numpy as np

from rim_lens.behavior.sentences import plain, split_sentences
from rim_lens.chat.chat import Chat
from rim_lens.errors import RimLensError
from rim_lens.model.lens_model import LensModel


@dataclass(frozen=True)
class CotSentence:
    """Tokens `start:stop` of the chat, and the characters that they hold."""

    text: str
    start: int
    stop: int


def cot_sentences(model: LensModel, chat: Chat) -> list[CotSentence]:
    """The sentences, which together hold every token of the CoT; white space belongs to the sentence that it is before.

    A token belongs to the sentence of its first character. A sentence without a token of its own joins the one before.

    Raises:
        RimLensError: a chat without a CoT, with several, or without a close tag behind it.
    """
    cot = np.flatnonzero(chat.where("cot"))
    if not len(cot):
        raise RimLensError(f"The chat {chat.request[:40]!r} has no CoT whose sentences could be weighed.")
    first, stop = int(cot[0]), int(cot[-1]) + 1
    if stop - first != len(cot) or stop > chat.decision_position:
        raise RimLensError(
            f"The CoT of the chat {chat.request[:40]!r} is not one run of tokens with a close tag before the decision "
            "position: pass the `chat` of a generation with thinking on, or a prefilled one."
        )
    starts = _starts(model, chat, first, stop)
    ends = [0, *(one.end for one in split_sentences(plain(_text(model, chat, first, stop)))[:-1])]
    borders = sorted({int(np.searchsorted(starts, end)) for end in ends} - {len(starts)})
    places = [first + border for border in borders] + [stop]
    return [
        CotSentence(_text(model, chat, start, end).strip(), start, end) for start, end in itertools.pairwise(places)
    ]


def _text(model: LensModel, chat: Chat, start: int, stop: int) -> str:
    """What tokens `start:stop` add to the token before them."""
    decode = model.chat_format.decode
    before = chat.token_ids[max(start - 1, 0) : start].tolist()
    return decode([*before, *chat.token_ids[start:stop].tolist()])[len(decode(before)) :]


def _starts(model: LensModel, chat: Chat, first: int, stop: int) -> list[int]:
    """Where each token of the CoT begins in its text, in characters."""
    return [len(_text(model, chat, first, token)) for token in range(first, stop)]


def cut_before(model: LensModel, chat: Chat, token: int) -> Chat:
    """The chat whose CoT ends before `token`; what stands behind the CoT follows at once."""
    stop = int(np.flatnonzero(chat.where("cot"))[-1]) + 1
    columns = np.r_[0:token, stop : chat.decision_position + 1]
    return replace(
        chat,
        text=model.chat_format.decode(chat.token_ids[columns].tolist()),
        token_ids=chat.token_ids[columns],
        segment_ids=chat.segment_ids[columns],
        decision_position=len(columns) - 1,
        spans=(),
        decode=None,
        n_rendered=len(columns),
    )


def open_before(model: LensModel, chat: Chat, token: int) -> Chat:
    """The chat up to `token`, still inside its CoT, for a model to go on writing."""
    return replace(
        chat,
        text=model.chat_format.decode(chat.token_ids[:token].tolist()),
        token_ids=chat.token_ids[:token],
        segment_ids=chat.segment_ids[:token],
        thinking="on",
        decision_position=token - 1,
        spans=(),
        decode=None,
        n_rendered=token,
    )
