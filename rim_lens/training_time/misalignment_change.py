"""Change of misalignment after fine-tuning, by arm and dose (the paper's table 2, for one series).

    change = rate of complied answers at a checkpoint − at the reference, on the same harmful requests

Paired: Tango's interval, exact McNemar p, Benjamini-Hochberg q over the checkpoints. Incoherent answers count in n only, so this
is not the mirror image of the change in refusal.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from rim_lens.errors import RimLensError
from rim_lens.results import Result
from rim_lens.stats import benjamini_hochberg, paired_difference, wilson
from rim_lens.training_time.series_behavior import SeriesBehavior


@dataclass(frozen=True, eq=False)
class MisalignmentChange(Result):
    """What fine-tuning does to the misalignment rate.

    `table`: one row a checkpoint other than the reference: `arm`, `step`, complied answers `k` of `n`, `rate` and `before` (the
    reference's), `change` with its 95 % interval `low`, `high`, requests `gained` and `lost` to compliance, `p`, `q`.
    """

    table: pd.DataFrame
    reference: str
    reference_low: float
    reference_high: float
    judge: str

    def caption(self) -> str:
        """Reference, n, judge."""
        n = int(self.table["n"].iloc[0])
        return f"n = {n} harmful requests a checkpoint; change from {self.reference}; judge: {self.judge}."


def misalignment_change(series: SeriesBehavior) -> MisalignmentChange:
    """Change of misalignment at every checkpoint of a measured series.

    Raises:
        RimLensError: the series has no checkpoint but its reference.
    """
    complied = {
        str(name): (group.sort_values("prompt")["label"] == "complied").to_numpy()
        for name, group in series.answers.groupby("checkpoint", sort=False)
    }
    before = complied[series.reference]
    others = series.table[series.table["checkpoint"] != series.reference]
    if others.empty:
        raise RimLensError(f"The series holds only its reference {series.reference}; there is no change to measure.")
    rows = []
    for _, row in others.iterrows():
        after = complied[row["checkpoint"]]
        change = paired_difference(after, before)
        rows.append(
            {name: row[name] for name in ("checkpoint", "arm", "step")}
            | {"k": int(after.sum()), "n": len(after), "rate": float(after.mean()), "before": float(before.mean())}
            | {"change": change.value, "low": change.interval.low, "high": change.interval.high}
            | {"gained": change.only_a, "lost": change.only_b, "p": change.p}
        )
    table = pd.DataFrame(rows)
    table["q"] = benjamini_hochberg(table["p"].to_numpy(dtype=np.float64))
    ends = wilson(int(before.sum()), len(before))
    return MisalignmentChange(table, series.reference, ends.low, ends.high, series.judge, manifest=series.manifest)
