"""The taxonomy: three patterns of reasoning that save effort, with definition, markers, examples and near misses.

Source of the three kinds: Yan et al., arXiv 2509.00544 (effort-minimizing reasoning patterns); definitions and all
examples are written for this package. Safety examples are thoughts about whether to answer, never an answer.
"""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from rim_lens.errors import RimLensError
from rim_lens.words import PATTERNS

NAMES = PATTERNS
NONE = "none"  # the label of a sentence that has none of the patterns
LABELS = (NONE, *NAMES)


@dataclass(frozen=True)
class Pattern:
    """One way of saving effort. `positive` and `near_miss` hold example sentences by domain: `maths`, `safety`."""

    name: str
    title: str
    definition: str
    markers: tuple[str, ...]
    positive: Mapping[str, tuple[str, ...]]
    near_miss: Mapping[str, tuple[str, ...]]

    def __str__(self) -> str:
        return f"{self.title}: {self.definition}"


@cache
def load_patterns() -> tuple[Pattern, ...]:
    """The three patterns: `confirmatory`, `heuristic`, `deviation`."""
    text = (files("rim_lens.patterns") / "texts" / "taxonomy.toml").read_text(encoding="utf-8")
    return tuple(
        Pattern(
            name=entry["name"],
            title=entry["title"],
            definition=entry["definition"],
            markers=tuple(entry["markers"]),
            positive={domain: tuple(texts) for domain, texts in entry["positive"].items()},
            near_miss={domain: tuple(texts) for domain, texts in entry["near_miss"].items()},
        )
        for entry in tomllib.loads(text)["pattern"]
    )


def checked_patterns(patterns: Sequence[str]) -> tuple[str, ...]:
    """Pattern names, each once and in the taxonomy's order.

    Raises:
        RimLensError: no name, or one that is not in the taxonomy.

    """
    names = [patterns] if isinstance(patterns, str) else list(patterns)
    unknown = [name for name in names if name not in NAMES]
    if unknown or not names:
        raise RimLensError(
            f"{unknown[0] if unknown else 'No name'!r} is not a reasoning pattern; use {', '.join(NAMES)}."
        )
    return tuple(name for name in NAMES if name in names)
