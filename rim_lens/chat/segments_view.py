"""A chat with its segments in colour, for the terminal and for notebooks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from typing import Protocol

import numpy as np
from jaxtyping import Int
from rich.text import Text

from rim_lens.chat.segments import SEGMENTS, Span, Thinking

# Hues that stay apart for colour-blind readers (after Okabe and Ito), as backgrounds behind black text.
COLOURS = dict(
    zip(SEGMENTS, ("#bbbbbb", "#8ecbf2", "#dddd77", "#f2b26b", "#f7d9a8", "#e58e6f", "#7fd1ae"), strict=True)
)


class Segmented(Protocol):
    """What a view needs of a `Chat`."""

    @property
    def text(self) -> str: ...  # noqa: D102
    @property
    def spans(self) -> tuple[Span, ...]: ...  # noqa: D102
    @property
    def token_ids(self) -> Int[np.ndarray, "pos"]: ...  # noqa: D102
    @property
    def segment_ids(self) -> Int[np.ndarray, "pos"]: ...  # noqa: D102
    @property
    def thinking(self) -> Thinking: ...  # noqa: D102
    @property
    def decision_position(self) -> int: ...  # noqa: D102
    @property
    def decode(self) -> Callable[[Sequence[int]], str] | None: ...  # noqa: D102


def segments_text(chat: Segmented) -> Text:
    """The chat's text with each segment on its colour, line ends made visible, under a legend of token counts."""
    view = Text()
    for segment, count in _token_counts(chat).items():
        view.append(f" {segment} {count} ", style=_style(segment))
        view.append(" ")
    view.append(f"\n{_decision_line(chat)}\n\n")
    for span in chat.spans:
        view.append(_visible(chat.text[span.start : span.end]), style=_style(span.segment))
    return view


def segments_html(chat: Segmented) -> str:
    """The same as a fragment of HTML."""
    legend = " ".join(_mark(segment, f" {segment} {count} ") for segment, count in _token_counts(chat).items())
    body = "".join(_mark(span.segment, _visible(chat.text[span.start : span.end])) for span in chat.spans)
    return (
        f'<div style="font-family: sans-serif; margin-bottom: .5em">{legend}<br>{escape(_decision_line(chat))}</div>'
        f'<div style="font-family: monospace; white-space: pre-wrap; line-height: 1.5">{body}</div>'
    )


def _token_counts(chat: Segmented) -> dict[str, int]:
    counts = np.bincount(chat.segment_ids, minlength=len(SEGMENTS))
    return dict(zip(SEGMENTS, counts.tolist(), strict=True))


def _decision_line(chat: Segmented) -> str:
    token = int(chat.token_ids[chat.decision_position])
    text = f" {chat.decode([token])!r}" if chat.decode is not None else ""
    return f"{len(chat.token_ids)} tokens, thinking {chat.thinking}, decision position {chat.decision_position}{text}"


def _style(segment: str) -> str:
    return f"black on {COLOURS[segment]}"


def _mark(segment: str, text: str) -> str:
    style = f"background: {COLOURS[segment]}; color: black"
    return f'<span title="{segment}" style="{style}">{escape(text)}</span>'


def _visible(text: str) -> str:
    """Line ends shown as a sign before they break the line."""
    return text.replace("\n", "⏎\n")
