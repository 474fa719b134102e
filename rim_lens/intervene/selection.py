"""Which heads or neurons are changed, in which rows, at which positions.

Units are given once for all rows, `[(layer, head), ...]` or `["L12H3", ...]`, or per row of the batch, `[[...], ...]`;
one alone, "L12H3" or (12, 3), is a list of one.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from rim_lens.chat.chat import Chat
from rim_lens.chat.positions import Positions, checked_positions, positions_in, segments_of
from rim_lens.engine.edit import Edit, Site
from rim_lens.errors import RimLensError
from rim_lens.model.batch import Batch
from rim_lens.model.lens_model import LensModel
from rim_lens.model.taps import STILL_THINKING, Pass, Tap
from rim_lens.units import Head, Neuron, is_per_row, listed

# Names, pairs, Head or Neuron: once for all rows, or a list of them per row.
Heads = Sequence[Any]
Neurons = Sequence[Any]
Chosen = dict[int, Bool[Tensor, "#row unit"]]


def chosen_heads(model: LensModel, heads: Heads) -> Chosen:
    """Per layer with a chosen head, True at the chosen heads of each row.

    Raises:
        RimLensError: a head that the model does not have.

    """
    return _chosen(heads, model.n_layers, model.n_heads, Head)


def chosen_neurons(model: LensModel, neurons: Neurons) -> Chosen:
    """Per layer with a chosen neuron, True at the chosen neurons of each row.

    Raises:
        RimLensError: a neuron that the model does not have.

    """
    return _chosen(neurons, model.n_layers, model.d_mlp, Neuron)


def _chosen(units: Sequence[Any], n_layers: int, n_units: int, kind: type[Head] | type[Neuron]) -> Chosen:
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
            layer, index = _checked(unit, n_layers, n_units, kind)
            mask = chosen.setdefault(layer, torch.zeros(len(rows), n_units, dtype=torch.bool))
            mask[row, index] = True
    return chosen


def _checked(unit: Any, n_layers: int, n_units: int, kind: type[Head] | type[Neuron]) -> tuple[int, int]:
    one, name = kind.parse(unit), kind.__name__.lower()
    if isinstance(one, Neuron) and one.expert is not None:
        raise RimLensError(f"{one} is a neuron of an expert, but this is a dense model: give (layer, unit) pairs.")
    layer, index = one[0], one[1]
    if not (0 <= layer < n_layers and 0 <= index < n_units):
        raise RimLensError(f"there is no {name} {one}: the model has {n_layers} layers of {n_units} {name}s.")
    return layer, index


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
    site: Site | None = None  # where an engine can make the change while it writes; None: nowhere
    factor = 0.0  # of the chosen units' own values

    def __init__(self, chosen: Chosen, where: Positions) -> None:
        self.layers = frozenset(chosen)
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
        self.chosen = {layer: mask.to(here.device) for layer, mask in self.chosen.items()}
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

    def replacement(self, layer: int, chat: Chat) -> Tensor | None:
        """What is added to factor · value in a row with this chat, [unit] or [unit, d_head]; None for nothing."""
        return None

    def edit_key(self, row: int, chat: Chat) -> tuple[Any, ...]:
        """Equal for rows whose `as_edit` is equal."""
        masks = ((layer, mask[row if len(mask) > 1 else 0]) for layer, mask in self.chosen.items())
        return tuple((layer, mine.cpu().numpy().tobytes()) for layer, mine in masks)

    def as_edit(self, row: int, chat: Chat) -> Edit:
        """The change of one row, for an engine that writes many answers at once.

        Raises:
            RimLensError: it depends on more than the units' own values.
        """
        if self.site is None:
            raise RimLensError(
                f"{self.what} cannot be made while vLLM writes: load the model with load_model(name) for generation."
            )
        factor, shift = {}, {}
        for layer, mask in self.chosen.items():
            mine = mask[row if len(mask) > 1 else 0].cpu()
            if not bool(mine.any()):
                continue
            factor[layer] = torch.where(mine, self.factor, 1.0)
            added = self.replacement(layer, chat)
            if added is not None:
                shift[layer] = (added.cpu().float().view(len(mine), -1) * mine[:, None]).contiguous()
        return Edit(self.site, factor, shift)

    def units(self, layer: int) -> Bool[Tensor, "#row unit"]:
        """True at the chosen units of each row of this pass."""
        mask = self.chosen[layer]
        return mask if self.rows is None else mask[self.rows]

    def mask(self, layer: int) -> Bool[Tensor, "#row #pos unit"]:
        """True where a unit is changed."""
        mask = self.units(layer)[:, None]
        return mask if self.at is None else mask & self.at[:, :, None]
