"""Names of heads and neurons: L12H3, L12N345, and L12E3N45 for a neuron of an expert."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from rim_lens.errors import RimLensError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

_HEAD, _NEURON = re.compile(r"L(\d+)H(\d+)"), re.compile(r"L(\d+)(?:E(\d+))?N(\d+)")


class Head(NamedTuple):
    """An attention head, both numbers counted from 0; `str(Head(12, 3))` is "L12H3"."""

    layer: int
    head: int

    def __str__(self) -> str:
        return f"L{self.layer}H{self.head}"

    @classmethod
    def parse(cls, value: Any) -> Head:
        """A head from "L12H3", a pair (layer, head), or itself.

        Raises:
            RimLensError: anything else.
        """
        if isinstance(value, cls):
            return value
        if isinstance(value, str):
            match = _HEAD.fullmatch(value.strip())
            numbers = None if match is None else [int(one) for one in match.groups()]
        else:
            numbers = _numbers(value)
        if isinstance(value, Neuron) or numbers is None or len(numbers) != 2:
            raise RimLensError(f'{_shown(value)} is not a head: write "L12H3" or (12, 3) for head 3 of layer 12.')
        return cls(*numbers)

    @classmethod
    def from_table(cls, table: pd.DataFrame) -> list[Head]:
        """The heads of a table with columns `layer` and `head`, in its order."""
        return [cls(*row) for row in table[["layer", "head"]].to_numpy(int).tolist()]


class Neuron(NamedTuple):
    """A neuron of an MLP, or of one `expert` in a mixture; its name is "L12N345" or "L12E3N45"."""

    layer: int
    unit: int
    expert: int | None = None

    def __str__(self) -> str:
        expert = "" if self.expert is None else f"E{self.expert}"
        return f"L{self.layer}{expert}N{self.unit}"

    @property
    def place(self) -> tuple[int, ...]:
        """(layer, unit), or (layer, expert, unit): its place in arrays of activations."""
        return (self.layer, self.unit) if self.expert is None else (self.layer, self.expert, self.unit)

    @classmethod
    def parse(cls, value: Any) -> Neuron:
        """A neuron from its name, from a row (layer, unit) or (layer, expert, unit), or itself.

        Raises:
            RimLensError: anything else.
        """
        if isinstance(value, cls):
            return value
        if isinstance(value, str):
            match = _NEURON.fullmatch(value.strip())
            numbers = None if match is None else [int(one) for one in match.groups() if one is not None]
        else:
            numbers = _numbers(value)
        if isinstance(value, Head) or numbers is None or len(numbers) not in (2, 3):
            raise RimLensError(
                f'{_shown(value)} is not a neuron: write "L12N345" or (12, 345), "L12E3N45" or (12, 3, 45) for one '
                "of expert 3."
            )
        return cls(numbers[0], numbers[-1], numbers[1] if len(numbers) == 3 else None)

    @classmethod
    def from_table(cls, table: pd.DataFrame) -> list[Neuron]:
        """The neurons of a table with columns `layer`, `unit` and, for experts, `expert`, in its order."""
        columns = index_columns(3 if "expert" in table else 2)
        return [cls.parse(row) for row in table[list(columns)].to_numpy(int).tolist()]


AnyHead = Head | tuple[int, int] | str
AnyNeuron = Neuron | tuple[int, ...] | str


def heads_from(values: Iterable[Any]) -> list[Head]:
    """Heads from names, pairs or heads; one alone is a list of one. Raises RimLensError as `Head.parse`."""
    return [Head.parse(value) for value in listed(values)]


def listed(units: Any) -> Sequence[Any]:
    """A list of units: "L12H3" or (12, 3) alone, names with commas between them, an array or a set becomes one."""
    if isinstance(units, str):
        return units.split(",")
    units = getattr(units, "rows", units)
    units = units.tolist() if hasattr(units, "tolist") else units
    units = units if isinstance(units, Sequence) else list(units)
    alone = len(units) > 0 and all(hasattr(one, "__index__") for one in units)
    return [units] if alone else units


def index_columns(n: int) -> tuple[str, ...]:
    """Names of the columns that say where a neuron is: two in a dense model, three with experts."""
    return ("layer", "unit") if n == 2 else ("layer", "expert", "unit")


def columns_of(rows: np.ndarray) -> dict[str, np.ndarray]:
    """The columns of a table of neurons from their rows [neuron, index]."""
    return dict(zip(index_columns(rows.shape[1]), rows.T, strict=True))


def is_per_row(units: Sequence[Any]) -> bool:
    """Whether `units` is a list of lists of units, one per row of a batch, rather than one list of units."""
    return any(not isinstance(one, str) and (len(one) == 0 or not hasattr(one[0], "__index__")) for one in units)


def _numbers(value: Any) -> list[int] | None:
    try:
        return [operator.index(one) for one in value]
    except TypeError:
        return None


def _shown(value: Any) -> str:
    return repr(value if isinstance(value, str | tuple | list) else str(value))[:60]
