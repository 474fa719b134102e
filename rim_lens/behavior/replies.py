"""Replies of a chat model: reading the one JSON object that was asked for, and keeping it on disk.

A thinking model may think first: what stands before the end of its thought is skipped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from rim_lens.cache import cache_folder
from rim_lens.cache_lines import Entry, key_of

Answer = TypeVar("Answer")

_FENCE = re.compile(r"\A\s*```(?:json)?\s*(.*?)\s*```\s*\Z", re.DOTALL)
_THOUGHT_ENDS = re.compile(
    r"</think>|</thinking>|</thought>|</reasoning>|\[/THINK\]|<\|end_of_thought\|>", re.IGNORECASE
)
_THOUGHT_BEGINS = re.compile(r"\A\s*(?:<think>|<thinking>|<thought>|<reasoning>|\[THINK\])", re.IGNORECASE)


class Unreadable(ValueError):
    """A reply is not in the form asked for."""


def read_reply(text: str, read: Callable[[Entry], Answer]) -> Answer:
    """Read a reply.

    Raises `Unreadable` unless it is the JSON object asked for, fenced or not, after a thought or not.
    """
    entry = _json_object(text)
    if entry is None and (end := _THOUGHT_ENDS.search(text)):
        # the object may quote such a tag, so the first one that an object follows ends the thought
        while entry is None and end:
            text = text[end.end() :]
            entry, end = _json_object(text), _THOUGHT_ENDS.search(text)
    elif entry is None and _THOUGHT_BEGINS.match(text):
        raise Unreadable("the thought does not end; raise max_tokens")
    if entry is None:
        raise Unreadable(f"{text[:80]!r} is not a JSON object")
    return read(entry)


def content_of(reply: Any) -> tuple[str, bool]:
    """The text of a chat completion and whether its length was cut.

    Raises `Unreadable` where the body has another form.

    Servers that take the thought out put it into `reasoning_content` or `reasoning`. Some put the whole reply there
    when no thought was found; it is read only where `content` is empty.
    """
    try:
        choice = reply.json()["choices"][0]
        message = choice["message"]
        parts = [message.get(name) for name in ("content", "reasoning_content", "reasoning")]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise Unreadable(f"{reply.text[:80]!r} is not a chat completion") from error
    texts = [part for part in parts if isinstance(part, str) and part.strip()]
    if not texts and not any(isinstance(part, str) for part in parts):
        raise Unreadable("the chat completion holds no text")
    return (texts[0] if texts else ""), choice.get("finish_reason") == "length"


def default_cache(role: str, url: str, model: str, system: str) -> Path:
    """The file for the answers of one model to one instruction, in the package's cache folder."""
    return cache_folder() / "replies" / f"{role}-{key_of(url, model, system)[:16]}.jsonl"


def _json_object(text: str) -> Entry | None:
    fenced = _FENCE.match(text)
    try:
        entry = json.loads(fenced.group(1) if fenced else text)
    except json.JSONDecodeError:
        return None
    return entry if isinstance(entry, dict) else None
