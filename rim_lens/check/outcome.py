"""The outcome of one check: the worst difference between two computations of the same thing, and what is tolerated.

Differences of logits and neurons are in standard deviations of the reference, those of attention rows absolute, those
of tokens and leftovers counts.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from rim_lens.model.lens_model import LensModel

Verdict = Literal["holds", "fails", "refused"]


@dataclass(frozen=True)
class Outcome:
    """What one check found. `worst` and `tolerance` are NaN where the library refuses, `why` then says why."""

    check: str
    holds: Verdict
    worst: float
    tolerance: float
    n: int
    counted: str  # what n counts
    why: str = ""


@dataclass(frozen=True)
class Measured:
    """The worst difference over n compared things, for one of several reasons."""

    worst: float
    tolerance: float
    n: int
    counted: str
    why: str = ""

    def named(self, check: str) -> Outcome:
        """The outcome under the check's name; NaN never holds."""
        holds: Verdict = "holds" if self.worst <= self.tolerance else "fails"
        return Outcome(check, holds, self.worst, self.tolerance, self.n, self.counted, self.why)


class Room(NamedTuple):
    """Tolerances per dtype; in half precision another order of sums moves logits by tenths of a standard deviation."""

    single: float
    half: float


LOGITS, ROWS, MOMENTS = Room(1e-3, 0.2), Room(1e-4, 0.15), Room(1e-3, 0.5)


def tolerance(model: LensModel, room: Room) -> float:
    """The tolerance for the model's type of numbers; the strict check of a model is the one in float32."""
    return room.single if model.dtype in (torch.float32, torch.float64) else room.half


def in_sd(one: Float[Tensor, "..."], reference: Float[Tensor, "..."]) -> float:
    """Largest difference in standard deviations of the reference; NaN where one side is NaN."""
    one, reference = one.detach().float().cpu(), reference.detach().float().cpu()
    if one.shape != reference.shape:
        return float("nan")
    return float((one - reference).abs().max() / reference.std().clamp(min=1e-12))


def worst_of(differences: list[float]) -> float:
    """The largest difference, NaN if one is NaN."""
    return float(torch.tensor(differences, dtype=torch.float64).max()) if differences else float("nan")
