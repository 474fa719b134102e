"""What a benchmark yields, how it is registered, and how two things are timed in turn."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rim_lens.model.lens_model import LensModel


@dataclass(frozen=True)
class Figure:
    """One measured value and the limit it must keep; without a limit it is only shown."""

    name: str
    value: float
    unit: str
    n: int
    at_most: float | None = None
    at_least: float | None = None
    detail: str = ""

    @property
    def limit(self) -> float | None:
        """The number to keep."""
        return self.at_least if self.at_most is None else self.at_most

    @property
    def holds(self) -> bool:
        """Whether the limit is kept."""
        above = self.at_least is None or self.value >= self.at_least
        return above and (self.at_most is None or self.value <= self.at_most)

    def entry(self) -> dict[str, Any]:
        """As written to the JSON list."""
        fields = ("name", "value", "limit", "holds", "unit", "n")
        return {field: getattr(self, field) for field in fields}


@dataclass(frozen=True)
class Setting:
    """The model that is measured and how many pairs a ratio is the median of."""

    model: LensModel
    pairs: int


Benchmark = Callable[[Setting], Iterator[Figure]]
registered: dict[str, Benchmark] = {}


def benchmark(function: Benchmark) -> Benchmark:
    """Register a benchmark under its function's name."""
    registered[function.__name__] = function
    return function


Clock = Callable[[], float]


def seconds(action: Callable[[], Any], clock: Clock = time.process_time) -> float:
    """Seconds of one call, by default the processor's."""
    begin = clock()
    action()
    return clock() - begin


def in_turn(
    actions: Sequence[Callable[[], Any]], times: int, *, warm_up: bool = True, clock: Clock = time.process_time
) -> list[list[float]]:
    """Seconds of each action, [action][time]: all of them once unmeasured, then in turn, every second turn backwards.

    `warm_up=False` leaves the unmeasured time out, for long actions in a process that has run the like before.
    """
    for action in actions if warm_up else ():
        action()
    taken: list[list[float]] = [[] for _ in actions]
    for turn in range(times):
        order = range(len(actions)) if turn % 2 == 0 else reversed(range(len(actions)))
        for i in order:
            taken[i].append(seconds(actions[i], clock))
    return taken


def median_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """Median of the ratios of pairs."""
    return statistics.median(a / b for a, b in zip(numerators, denominators, strict=True))
