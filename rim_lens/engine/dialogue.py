"""What an engine is asked: to continue token ids. An answer with its thought takes one to three such questions.

A dialogue is a generator: it yields an `Ask`, is sent the `Reply`, and returns what came of it. An engine runs many at
once, in whatever order their replies come, so that a short answer need not wait for a long thought.
"""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from rim_lens.engine.edit import Edit

T = TypeVar("T")


@dataclass(frozen=True)
class Ask:
    """Token ids to continue, `text` being the same, with at most `max_tokens`.

    It ends at one of the ids `ends`, or where `stop` has been written. `edits` are changes of the model inside the
    engine, each with the positions where it applies: from the first on and before the second (-1: to the end).
    """

    ids: tuple[int, ...]
    text: str
    max_tokens: int
    ends: tuple[int, ...] = ()
    stop: str = ""
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int | None = None
    min_p: float | None = None
    seed: int = 0
    edits: tuple[tuple[Edit, int, int], ...] = ()


@dataclass(frozen=True)
class Reply:
    """The tokens that were written, without the one that ended the turn; `ended` says whether one did."""

    ids: tuple[int, ...]
    ended: bool


Dialogue = Generator[Ask, Reply, T]


class Engine(Protocol):
    """Something that continues token ids."""

    name: str
    inside: bool  # whether passes can be read and changed

    def run(self, dialogues: Sequence[Dialogue[T]]) -> Iterator[tuple[int, T]]:
        """What comes of each dialogue, with its number, as they end."""
        ...

    def token_logprobs(self, asks: Sequence[Ask], token_ids: Sequence[int]) -> list[list[float]]:
        """Log p of each of these tokens right after each ask's ids, in nats.

        Raises:
            RimLensError: the engine does not give them.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """Name, version, dtype and parallelism, for manifests."""
        ...
