"""Which heads and neurons are silent while Inspect asks: from `-M` arguments to context managers of `intervene`.

-M ablate_heads=L12H3,L20H5                    heads by name
-M ablate_heads=runs/sweep -M n_heads=8        the first eight of a saved result
-M ablate_neurons=runs/neurons                 saved safety neurons, or a JSON file of [[layer, unit], ...]
-M positions=from_decision                     where; everywhere by default

The log keeps these arguments, and every answer's raw call what was ablated.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rim_lens.capture.neuron_sets import neuron_rows
from rim_lens.causal.ablation_test import AblationTest
from rim_lens.chat.positions import Positions, checked_positions
from rim_lens.errors import RimLensError
from rim_lens.inference_time.interchange import InterchangeSweep
from rim_lens.inference_time.patching import PatchingSweep
from rim_lens.inference_time.refusal_heads import RefusalHeads
from rim_lens.inference_time.sweep import AblationSweep
from rim_lens.intervene import ablate_heads, ablate_neurons
from rim_lens.model.lens_model import LensModel
from rim_lens.patterns.held_neurons import stored_neurons
from rim_lens.results import load_result
from rim_lens.units import Head, heads_from


@dataclass(frozen=True)
class Intervention:
    """Heads and neurons that are zeroed at `positions` of every pass, generation included; none: the model as it is."""

    heads: tuple[Head, ...] = ()
    neurons: tuple[tuple[int, ...], ...] = ()
    positions: Positions = "all"

    @contextmanager
    def on(self, model: LensModel) -> Iterator[None]:
        """The model without them for the time of a block. Raises RimLensError for a unit that it does not have."""
        with ExitStack() as stack:
            if self.heads:
                stack.enter_context(ablate_heads(model, self.heads, positions=self.positions))
            if self.neurons:
                stack.enter_context(ablate_neurons(model, self.neurons, positions=self.positions))  # type: ignore[arg-type]
            yield

    def in_words(self) -> dict[str, Any]:
        """Names of the heads, number of the neurons, for the log; empty where nothing is ablated."""
        words: dict[str, Any] = {}
        if self.heads:
            words["ablated_heads"] = [str(Head.parse(head)) for head in self.heads]
        if self.neurons:
            words["n_ablated_neurons"] = len(self.neurons)
        return words | ({"positions": self.positions} if words else {})


def read_intervention(
    heads: str | Sequence[Any] | None,
    n_heads: int | None,
    neurons: str | Path | Sequence[Sequence[int]] | None,
    positions: str,
) -> Intervention:
    """The intervention that model arguments name.

    Args:
        heads: names ("L12H3,L20H5", or a list), (layer, head) pairs, or the folder of a saved sweep, test or contrast.
        n_heads: how many of a saved result's heads, first ones first; all of a head test's by default.
        neurons: a file or folder as `patterns.held_neurons.stored_neurons` reads it, or rows.
        positions: a name as in `rim_lens.chat.positions`.

    Raises:
        RimLensError: no such file, no heads or neurons in it, unknown positions, or a number where names are given.

    """
    checked_positions(positions)
    if n_heads is not None and not (isinstance(heads, str | Path) and not named_heads(heads)):
        raise RimLensError(
            "n_heads says how many heads of a saved result are ablated: give ablate_heads=FOLDER with it."
        )
    chosen = [] if neurons is None else stored_neurons(neurons) if isinstance(neurons, str | Path) else neurons
    rows = neuron_rows(chosen).tolist() if neurons is not None else []
    return Intervention(
        heads=() if heads is None else tuple(read_heads(heads, n_heads)),
        neurons=tuple(tuple(row) for row in rows),
        positions=positions,
    )


def read_heads(heads: str | Path | Sequence[Any], n: int | None = None) -> list[Head]:
    """Heads by name, as pairs, or the first `n` of a saved result."""
    if isinstance(heads, str | Path):
        return named_heads(heads) or saved_heads(Path(heads).expanduser(), n)
    if not heads:
        raise RimLensError("An empty list names no head: write L12H3 for head 3 of layer 12.")
    return heads_from(heads)


def named_heads(text: str | Path) -> list[Head]:
    """Heads of a list of names such as "L12H3,L20H5"; empty where the text is anything else."""
    try:
        return heads_from(str(text))
    except RimLensError:
        return []


def saved_heads(folder: Path, n: int | None) -> list[Head]:
    """Heads of a saved result, in its order."""
    if not folder.is_dir():
        raise RimLensError(
            f"{folder} is neither a list of heads (L12H3,L20H5) nor the folder of a saved result; check ablate_heads."
        )
    result = load_result(folder)
    if isinstance(result, AblationTest) and result.kind == "heads":
        heads, n = heads_from(result.units), n or len(result.units)
    elif isinstance(result, AblationSweep | PatchingSweep | InterchangeSweep):
        heads = result.ranked()
    elif isinstance(result, RefusalHeads):
        heads = result.candidates()
    else:
        raise RimLensError(f"{folder} holds a {type(result).__name__}, which names no heads to ablate.")
    if n is None or not 1 <= n <= len(heads):
        asked = "no n_heads" if n is None else f"n_heads={n}"
        raise RimLensError(
            f"{folder} ranks {len(heads)} heads and {asked} was given: give n_heads from 1 to {len(heads)}."
        )
    return heads[:n]
