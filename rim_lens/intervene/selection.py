"""Which heads or neurons are changed, in which rows, at which positions.

Units are given once for all rows, `[(layer, head), ...]` or `["L12H3", ...]`, or per row of the batch, `[[...], ...]`;
one alone, "L12H3" or (12, 3), is a list of one.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from rim_lens.chat.chat import Chat
from rim_lens.chat.positions import Positions, checked_positions, positions_in, segments_of
from rim_lens.errors import RimLensError
from rim_lens.model.batch import Batch
from rim_lens.model.lens_model import LensModel
from rim_lens.model.mixture_layers import existing
from rim_lens.model.taps import STILL_THINKING, Pass, Tap
from rim_lens.units import Head, Neuron, is_per_row, listed

# Names, pairs, Head or Neuron: once for all rows, or a list of them per row.
Heads = Sequence[Any]
Neurons = Sequence[Any]
Entry = int | tuple[int, int]  # a layer, or one of its experts: (layer, expert)
Chosen = dict[Entry, Bool[Tensor, "#row unit"]]


def chosen_heads(model: LensModel, heads: Heads) -> Chosen:
    """Per layer with a chosen head, True at the chosen heads of each row.

    Raises:
        RimLensError: a head that the model does not have.

    """

    def checked(unit: Any) -> tuple[Entry, int]:
        layer, head = one = Head.parse(unit)
        if not (0 <= layer < model.n_layers and 0 <= head < model.n_heads):
            raise RimLensError(
                f"there is no head {one}: the model has {model.n_layers} layers of {model.n_heads} heads."
            )
        return layer, head

    return _chosen(heads, model.n_heads, checked)


def chosen_neurons(model: LensModel, neurons: Neurons) -> Chosen:
    """Per layer, or expert of a layer, with a chosen neuron, True at the chosen neurons of each row.

    Raises:
        RimLensError: a neuron that the model does not have.

    """
    there = existing(model)

    def checked(unit: Any) -> tuple[Entry, int]:
        *entry, index = one = Neuron.parse(unit).place
        if len(one) != there.ndim:
            names = "(layer, expert, unit)" if there.ndim == 3 else "(layer, unit)"
            raise RimLensError(f"{Neuron.parse(unit)} is not a neuron of {model.name}, whose neurons are {names}.")
        if not all(0 <= i < size for i, size in zip(one, there.shape, strict=True)) or not there[one]:
            raise RimLensError(f"there is no neuron {Neuron.parse(unit)}: the model has {shape_in_words(there.shape)}.")
        return (entry[0] if len(entry) == 1 else (entry[0], entry[1])), index

    return _chosen(neurons, there.shape[-1], checked)


def shape_in_words(shape: tuple[int, ...]) -> str:
    """How many layers of how many neurons."""
    return f"{shape[0]} layers of {' × '.join(map(str, shape[1:]))} neurons"


def _chosen(units: Sequence[Any], n_units: int, checked: Callable[[Any], tuple[Entry, int]]) -> Chosen:
    units = listed(units)
    rows = units if is_per_row(units) else [units]
    chosen: Chosen = {}
    first: dict[int, int] = {}  # rows often share their list; each is read once
    for row, row_units in enumerate(rows):
        if (same := first.setdefault(id(row_units), row)) < row:
            for mask in chosen.values():
                mask[row] = mask[same]
            continue
        for unit in row_units:
            entry, index = checked(unit)
            mask = chosen.setdefault(entry, torch.zeros(len(rows), n_units, dtype=torch.bool))
            mask[row, index] = True
    return chosen


def layers_of(chosen: Chosen) -> frozenset[int]:
    """The layers with a chosen unit."""
    return frozenset(entry[0] if isinstance(entry, tuple) else entry for entry in chosen)


def selected(here: Pass, positions: Positions, what: str) -> Bool[Tensor, "row pos"] | None:
    """True at the positions of this pass that are changed, generated ones included; None where all are.

    While a CoT is being decoded its row has no decision position yet; then each token of the close tag counts as one,
    since any may be the last.
    """
    if checked_positions(positions) == "all":
        return None
    segments = segments_of(positions)
    if segments is not None:
        return torch.isin(here.segments(here.start, here.stop, what), torch.tensor(segments, device=here.device))
    batch, columns = here.known_batch(what), here.columns()[None]
    if positions not in ("decision", "from_decision"):
        return _of_chats(batch, positions, columns.cpu()).to(here.device)
    decision = batch.decision.to(here.device)[:, None]
    at = columns == decision if positions == "decision" else columns >= decision
    if here.start > 0:
        latest = here.segments(here.stop - 1, here.stop, what)
        at = at & ~torch.isin(latest, torch.tensor(STILL_THINKING, device=here.device))
    return at


def _of_chats(batch: Batch, positions: Positions, columns: Int[Tensor, "one pos"]) -> Bool[Tensor, "row pos"]:
    """Positions of the rendered chats among these columns, and every later column where positions reach to the end."""
    to_the_end = positions == "suffix" or (isinstance(positions, str) and positions.startswith("from "))
    at = torch.zeros(len(batch), columns.shape[1], dtype=torch.bool)
    for row, chat in enumerate(batch.chats):
        real = batch.mask[row].cpu().nonzero()[:, 0]
        places = real[torch.from_numpy(positions_in(chat, positions))]
        at[row] = torch.isin(columns[0], places)
        if to_the_end and len(places):
            at[row] |= columns[0] >= places[0]
    return at


class UnitTap(Tap):
    """Base of taps that change chosen units at some positions."""

    what = "an intervention"

    def __init__(self, chosen: Chosen, where: Positions) -> None:
        self.layers = layers_of(chosen)
        self.chosen, self.where = chosen, where
        self.at: Bool[Tensor, "row pos"] | None = None
        self.idle = False
        self.rows: list[int] | None = None
        self._prefilled: tuple[Chat, ...] = ()

    @property
    def n_given(self) -> int:
        """Number of rows that the intervention was given for; 1 stands for any."""
        return next((len(mask) for mask in self.chosen.values()), 1)

    def on_pass(self, here: Pass) -> None:
        """Find rows and positions; `idle` where this pass has none of the positions."""
        super().on_pass(here)
        self.rows = None if self.n_given == 1 else self._given_rows(here)
        self.chosen = {entry: mask.to(here.device) for entry, mask in self.chosen.items()}
        self.at = selected(here, self.where, self.what)
        self.idle = self.at is not None and not bool(self.at.any())

    def _given_rows(self, here: Pass) -> list[int] | None:
        """Which of the given rows this pass computes; None for all. Decoding drops rows that have ended."""
        if here.n_rows == self.n_given:
            self._prefilled = () if here.batch is None else here.batch.chats
            return None
        if here.start == 0 or not self._prefilled:
            raise RimLensError(f"{self.what} was given for {self.n_given} rows, but the batch has {here.n_rows}.")
        index = {id(chat): row for row, chat in enumerate(self._prefilled)}
        if len(index) < len(self._prefilled):
            raise RimLensError(
                f"{self.what} differs by row, but rows share a Chat: render one Chat a row, so that they can be told "
                "apart when some end before others."
            )
        return [index[id(chat)] for chat in here.known_batch(self.what).chats]

    def units(self, entry: Entry) -> Bool[Tensor, "#row unit"]:
        """True at the chosen units of each row of this pass."""
        mask = self.chosen[entry]
        return mask if self.rows is None else mask[self.rows]

    def mask(self, layer: int) -> Bool[Tensor, "#row #pos unit"]:
        """True where a unit is changed."""
        mask = self.units(layer)[:, None]
        return mask if self.at is None else mask & self.at[:, :, None]
