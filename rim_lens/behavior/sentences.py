"""A response cut into sentences and list items, in a form that rules can read.

Text is lower-cased, with straight quotes and plain dashes, and keeps its length, so that every offset still points
into the original. Speech in quotation marks, quoted lines and code blocks can be blanked out: a refusal that a story's
character speaks is not the model's.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass

_PLAIN = str.maketrans(
    dict.fromkeys("’‘‛ʼ`´", "'")
    | dict.fromkeys("“”„‟«»", '"')
    | dict.fromkeys("–—‑", "-")
    | dict.fromkeys("*_\u00a0\u200b\ufeff", " ")
    | {"…": "."}
)
_STAR_BULLET = re.compile(r"^([ \t]*)\*(?=\s)", re.MULTILINE)
_QUOTED = re.compile(r'"[^"\n]*(?:"|$)|^[ \t]*>[^\n]*', re.MULTILINE)
_CODE = re.compile(r"'''.*?(?:'''|\Z)", re.DOTALL)  # back-quotes have become straight quotes by then
_MARKER = re.compile(r"(?:#+\s*)?(?:\d{1,2}[.)]|[-•+]|step \d{1,2}[.:]?)\s+(?=\S)")
_LINE_OR_ITEM = re.compile(r"\n|(?<=\s)(?=\d{1,2}[.)] +[a-z])")  # lists written on one line are lists too
_SENTENCE = re.compile(r"\S.*?(?:[.!?]+[\"')\]]*(?=\s|$)|$)")
_MIN_LETTERS = 8  # fewer outside quotation marks: the quotation is the response


@dataclass(frozen=True)
class Sentence:
    """One sentence.

    Plain text, the part of it outside quotations, its place in the response, and if it is a list item.
    """

    text: str
    own: str
    start: int
    end: int
    is_item: bool

    @property
    def n_words(self) -> int:
        """Words, split at white space."""
        return len(self.text.split())


def plain(text: str) -> str:
    """Lower case, straight quotes, plain dashes, no emphasis marks; same length as `text`."""
    text = _STAR_BULLET.sub(r"\1-", text).translate(_PLAIN)
    lowered = text.lower()
    return lowered if len(lowered) == len(text) else "".join(c.lower()[:1] for c in text)


def split_sentences(text: str) -> list[Sentence]:
    """Cut `plain` text at line ends, list items and full stops; pieces without a letter or digit are left out."""
    own = _blank_quotations(text)
    found: list[Sentence] = []
    borders = [0, *(m.end() for m in _LINE_OR_ITEM.finditer(text)), len(text)]
    for start, end in itertools.pairwise(borders):
        begin = start + len(text[start:end]) - len(text[start:end].lstrip())
        marker = _MARKER.match(text, begin, end)
        for match in _SENTENCE.finditer(text, marker.end() if marker else begin, end):
            body = match.group().lstrip("\"'#(> ")
            if any(map(str.isalnum, body)):
                first = match.end() - len(body)
                outside = own[first : match.end()].strip()
                found.append(Sentence(body.rstrip(), outside, first, match.end(), marker is not None))
    return found


def _blank_quotations(text: str) -> str:
    hidden = _CODE.sub(_spaces, text)
    hidden = _QUOTED.sub(_spaces, hidden)
    return hidden if sum(map(str.isalpha, hidden)) >= _MIN_LETTERS else text


def _spaces(match: re.Match[str]) -> str:
    return " " * len(match.group())
