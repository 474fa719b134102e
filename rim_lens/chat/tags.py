"""The texts that open and close a CoT."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rim_lens.errors import RimLensError


@dataclass(frozen=True)
class ThinkTags:
    """The texts that open and close a CoT. Thinking off is `open + close` with nothing in between.

    `ThinkTags("", "")` is for models without a think part: off is then the bare template, on is an error.
    """

    open: str = "<think>\n"
    close: str = "\n</think>\n\n"

    @property
    def open_mark(self) -> str:
        """The opening tag without the white space around it, as it is looked for in a template's text."""
        return self.open.strip()

    @property
    def close_mark(self) -> str:
        """The closing tag without the white space around it, as it is looked for in a written CoT."""
        return self.close.strip()


def read_tags(written: Sequence[str] | None) -> ThinkTags | None:
    """Tags from two texts as a command line gives them, where backslash and n are a line break; None for none.

    Raises:
        RimLensError: not two texts.

    """
    if written is None:
        return None
    if isinstance(written, str) or len(written) != 2 or not all(isinstance(one, str) for one in written):
        raise RimLensError(f"Think tags are two texts, the opening and the closing one, got {written!r}.")
    return ThinkTags(*(one.replace("\\n", "\n") for one in written))
