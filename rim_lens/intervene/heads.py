"""Ablating, scaling and patching heads, for the time of a block.

    with ablate_heads(model, [(3, 1), (5, 0)]):
        model.decision_logits(batch)        # and generation inside the block

z is a head's output, the input of the output projection. zero: z ← 0; mean: z ← its mean over a reference set;
resample: z ← another prompt's; scale: z ← factor · z; patch: z ← what a recorded run had at the same offset from its
decision position.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from rim_lens.chat.positions import Positions
from rim_lens.errors import RimLensError
from rim_lens.intervene.recording import HeadRecording
from rim_lens.intervene.selection import Chosen, Heads, UnitTap, chosen_heads
from rim_lens.intervene.unit_edit import UnitEdit
from rim_lens.model.lens_model import LensModel
from rim_lens.model.taps import Backend, Pass

Method = Literal["zero", "mean", "resample"]


def ablate_heads(
    model: LensModel,
    heads: Heads,
    method: Method = "zero",
    *,
    reference: HeadRecording | Float[Tensor, "layer head d_head"] | None = None,
    positions: Positions = "all",
    seed: int = 0,
    backend: Backend = "auto",
) -> AbstractContextManager[LensModel]:
    """Take heads out of every pass inside the block.

    Args:
        model: the model; it is restored when the block is left.
        heads: names ("L12H3") or (layer, head) pairs, or one such list per row of the batch.
        method: "zero"; "mean", the mean of `reference`; "resample", another prompt's output in `reference` (chosen by
            `seed` and the request, so that batching does not matter).
        reference: a HeadRecording, of which the decision position is used, averaged over its prompts for "mean"; or,
            for "mean", the means themselves (`capture.activations.mean_head_outputs` gives those over all positions).
        positions: "all", "decision", "from_decision" (that and later ones), or a phase: "prompt", "cot", "answer".
        seed: for "resample".
        backend: how passes are changed; "auto" takes the fast way where there is one.

    Raises:
        RimLensError: an unknown head, or a method without its reference.

    """
    chosen = chosen_heads(model, heads)
    if method == "zero":
        return model.tap(UnitEdit("zero ablation", "heads", chosen, positions), backend=backend)
    if method == "mean" and reference is not None:
        means = reference.at(0).mean(dim=0) if isinstance(reference, HeadRecording) else reference
        return model.tap(UnitEdit("mean ablation", "heads", chosen, positions, reference=means[None]), backend=backend)
    if method == "resample" and isinstance(reference, HeadRecording):
        values, requests = reference.at(0), reference.requests
        edit = UnitEdit("resample ablation", "heads", chosen, positions, reference=values, requests=requests, seed=seed)
        return model.tap(edit, backend=backend)
    if method in ("mean", "resample"):
        raise RimLensError(f"ablation by {method!r} needs reference=record_heads(model, other_chats).")
    raise RimLensError(f"unknown ablation {method!r}: use 'zero', 'mean' or 'resample'.")


def scale_heads(
    model: LensModel, heads: Heads, factor: float, *, positions: Positions = "all", backend: Backend = "auto"
) -> AbstractContextManager[LensModel]:
    """Multiply the outputs of heads by `factor` in every pass inside the block."""
    return model.tap(
        UnitEdit("scaling", "heads", chosen_heads(model, heads), positions, factor=factor), backend=backend
    )


def patch_heads(
    model: LensModel, heads: Heads, recording: HeadRecording, *, backend: Backend = "auto"
) -> AbstractContextManager[LensModel]:
    """Give heads, at the recorded offsets from the decision position, the outputs they had in the recorded run.

    Row i of the batch gets prompt i of `recording` (`recording[indices]` puts it in the batch's order), or all rows get
    the only one.

    Raises:
        RimLensError: an unknown head; in the pass: another number of rows, or an offset before a row's first token.

    """
    return model.tap(PatchedHeads(chosen_heads(model, heads), recording), backend=backend)


class PatchedHeads(UnitTap):
    """z ← the recorded run's, at the same offset from the decision position."""

    what = "patching of heads"

    def __init__(self, chosen: Chosen, recording: HeadRecording) -> None:
        super().__init__(chosen, "all")
        self.recording = recording

    @property
    def n_given(self) -> int:
        """Rows of the recording, or of the heads where they differ by row."""
        return max(len(self.recording), super().n_given)

    def on_pass(self, here: Pass) -> None:
        """Find each offset's column in every row."""
        if here.start == 0 and len(self.recording) not in (1, here.n_rows):
            raise RimLensError(
                f"{self.what} has a recording of {len(self.recording)} prompts for a batch of {here.n_rows} rows: "
                "take recording[indices] in the batch's order."
            )
        super().on_pass(here)
        batch = here.known_batch(self.what)
        self.columns = batch.decision.to(here.device)[:, None] + torch.tensor(
            self.recording.offsets, device=here.device
        )
        if bool((self.columns < batch.first.to(here.device)[:, None]).any()):
            raise RimLensError(f"{self.what} at offsets {self.recording.offsets} reaches before a row's first token.")

    def _places(self) -> Iterator[tuple[Tensor, Tensor, int]]:
        """(rows, positions of this pass, offset index) of what lies in this pass."""
        assert self.here is not None
        inside = (self.columns >= self.here.start) & (self.columns < self.here.stop)
        for k in range(self.columns.shape[1]):
            rows = inside[:, k].nonzero()[:, 0]
            if len(rows):
                yield rows, self.columns[rows, k] - self.here.start, k

    def on_head_output(self, layer: int, z: Float[Tensor, "row pos head d_head"]) -> Tensor | None:
        """See the class."""
        patched = None
        chosen = self._of_this_pass(self.chosen[layer], len(z))
        for rows, places, k in self._places():
            patched = z.clone() if patched is None else patched
            recorded = self._of_this_pass(self.recording.z[:, layer, k].to(z), len(z))[rows]
            patched[rows, places] = torch.where(chosen[rows][..., None], recorded, z[rows, places])
        return patched

    def _of_this_pass(self, values: Tensor, n_rows: int) -> Tensor:
        """One entry per row of this pass, from one for all or one per given row."""
        if len(values) == 1 or self.rows is None:
            return values.expand(n_rows, *values.shape[1:])
        return values[self.rows]
