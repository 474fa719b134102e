"""The think tags that a chat template writes itself, found at the end of its generation prompt.

Only text that the template wrote is searched here, never a message's.
"""

from __future__ import annotations

from typing import NamedTuple

from rim_lens.chat.tags import ThinkTags


class ThinkPart(NamedTuple):
    """A generation prompt cut in three: the assistant's header, then the tags that the template writes itself."""

    header: str
    open: str
    close: str


def cut_think_part(prompt: str, tags: ThinkTags) -> ThinkPart:
    """Cut a generation prompt before the tags it ends with; `open` and `close` are "" where it has none."""
    if not tags.open_mark or not tags.close_mark:
        return ThinkPart(prompt, "", "")
    opened, closed = prompt.rfind(tags.open_mark), prompt.rfind(tags.close_mark)
    if opened < 0 and closed < 0:
        return ThinkPart(prompt, "", "")
    if opened > closed:
        inner = opened + len(tags.open_mark)
        rest = prompt[inner:].strip()
        # A template may leave the end of a closing tag to the model (Command A: the tag that opens the answer).
        end = inner if rest and tags.close_mark.startswith(rest) else len(prompt)
        return ThinkPart(prompt[:opened], prompt[opened:end], "")
    if opened < 0:
        return ThinkPart(prompt[:closed], "", prompt[closed:])
    inner = opened + len(tags.open_mark)
    # The white space between the tags belongs to the opening tag as far as the given tags say so.
    space = tags.open[tags.open.index(tags.open_mark) + len(tags.open_mark) :]
    border = inner + len(space) if prompt[inner:closed].startswith(space) else inner
    return ThinkPart(prompt[:opened], prompt[opened:border], prompt[border:])


def without_answer_tag(prompt: str, close_mark: str) -> str:
    """The prompt without a tag that opens the answer, where that tag is the end of the closing one."""
    starts = [at for at, character in enumerate(close_mark) if character == "<" and at]
    tails = [close_mark[at:] for at in starts if prompt.endswith(close_mark[at:])]
    return prompt[: len(prompt) - len(tails[0])] if tails else prompt


def written_tags(off: str, on: str, tags: ThinkTags) -> ThinkTags:
    """The tags in the template's own form, from its generation prompts with thinking off and on.

    Args:
        off: generation prompt with thinking off; templates such as Qwen3's write the empty think span here.
        on: generation prompt with thinking on; templates such as DeepSeek-R1-Distill's open the tag here.
        tags: what to look for, and the form of what the template does not write.

    """
    written_off, written_on = cut_think_part(off, tags), cut_think_part(on, tags)
    opening = written_on.open or written_off.open or tags.open
    empty_span = written_off.open + written_off.close
    if written_off.close and empty_span.startswith(opening):
        return ThinkTags(opening, empty_span.removeprefix(opening))
    return ThinkTags(opening, written_off.close or tags.close)
