"""Where the contents of messages stand in a rendered chat, and what the template writes between them.

The chat is rendered a second time with marks (private-use characters) in place of the user and assistant
contents. What stands between the marks is the template's own text; putting the contents back must give the first
render again, so nothing that a message says (a closing tag, a turn marker, a mark) can be mistaken for it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from rim_lens.chat.segments import Span
from rim_lens.errors import RimLensError

Messages = Sequence[Mapping[str, str]]
Pieces = list[tuple[str, str]]  # (segment, text), in the order of the chat
Render = Callable[[Messages, bool], str]  # (messages, add_generation_prompt) -> text

# What templates do to a content before they write it.
TRIMS: tuple[Callable[[str], str], ...] = (
    lambda content: content,
    str.strip,
    str.lstrip,
    str.rstrip,
    lambda content: content.lstrip("\n"),
    lambda content: content.strip("\n"),
)
LEADING_TAG = re.compile(r"<[^<>\s]{1,40}>")
TRAILING_TAG = re.compile(r"</[^<>\s]{1,40}>\Z")


class Place(NamedTuple):
    """The content of a message of `role` stands at characters `start:end`."""

    role: str
    start: int
    end: int


@dataclass(frozen=True)
class Turns:
    """What a template writes around contents: `user_header` CONTENT `user_closing`, and so for assistants."""

    user_header: str
    user_closing: str
    assistant_header: str
    assistant_closing: str
    last_closing: str  # after an answer that ends the chat; mostly the same


class Masked(NamedTuple):
    """A content split into what the mark leaves standing (`head`, `tail`) and what it replaces (`core`)."""

    head: str
    core: str
    tail: str


def locate(messages: Messages, render: Render, template: str, close_mark: str) -> tuple[str, list[Place]]:
    """The rendered chat with generation prompt and the places of its user and assistant contents, in order.

    `close_mark` ends the CoT that an earlier answer may begin with. Raises RimLensError when the template leaves the
    system prompt out, or writes contents in a way that cannot be followed.
    """
    text = render(messages, True)
    mark = _free_character([template, text, *(message["content"] for message in messages)])
    _check_system(messages, render, mark)
    for mask in (_mask_all, partial(_mask_inside_tags, close_mark=close_mark)):
        masked = [mask(message) if message["role"] != "system" else None for message in messages]
        rendered = render(_with_marks(messages, masked, mark), True)
        contents = [(message["role"], part) for message, part in zip(messages, masked, strict=True) if part is not None]
        places = _put_back(contents, rendered.split(mark), text)
        if places is not None:
            return text, places
    raise RimLensError(
        "the chat template rewrites, repeats or leaves out a message's content, so segments cannot be told apart: "
        "pass a template that writes each content once."
    )


def probe_turns(render: Render, split: Callable[[str], list[str]], bos: str) -> Turns:
    """The texts around contents, read off small chats whose contents are marks.

    Args:
        render: renders messages with or without the generation prompt.
        split: cuts a text into units that are compared whole (special tokens, single characters).
        bos: the beginning-of-sequence token's text, "" when there is none.

    """
    user, again = ({"role": "user", "content": mark} for mark in ("\uf8f0", "\uf8f2"))
    answer = {"role": "assistant", "content": "\uf8f1"}
    before, _, rest = render([user, answer, again], False).partition(user["content"])
    user_to_answer, _, rest = rest.partition(answer["content"])
    answer_to_user = rest.partition(again["content"])[0]
    closed = render([user], False).partition(user["content"])[2]
    opened = render([user], True).partition(user["content"])[2]
    after_answer = render([user, answer], False).partition(answer["content"])[2]

    # Where the generation prompt is ignored, the turn's closing cannot be told from the assistant's header.
    user_closing = "" if closed == opened else common_prefix(split(closed), split(opened))
    assistant_closing = common_prefix(split(after_answer), split(answer_to_user))
    if not assistant_closing and answer_to_user.startswith(user_closing):  # gpt-oss ends its last answer otherwise
        assistant_closing = user_closing
    assistant_header = user_to_answer.removeprefix(user_closing)
    between = answer_to_user.removeprefix(assistant_closing)
    if bos not in assistant_header:  # else the token that begins every turn merely doubles as BOS
        between = between.removeprefix(bos)
    return Turns(
        user_header=_common_suffix(split(before), split(between)),
        user_closing=user_closing,
        assistant_header=assistant_header,
        assistant_closing=assistant_closing,
        last_closing=after_answer,
    )


def generation_prompt(render: Render, user_closing: str) -> str:
    """What the template writes after a user turn to make the assistant begin."""
    after = render([{"role": "user", "content": "\uf8f0"}], True).partition("\uf8f0")[2]
    return after.removeprefix(user_closing)


def pieces_of(text: str, places: Sequence[Place], turns: Turns) -> Pieces:
    """Cut a rendered chat into pieces; the last one is its generation prompt (`assistant_tag`, may be "")."""
    pieces: Pieces = []
    role, end = "", 0
    for place in places:
        pieces += _between(text[end : place.start], role, place.role, turns)
        pieces.append(("user" if place.role == "user" else "response", text[place.start : place.end]))
        role, end = place.role, place.end
    closing, prompt = _cut_prefix(text[end:], turns.user_closing)
    return [*pieces, ("user", closing), ("assistant_tag", prompt)]


def join_pieces(pieces: Pieces) -> list[Span]:
    """Spans of consecutive pieces; empty ones vanish, neighbours of one segment join."""
    spans: list[Span] = []
    end = 0
    for segment, piece in pieces:
        if not piece:
            continue
        start, end = end, end + len(piece)
        if spans and spans[-1].segment == segment:
            start = spans.pop().start
        spans.append(Span(segment, start, end))
    return spans


def _between(gap: str, role_before: str, role_after: str, turns: Turns) -> Pieces:
    """Pieces of the template's text between two contents (`role_before` is "" at the start of the chat)."""
    closing = {"user": turns.user_closing, "assistant": turns.assistant_closing, "": ""}[role_before]
    closed, rest = _cut_prefix(gap, closing)
    pieces = [("user" if role_before == "user" else "response", closed)]
    if role_after == "user" or not role_before:
        # Where the template puts a system prompt inside the user turn, the turn's header goes with it.
        segment, header = "user", turns.user_header
        if role_after == "assistant":
            segment, header = "assistant_tag", turns.assistant_header
        system, header = _cut_suffix(rest, header)
        return [*pieces, ("system", system), (segment, header)]
    # What follows the header is a think part that the template writes before an earlier answer.
    header = common_prefix(rest, turns.assistant_header)
    return [*pieces, ("assistant_tag", header), ("response", rest[len(header) :])]


