"""Which think tags a chat template has of its own: read off its renders and its text, or off the table of families.

1. A row of `families.FAMILIES` that fits the template.
2. How the template writes an earlier thought of the assistant (`reasoning_content`, `reasoning` or `thinking`).
3. A think tag at the end of its generation prompt, or a pair of them in its text; a missing half follows from the
   other.

Only where nothing of this is there are the tags the default ones.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from rim_lens.chat.layout import Turns, common_prefix
from rim_lens.chat.tags import ThinkTags
from rim_lens.chat.template import Template
from rim_lens.chat.think_part import written_tags
from rim_lens.errors import RimLensError

TagsFrom = Literal["given", "template", "known family", "default"]

USER, THOUGHT, ANSWER = "\uf8f0", "\uf8f3", "\uf8f1"
FIELDS = ("reasoning_content", "reasoning", "thinking")  # under which templates take an assistant's thought

# Tags are in brackets and name thinking; comments of the template are not tags.
_NAME = r"(?:think|thinking|thought|thoughts|reasoning|reflection|scratchpad)"
TAG = re.compile(
    rf"<(?P<slash>/?)(?:\w+:)?{_NAME}>|\[(?P<square>/?){_NAME}\]|<\|(?:(?P<edge>start|begin|end)_(?:of_)?){_NAME}\|>"
    rf"|<\|{_NAME}_(?P<late>start|begin|end)\|>",
    re.IGNORECASE,
)
LONE = re.compile(rf"<\|/?{_NAME}\|>", re.IGNORECASE)
COMMENT = re.compile(r"\{#.*?#\}", re.DOTALL)


class OwnTags(NamedTuple):
    """The tags to use and where they come from; `lead` is white space that stands between header and opening tag."""

    tags: ThinkTags
    tags_from: TagsFrom
    lead: str = ""


def own_tags(template: Template, turns: Turns, prompts: tuple[str, str]) -> OwnTags:
    """The tags of a template whose generation prompts with thinking off and on are `prompts`.

    Raises RimLensError where the generation prompt has a think tag whose other half cannot be said.
    """
    off, on = prompts
    thought = written_thought(template, turns, on)
    if template.family is not None:
        tags = template.family.tags
        in_prompt = any(_shows(prompt, tags) for prompt in prompts)
        agrees = thought is not None and thought.tags.close_mark == tags.close_mark
        return OwnTags(written_tags(off, on, tags), "template" if in_prompt or agrees else "known family")
    if thought is not None:
        return thought
    texts = (*prompts[::-1], COMMENT.sub("", template.source))
    for text in texts:
        match = TAG.search(text)
        if match is not None:
            return OwnTags(written_tags(off, on, _pair(match, text)), "template")
    lone = next((match for prompt in prompts if (match := LONE.search(prompt))), None)
    if lone is not None:
        raise RimLensError(
            f"the chat template's generation prompt has {lone.group()!r}, a think tag whose other half is not known: "
            "give tags=ThinkTags(open, close)."
        )
    return OwnTags(ThinkTags(), "default")


def written_thought(template: Template, turns: Turns, prompt: str) -> OwnTags | None:
    """The tags around a thought that is given to the template in a field of its own; None where it writes none.

    Args:
        template: the template.
        turns: what it writes around contents.
        prompt: its generation prompt with thinking on.

    """
    answer = {"role": "assistant", "content": ANSWER, **dict.fromkeys(FIELDS, THOUGHT)}
    try:
        text = template([{"role": "user", "content": USER}, answer], False, True)
    except RimLensError:  # a template that takes no such field
        return None
    after = text.partition(USER)[2].removeprefix(turns.user_closing)
    before, _, rest = after.partition(THOUGHT)
    close, separator, _ = rest.partition(ANSWER)
    if not separator or not before or THOUGHT in rest:
        return None
    tag = TAG.search(before)
    header = before[: tag.start()] if tag else common_prefix(before, prompt)
    opening = before[len(header) :].lstrip()
    # White space that is not in the generation prompt belongs between it and the tag.
    spaced = before[: len(before) - len(opening)]
    lead = spaced.removeprefix(prompt) if spaced.startswith(prompt) else ""
    return OwnTags(ThinkTags(opening, close), "template", lead) if opening.strip() and close.strip() else None


def _shows(prompt: str, tags: ThinkTags) -> bool:
    return tags.open_mark in prompt or tags.close_mark in prompt


def _pair(match: re.Match[str], text: str) -> ThinkTags:
    """The pair of which `match` is one tag, in the form of `text` where that opens a thought with it."""
    one = match.group()
    if match["edge"] or match["late"]:
        word = (match["edge"] or match["late"]).lower()
        start = word if word != "end" else ("start" if match["late"] else "begin" if "_of_" in one else "start")
        opening, closing = _recased(one, word, start), _recased(one, word, "end")
    else:
        bare = one.replace("/", "", 1)
        opening, closing = bare, f"{bare[0]}/{bare[1:]}"
    after = text[text.find(opening) + len(opening) :] if opening in text else "\n"
    breaks = after.startswith(("\n", "\\n"))
    return (
        ThinkTags(f"{opening}\n", f"\n{closing}\n\n") if breaks or opening == "<think>" else ThinkTags(opening, closing)
    )


def _recased(tag: str, word: str, other: str) -> str:
    """`tag` with `other` in place of `word`, in the same case."""
    at = tag.lower().index(word)
    return tag[:at] + (other.upper() if tag[at].isupper() else other) + tag[at + len(word) :]
