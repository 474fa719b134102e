"""Decision logits of many changed runs.

Resumed at the changed layer where the model allows it, else by whole passes.
"""

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rim_lens.causal.head_runs import HeadRuns
from rim_lens.causal.resume import ResumablePass, TakeLogits, why_not_resumed
from rim_lens.errors import RimLensError
from rim_lens.model.batch import Batch
from rim_lens.model.decode import selected
from rim_lens.model.fitting import AtOnce, out_of_memory
from rim_lens.model.lens_model import LensModel
from rim_lens.model.taps import Tap

ROWS_AT_ONCE = 8  # of a whole pass
_TRIED: WeakKeyDictionary[Any, dict[tuple[bool, ...], str | None]] = (
    WeakKeyDictionary()
)  # model -> {(with a prefix, last column alone, template shared): why not}


def why_not(model: LensModel, batch: Batch, runs: HeadRuns, start: int, template: int = 0) -> str | None:
    """Why runs of a model cannot be resumed, or None where they can; the first time, some are computed both ways."""
    reason = why_not_resumed(model, start or template)
    if reason is None:
        last_alone = start == batch.tokens.shape[1] - 1
        tried, way = _TRIED.setdefault(model.hf, {}), (bool(start), last_alone, bool(template))
        if way not in tried:
            tried[way] = _differing(model, batch, runs.some(tried_runs(runs, last_alone)), start, template)
        reason = tried[way]
    return reason


def tried_runs(runs: HeadRuns, last_alone: bool) -> Int[Tensor, " run"]:
    """The run that changes the earliest layer; where runs of a prompt share a pass, two changes in every prompt."""
    earliest = int(runs.entry_layers().argmin())
    if not last_alone:
        return torch.tensor([earliest])
    two = torch.stack([runs.number[earliest], runs.number[earliest - 1]])
    return torch.isin(runs.number, two).nonzero()[:, 0]


def _differing(model: LensModel, batch: Batch, runs: HeadRuns, start: int, template: int) -> str | None:
    """Compare runs, resumed and in whole passes."""
    resumed, whole = dict[int, Tensor](), dict[int, Tensor]()

    def into(found: dict[int, Tensor]) -> TakeLogits:
        return lambda rows, logits: found.update(zip(rows.tolist(), logits, strict=True))

    try:
        ResumablePass(model, batch, start, template=template).give_logits(runs, into(resumed))
    except (RimLensError, TypeError, ValueError, RuntimeError, AttributeError, IndexError) as error:
        if out_of_memory(error):
            raise  # says nothing about the layers
        return f"its layers cannot be called one by one ({type(error).__name__}: {error})"
    whole_passes(model, batch, runs, into(whole))
    tolerance = 1e-3 if model.dtype in (torch.float32, torch.float64) else 5e-2
    off = max(float((resumed[run] - whole[run]).abs().max() / whole[run].std()) for run in whole)
    return None if off < tolerance else f"resumed logits differ from those of a whole pass (by {off:.2g} sd)"


class RunTap(Tap):
    """Some runs as the rows of one whole pass."""

    def __init__(self, runs: HeadRuns, rows: Int[Tensor, " row"]) -> None:
        self.runs, self.rows = runs, rows
        self.layers = frozenset(runs.changed[rows].any(0).nonzero()[:, 0].tolist())

    def on_head_output(self, layer: int, z: Float[Tensor, "row pos head d_head"]) -> Tensor:
        """See the class."""
        return self.runs.change(layer, self.rows, z)


def whole_passes(
    model: LensModel, batch: Batch, runs: HeadRuns, take: TakeLogits, at_once: AtOnce | None = None
) -> None:
    """Give decision logits of every run to `take`, by whole passes over some runs at a time."""

    def some_runs(some: Sequence[int]) -> None:
        rows = torch.tensor(some)
        with torch.no_grad(), model.tap(RunTap(runs, rows)):
            take(rows, model.decision_logits(selected(batch, runs.prompt[rows].tolist())))

    room = at_once or AtOnce(ROWS_AT_ONCE, "whole passes", "runs", inside=True)
    for _ in room.parts(range(len(runs.prompt)), some_runs, ROWS_AT_ONCE):
        pass