def _mask_all(message: Mapping[str, str]) -> Masked:
    return Masked("", message["content"], "")


def _check_system(messages: Messages, render: Render, mark: str) -> None:
    """Raise RimLensError where a system prompt does not reach the chat."""
    masked = [{**message, "content": mark} if message["role"] == "system" else message for message in messages]
    if any(message["role"] == "system" and message["content"].strip() for message in messages) and mark not in render(
        masked, True
    ):
        raise RimLensError(
            "the chat template leaves the system prompt out: put its text before the request in the user's message, "
            "or pass a chat_template= that writes it."
        )


def _mask_inside_tags(message: Mapping[str, str], close_mark: str) -> Masked:
    """Leave standing what templates look for: tags around a user content, a CoT before an answer."""
    content = message["content"]
    if message["role"] == "assistant":
        end = content.rfind(close_mark) + len(close_mark) if close_mark and close_mark in content else 0
        return Masked(content[:end], content[end:], "")
    head, tail = LEADING_TAG.match(content), TRAILING_TAG.search(content)
    if head is None or tail is None or tail.start() < head.end():
        return _mask_all(message)
    return Masked(head.group(), content[head.end() : tail.start()], tail.group())


def _with_marks(messages: Messages, masked: Sequence[Masked | None], mark: str) -> list[dict[str, str]]:
    return [
        {**message, "content": f"{part.head}{mark}{part.tail}"} if part is not None else dict(message)
        for message, part in zip(messages, masked, strict=True)
    ]


def _put_back(contents: Sequence[tuple[str, Masked]], gaps: Sequence[str], text: str) -> list[Place] | None:
    """Put contents back between the gaps of a marked render; None when that does not give `text`."""
    if len(gaps) != len(contents) + 1 or not text.startswith(gaps[0]):
        return None
    places: list[Place] = []
    at = len(gaps[0])
    for (role, part), gap in zip(contents, gaps[1:], strict=True):
        is_last = len(places) + 1 == len(contents)
        forms = (trim(part.core) for trim in TRIMS)
        written = next((form for form in forms if _stands(form + gap, at, text, is_last)), None)
        if written is None:
            return None
        # The tags that were left standing belong to the content too, where the template kept them.
        start = at - len(part.head) if text.endswith(part.head, 0, at) else at
        end = at + len(written)
        places.append(Place(role, start, end + len(part.tail) if text.startswith(part.tail, end) else end))
        at = end + len(gap)
    return places


def _stands(piece: str, at: int, text: str, is_last: bool) -> bool:
    return text.startswith(piece, at) and (not is_last or at + len(piece) == len(text))


def _free_character(texts: Sequence[str]) -> str:
    """A private-use character that none of the texts holds."""
    used = set().union(*texts)
    private = map(chr, (*range(0xE000, 0xF900), *range(0xF0000, 0xFFFFE)))
    free = next((character for character in private if character not in used), None)
    if free is None:
        raise RimLensError("a message uses every private-use character of Unicode: shorten it.")
    return free


def _cut_prefix(text: str, prefix: str) -> tuple[str, str]:
    """(prefix, rest), or ("", text) when the text does not begin so."""
    return (prefix, text[len(prefix) :]) if text.startswith(prefix) else ("", text)


def _cut_suffix(text: str, suffix: str) -> tuple[str, str]:
    """(rest, suffix), or (text, "") when the text does not end so."""
    return (text[: len(text) - len(suffix)], suffix) if text.endswith(suffix) else (text, "")


def common_prefix(a: Sequence[str], b: Sequence[str]) -> str:
    """The units that both begin with, joined."""
    same = [left == right for left, right in zip(a, b, strict=False)]
    return "".join(a[: same.index(False) if False in same else len(same)])


def _common_suffix(a: Sequence[str], b: Sequence[str]) -> str:
    """The units that both end with, joined."""
    same = [left == right for left, right in zip(reversed(a), reversed(b), strict=False)]
    length = same.index(False) if False in same else len(same)
    return "".join(a[len(a) - length :])
