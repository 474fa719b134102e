"""The segments of a chat: their names, their order, and the characters that belong to one."""

from __future__ import annotations

from typing import Literal, NamedTuple

from rim_lens.errors import RimLensError

SEGMENTS = ("system", "user", "assistant_tag", "think_open", "cot", "think_close", "response")
GROWING = ("think_open", "cot", "think_close", "response")  # what can follow the assistant tag, in this order

Thinking = Literal["off", "on", "prefilled"]


class Span(NamedTuple):
    """Characters `start:end` of a chat's text belong to `segment`."""

    segment: str
    start: int
    end: int


def segment_id(segment: str) -> int:
    """Index of a segment's name in SEGMENTS; an unknown name is a RimLensError."""
    if segment not in SEGMENTS:
        raise RimLensError(f"unknown segment {segment!r}: use one of {', '.join(SEGMENTS)}.")
    return SEGMENTS.index(segment)
