"""A change of heads' outputs or neurons that an engine applies while it writes: x ← factor · x + shift, unit by unit.

Zeroing is factor 0, scaling another factor, a mean or another prompt's values factor 0 with a shift. In that form the
requests of one batch can each have a change of their own for the price of one multiplication.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

Site = Literal["heads", "neurons"]


@dataclass(frozen=True, eq=False)
class Edit:
    """By layer, the factor of every unit, and what is added to it, where anything is."""

    site: Site
    factor: Mapping[int, Float[Tensor, " unit"]]
    shift: Mapping[int, Float[Tensor, "unit width"]]  # width: d_head, or 1 for neurons
