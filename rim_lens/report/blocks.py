"""What a section of the page is made of: words, figures, tables, tokens. Texts are plain; the template escapes them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import plotly.graph_objects as go
from markupsafe import Markup

EXCERPT = 160  # characters of an answer that the page shows


@dataclass(frozen=True)
class Words:
    """A paragraph."""

    text: str
    kind: ClassVar[str] = "words"


@dataclass(frozen=True)
class Drawing:
    """A figure; its title and caption are the heading and the caption on the page."""

    figure: go.Figure
    kind: ClassVar[str] = "drawing"

    @property
    def title(self) -> str:
        """The figure's title, as escaped text."""
        return self.figure.layout.title.text or ""

    @property
    def caption(self) -> str:
        """The figure's subtitle, as escaped text, without the breaks that fit it to a figure's width."""
        return (self.figure.layout.title.subtitle.text or "").replace("<br>", " ")

    @property
    def height(self) -> int:
        """Height in pixels, known before the figure is drawn so that nothing moves when it is."""
        return int(self.figure.layout.height or 0)

    @property
    def cells(self) -> str:
        """What a cell of the figure can be chosen as ("heads"), or nothing."""
        return str((self.figure.layout.meta or {}).get("cells", ""))


@dataclass(frozen=True)
class Grid:
    """A table, folded away behind its title unless `open`; `note` says what was left out."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    open: bool = False
    kind: ClassVar[str] = "grid"


@dataclass(frozen=True)
class Answer:
    """One answer and its label; `hidden` ones show after a click alone."""

    condition: str
    request: str
    label: str
    response: str
    hidden: bool


@dataclass(frozen=True)
class Answers:
    """Answers that can be read, and labelled anew: the page saves them as rows that `judge_report` takes."""

    title: str
    note: str
    rows: Sequence[Answer]
    labels: Sequence[str]
    kind: ClassVar[str] = "answers"


@dataclass(frozen=True)
class Token:
    """One token with its segment and its weight: shade from 0 to 1, and the exact value as text."""

    text: str
    segment: str
    shade: float
    title: str


@dataclass(frozen=True)
class Tokens:
    """A chat token by token, shaded by what a head looks at, segments framed."""

    title: str
    caption: str
    tokens: Sequence[Token]
    kind: ClassVar[str] = "tokens"


@dataclass(frozen=True)
class Fragment:
    """HTML that needs no script, with what it shows."""

    title: str
    caption: str
    html: Markup
    kind: ClassVar[str] = "fragment"


@dataclass(frozen=True)
class Definition:
    """A quantity: its name, what it means, its formula."""

    term: str
    meaning: str
    formula: str = ""

    @property
    def anchor(self) -> str:
        """Where it stands on the page."""
        return "definition-" + re.sub(r"\W+", "-", self.term.lower()).strip("-")


@dataclass(frozen=True)
class Definitions:
    """Definitions of the quantities on the page."""

    items: Sequence[Definition]
    kind: ClassVar[str] = "definitions"


@dataclass(frozen=True)
class Folded:
    """Blocks folded away behind a title, unless `open`."""

    title: str
    blocks: Sequence["Block"]
    open: bool = False
    kind: ClassVar[str] = "folded"


Block = Words | Drawing | Grid | Answers | Tokens | Fragment | Definitions | Folded


@dataclass(frozen=True)
class Section:
    """One result on the page. `in_short` are the sentences that also stand in the summary."""

    anchor: str
    title: str
    in_short: Sequence[str]
    blocks: Sequence[Block] = field(default_factory=tuple)


def excerpt(text: str, length: int = EXCERPT) -> str:
    """The beginning of a text on one line."""
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 1].rstrip() + "…"
