"""A model's written text split into its thoughts and its answer, so that a thought is never judged as an answer."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

from rim_lens.chat.families import FAMILIES
from rim_lens.chat.tags import ThinkTags

EVERY = tuple(dict.fromkeys([*(family.tags for family in FAMILIES), ThinkTags()]))
QUOTES = "`'\"“”‘’«»"
FEW = 4  # so many words between two tags in the middle of a sentence are a mention of the tags, fewer than a thought
_ANSWER = "(?:answer|response|output|solution|final|final_answer)"
END_OF_TURN = re.compile(rf"(?:<\|(?:return|end|im_end|eot_id|END_RESPONSE)\|>|</{_ANSWER}>|\s)+\Z", re.IGNORECASE)
_ANSWER_OPENS = re.compile(rf"\s*<{_ANSWER}>\s*", re.IGNORECASE)
_FENCED = re.compile(r"```.*?```", re.DOTALL)
# A thought at the beginning, in tags of no known family that name it: <reasoning>, <|startofthink|>, [SCRATCHPAD]
_NAMED = re.compile(
    r"\s*(?P<left><\|?|\[)\s*"
    r"(?P<name>[\w.:-]*(?:think|thought|reason|scratchpad|reflect|analysis|working_out|monologue)[\w.:-]*)"
    r"\s*(?P<right>\|?>|\])",
    re.IGNORECASE,
)
_BEGINS = re.compile(r"\A(?:start|begin)", re.IGNORECASE)
_BARE_CHANNELS = re.compile(
    r"\s*analysis(?=\S)(?P<thought>.*?)assistant(?:commentary.*?assistant)?final(?P<answer>.*)", re.DOTALL
)


class SplitThoughts(NamedTuple):
    """`closed`: whether the last thought ended by itself; None where there is none."""

    thought: str
    answer: str
    closed: bool | None


def split_thoughts(text: str, tags: ThinkTags | None = None, *, opened: bool | None = None) -> SplitThoughts:
    """Split what a model wrote after its prompt.

    A thought stands between the tags, anywhere in the text; several are joined by an empty line. One that never closes
    reaches to the end. Tags that are only mentioned (in quotes, or in the middle of a sentence) are text.

    Args:
        text: what the model wrote, special tokens included where the tags are special tokens.
        tags: the model's think tags; None tries those of every known family that occur in the text, then any tags
            that the text begins with and that name a thought, and the channels of gpt-oss decoded without their marks.
        opened: whether the text begins inside a thought (the prompt ended with the opening tag). None: it does where a
            closing tag comes before any opening one.

    """
    if tags is None:
        return _by_any_tags(text, opened)
    if not tags.open_mark or not tags.close_mark:
        return SplitThoughts("", text.strip(), None)
    thoughts: list[str] = []
    answers: list[str] = []
    closed: bool | None = None
    searched = _without_shown(text, tags)
    at = 0
    inside = bool(opened)
    while True:
        opening, closing = _next(searched, tags.open_mark, at), _next(searched, tags.close_mark, at)
        if inside:
            end = closing if closing >= 0 else searched.find(tags.close_mark, at)
            thoughts.append(text[at : end if end >= 0 else len(text)])
            closed = end >= 0
            if end < 0:
                break
            at, inside = end + len(tags.close_mark), False
        elif closing >= 0 and (opening < 0 or closing < opening):
            # A lone closing tag: what stands before it was thought, unless the text is known to begin with the answer.
            (answers if opened is False else thoughts).append(text[at:closing])
            closed = closed if opened is False else True
            at = closing + len(tags.close_mark)
        elif opening >= 0 and not _mentions_pair(text, tags, opening):
            answers.append(text[at:opening])
            at, inside = opening + len(tags.open_mark), True
        elif opening >= 0:
            end = text.find(tags.close_mark, opening) + len(tags.close_mark)
            answers.append(text[at:end])
            at = end
        else:
            answers.append(text[at:])
            break
    answer = _without_header("".join(answers), tags.close_mark)
    parts = [part for part in (thought.replace(tags.open_mark, "").strip() for thought in thoughts) if part]
    return SplitThoughts("\n\n".join(parts), END_OF_TURN.sub("", answer).strip(), closed)


def _by_any_tags(text: str, opened: bool | None) -> SplitThoughts:
    """Split by the tags that come first in the text, then the answer by what other tags are left."""
    # Of tags that begin alike, those that the text closes come first, and of those the longest.
    marks = [
        (min(at), tags.close_mark not in text, -len(tags.close_mark), tags)
        for tags in EVERY
        if (at := _places(text, tags))
    ]
    if not marks:
        if opened is None and (found := _by_named_tags(text)):
            return found
        answers = (answer for tags in EVERY if (answer := _without_header(text, tags.close_mark)) != text.lstrip())
        return SplitThoughts("", END_OF_TURN.sub("", next(answers, text)).strip(), None)
    first = min(marks, key=lambda one: one[:3])[3]
    parts = split_thoughts(text, first, opened=opened)
    if parts.answer == text.strip():
        return parts
    rest = _by_any_tags(parts.answer, False)
    thought = "\n\n".join(part for part in (parts.thought, rest.thought) if part)
    return SplitThoughts(thought, rest.answer, parts.closed if rest.closed is None else rest.closed)


def _by_named_tags(text: str) -> SplitThoughts | None:
    """Split a text that begins with a thought in tags that no family has; None for any other text."""
    if bare := _BARE_CHANNELS.match(text):
        return SplitThoughts(bare["thought"].strip(), bare["answer"].strip(), True)
    opening = _NAMED.match(text)
    if not opening:
        return None
    name = opening["name"]
    closes = [rf"/\s*{re.escape(name)}", *([rf"end{re.escape(_BEGINS.sub('', name))}"] if _BEGINS.match(name) else [])]
    left, right = re.escape(opening["left"]), re.escape(opening["right"])
    closing = re.compile(rf"{left}\s*(?:{'|'.join(closes)})\s*{right}", re.IGNORECASE).search(text, opening.end())
    if not closing:
        return SplitThoughts(text[opening.end() :].strip(), "", False)
    answer = text[closing.end() :]
    if header := _ANSWER_OPENS.match(answer):
        answer = answer[header.end() :]
    rest = _by_any_tags(answer, None)
    thought = "\n\n".join(part for part in (text[opening.end() : closing.start()].strip(), rest.thought) if part)
    return SplitThoughts(thought, rest.answer, True if rest.closed is None else rest.closed)


def _places(text: str, tags: ThinkTags) -> list[int]:
    if tags.open_mark not in text and tags.close_mark not in text:
        return []
    searched = _without_shown(text, tags)
    return [at for at in (_next(searched, tags.open_mark, 0), _next(searched, tags.close_mark, 0)) if at >= 0]


def _without_shown(text: str, tags: ThinkTags) -> str:
    """The text with blocks of code that show a pair of tags made unreadable, so that no tag is looked for in them."""
    if "```" not in text:
        return text
    closing = {tags.close_mark, *(one.close_mark for one in EVERY if one.open_mark == tags.open_mark)}

    def masked(block: re.Match[str]) -> str:
        shows = tags.open_mark in block[0] and any(mark in block[0] for mark in closing)
        return "\0" * len(block[0]) if shows else block[0]

    return _FENCED.sub(masked, text)


def _next(text: str, mark: str, start: int) -> int:
    """Where the mark stands next as a tag, not as a word that is spoken of; -1 for nowhere."""
    at = text.find(mark, start)
    while at >= 0 and _is_mentioned(text, at, at + len(mark)):
        at = text.find(mark, at + 1)
    return at


def _is_mentioned(text: str, start: int, end: int) -> bool:
    """Whether a tag stands in quotes."""
    return start > 0 and text[start - 1] in QUOTES and end < len(text) and text[end] in QUOTES


def _mentions_pair(text: str, tags: ThinkTags, opening: int) -> bool:
    """Whether a pair of tags in the middle of a sentence has hardly anything between it."""
    line = text[text.rfind("\n", 0, opening) + 1 : opening]
    inner = opening + len(tags.open_mark)
    end = text.find(tags.close_mark, inner)
    return line.endswith(" ") and bool(line.strip()) and end >= 0 and 0 < len(text[inner:end].split()) < FEW


def _without_header(answer: str, close_mark: str) -> str:
    """The answer without the end of a closing tag at its beginning (the header of the channel that it stands in)."""
    answer = answer.lstrip()
    return next((answer.removeprefix(tail) for tail in _tails(close_mark) if answer.startswith(tail)), answer)


@lru_cache
def _tails(close_mark: str) -> list[str]:
    return [close_mark[at:] for at, character in enumerate(close_mark) if character == "<" and at]
