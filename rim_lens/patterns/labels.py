"""What every annotator returns: one label per sentence, and where in the CoT the evidence for it stands."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from rim_lens.behavior.sentences import Sentence


@dataclass(frozen=True)
class SentenceLabel:
    """A pattern's name or `none`; `start` to `end` are the characters of the CoT it rests on (equal: nothing)."""

    pattern: str
    start: int
    end: int


class Annotator(Protocol):
    """Labels the sentences of CoTs; `problems` are the requests they answer, where known.

    `limits` is one sentence on its errors on thoughts that models wrote themselves; it stands beside every share of
    those.
    """

    name: str
    limits: str

    def __call__(
        self, cots: Sequence[Sequence[Sentence]], problems: Sequence[str] | None = None
    ) -> list[list[SentenceLabel]]:
        """One label per sentence, in order."""
        ...
