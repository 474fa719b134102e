"""What a writer of CoTs gets and returns; the lengths of its two texts may differ by `LENGTH_LIMIT`, as a share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

LENGTH_LIMIT = 0.05
Count = Callable[[str], int]


@dataclass(frozen=True)
class RewriteTask:
    """What a writer gets: a problem, its CoT, the final answer to keep, and the patterns that the target shall have."""

    problem: str
    cot: str
    answer: str
    patterns: tuple[str, ...]


@dataclass(frozen=True)
class Draft:
    """What a writer returns for one task; empty texts mean that it had nothing."""

    target: str
    control: str


class Writer(Protocol):
    """Writes target and control CoTs."""

    name: str

    def __call__(self, tasks: Sequence[RewriteTask], count: Count) -> list[Draft]:
        """One draft per task; `count` gives a text's number of tokens."""
        ...
