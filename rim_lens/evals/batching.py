"""Requests that wait at the same time are answered together.

Inspect asks one sample at a time, many of them at once. The first that waits becomes the leader: when no new request
has come for a moment it takes up to `size` of them, has them answered in a thread, and the next one that is still
waiting leads. Which requests fall together depends on the clock; what is answered must not.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import anyio
import anyio.lowlevel
import anyio.to_thread

MOMENT = 0.05  # seconds; samples that start together arrive within it

Question = TypeVar("Question")
Answer = TypeVar("Answer")


@dataclass(eq=False)
class Waiting(Generic[Question, Answer]):
    """A request and, once `done`, its answer or the error in its place."""

    question: Question
    done: bool = False
    answer: Answer | Exception | None = None


class Room(Generic[Question, Answer]):
    """The requests of one event loop, in the order of their arrival, and who leads."""

    def __init__(self) -> None:
        self.waiting: list[Waiting[Question, Answer]] = []
        self.leading = anyio.Lock()


class Batcher(Generic[Question, Answer]):
    """Answers questions in groups.

    Args:
        answer: answers questions of one kind; an error in an answer's place is raised to whoever asked that question.
        kind: questions of equal kind can be answered together.
        size: most questions of a group.
    """

    def __init__(
        self,
        answer: Callable[[Sequence[Question]], Sequence[Answer | Exception]],
        kind: Callable[[Question], Hashable],
        size: int,
    ) -> None:
        self._answer, self._kind, self._size = answer, kind, size
        # A model outlives an event loop (each eval has its own), a lock does not.
        self._room: anyio.lowlevel.RunVar[Room[Question, Answer]] = anyio.lowlevel.RunVar("rim_lens requests")

    async def __call__(self, question: Question) -> Answer:
        """The answer, when its turn has come."""
        room = self._room.get(None)
        if room is None:
            self._room.set(room := Room())
        mine: Waiting[Question, Answer] = Waiting(question)
        room.waiting.append(mine)
        try:
            async with room.leading:
                if not mine.done:
                    await self._nobody_comes(room)
                    await anyio.to_thread.run_sync(self._run, self._group(room, mine))
        finally:
            if mine in room.waiting:  # cancelled before its turn
                room.waiting.remove(mine)
        if isinstance(mine.answer, Exception):
            raise mine.answer
        return mine.answer  # type: ignore[return-value]

    async def _nobody_comes(self, room: Room[Question, Answer]) -> None:
        """Wait until the group is full or no request has arrived for a moment."""
        seen = 0
        while seen < len(room.waiting) < self._size:
            seen = len(room.waiting)
            await anyio.sleep(MOMENT)

    def _group(self, room: Room[Question, Answer], mine: Waiting[Question, Answer]) -> list[Waiting[Question, Answer]]:
        """Mine and the earliest others of its kind, taken off the list."""
        kind = self._kind(mine.question)
        others = [one for one in room.waiting if one is not mine and self._kind(one.question) == kind]
        group = [mine, *others[: self._size - 1]]
        for one in group:
            room.waiting.remove(one)
        return group

    def _run(self, group: Sequence[Waiting[Question, Answer]]) -> None:
        """Answer a group; in a thread, and to the end also where the leader has been cancelled meanwhile."""
        try:
            answers = self._answer([one.question for one in group])
        except Exception as error:
            answers = [error] * len(group)
        for one, answer in zip(group, answers, strict=True):
            one.answer, one.done = answer, True
