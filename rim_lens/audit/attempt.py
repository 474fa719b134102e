"""Measurements that a model may not allow (it refuses everything, say).

The reason takes the result's place, in plain sight.
"""

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

from rim_lens.errors import RimLensError
from rim_lens.model.lens_model import LensModel
from rim_lens.results import Manifest, Result


@dataclass(frozen=True, eq=False)
class NotMeasured(Result):
    """Why a measurement of an audit could not be made."""

    what: str
    reason: str

    def to_dataframe(self) -> pd.DataFrame:
        """One row: what and why."""
        return pd.DataFrame([{"what": self.what, "not measured because": self.reason}])


def attempt(model: LensModel, what: str, measure: Callable[[], Result]) -> Result:
    """The measurement, or the reason why this model and these prompts do not allow it."""
    try:
        return measure()
    except RimLensError as error:
        return NotMeasured(what=what, reason=str(error), manifest=Manifest.collect(model))
