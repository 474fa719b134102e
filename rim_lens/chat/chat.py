"""A rendered chat: its text, its tokens, and the segment every token belongs to.

Each character of the text lies in exactly one segment; a token belongs to the segment of its first character, so
a token that straddles a border (a "\\n\\n" whose first half ends one segment) counts for the earlier one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import numpy as np
from jaxtyping import Bool, Int

from rim_lens.chat.segments import GROWING, SEGMENTS, Span, Thinking, segment_id
from rim_lens.chat.segments_view import segments_html
from rim_lens.errors import RimLensError

Decode = Callable[[Sequence[int]], str]


@dataclass(frozen=True, eq=False)
class Chat:
    """One chat, rendered and cut into segments. Made by `ChatFormat.render`, grown by `extend`.

    `spans` are the character borders behind `segment_ids`: in order, without gaps, covering `text` (empty
    segments have no span). `decode` turns token ids to text when the chat is grown; without it `text` and `spans`
    stay as they are. `n_rendered` counts the tokens that were rendered, not generated (all when left out).
    """

    text: str
    token_ids: Int[np.ndarray, "pos"]
    segment_ids: Int[np.ndarray, "pos"]
    thinking: Thinking
    request: str
    decision_position: int
    spans: tuple[Span, ...] = ()
    decode: Decode | None = field(default=None, repr=False)
    n_rendered: int = -1

    def __post_init__(self) -> None:
        tokens = np.asarray(self.token_ids, dtype=np.int64)
        segments = np.asarray(self.segment_ids, dtype=np.int8)
        if tokens.ndim != 1 or tokens.shape != segments.shape:
            raise RimLensError(
                f"a chat needs one segment id a token, got shapes {tokens.shape} and {segments.shape}: "
                "pass two one-dimensional arrays of equal length."
            )
        if not 0 <= self.decision_position < len(tokens):
            raise RimLensError(
                f"decision position {self.decision_position} is outside a chat of {len(tokens)} tokens: "
                "it must be the index of the last prompt token."
            )
        object.__setattr__(self, "token_ids", tokens)
        object.__setattr__(self, "segment_ids", segments)
        if self.n_rendered < 0:
            object.__setattr__(self, "n_rendered", len(tokens))

    def __len__(self) -> int:
        """Number of tokens."""
        return len(self.token_ids)

    def where(self, segment: str) -> Bool[np.ndarray, "pos"]:
        """True at the tokens of `segment`."""
        return cast(np.ndarray, self.segment_ids == segment_id(segment))

    def segment_text(self, segment: str) -> str:
        """The characters of `segment`, joined over turns; exact also where a token straddles its border."""
        segment_id(segment)
        return "".join(self.text[span.start : span.end] for span in self.spans if span.segment == segment)

    def extend(self, token_ids: Sequence[int], segment: str) -> Chat:
        """A longer chat: generated tokens appended as `segment`.

        `think_open`, `cot` and `think_close` tokens are part of the prompt of the response, so they move the
        decision position to the new last token; `response` tokens do not. Segments must come in the order of
        SEGMENTS, else RimLensError.
        """
        new = np.asarray(token_ids, dtype=np.int64).reshape(-1)
        self._check_growth(segment)
        if not len(new):
            return self
        tokens = np.concatenate([self.token_ids, new])
        segments = np.concatenate([self.segment_ids, np.full(len(new), segment_id(segment), dtype=np.int8)])
        text, spans = self._grown_text(new, segment)
        return replace(
            self,
            text=text,
            token_ids=tokens,
            segment_ids=segments,
            spans=spans,
            decision_position=self.decision_position if segment == "response" else len(tokens) - 1,
        )

    def _repr_html_(self) -> str:
        return segments_html(self)

    def _check_growth(self, segment: str) -> None:
        if segment not in GROWING:
            raise RimLensError(f"generated tokens cannot be {segment!r}: use one of {', '.join(GROWING)}.")
        last = int(self.segment_ids[-1])
        if segment_id(segment) < last:
            raise RimLensError(
                f"a {segment!r} token cannot follow {SEGMENTS[last]!r}: "
                f"segments come in the order {', '.join(GROWING)}."
            )

    def _grown_text(self, new: Int[np.ndarray, "new"], segment: str) -> tuple[str, tuple[Span, ...]]:
        if self.decode is None:
            return self.text, self.spans
        # A character may be spread over the tokens of two calls, so the whole grown run is decoded again.
        begin = self._last_grown_run() if self.segment_ids[-1] == segment_id(segment) else len(self)
        spans = self.spans[:-1] if begin < len(self) else self.spans
        start = spans[-1].end if spans else 0
        run = [*self.token_ids[begin:].tolist(), *new.tolist()]
        # Decoding behind one token of context keeps the leading space that some decoders drop at the start.
        context = self.token_ids[begin - 1 : begin].tolist()
        before, both = self.decode(context), self.decode(context + run)
        added = both[len(before) :] if both.startswith(before) else self.decode(run)
        text = self.text[:start] + added
        return text, (*spans, Span(segment, start, len(text)))

    def _last_grown_run(self) -> int:
        """First index of the last run of grown tokens of one segment; len(self) when there is none."""
        begin = len(self)
        while begin > self.n_rendered and self.segment_ids[begin - 1] == self.segment_ids[-1]:
            begin -= 1
        return begin
