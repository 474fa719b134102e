"""compare_runs: audits side by side, a row per run; runs that asked otherwise are marked as not comparable.

Rates and verdicts are those of each run's own results; nothing is computed anew.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from rim_lens.audit.plan import PLAN_FILE
from rim_lens.behavior.measure import RimTable
from rim_lens.errors import RimLensError
from rim_lens.results import Manifest, Result, load_result
from rim_lens.training_time.forgetting import Forgetting

ASKED = (
    *("harmful", "harmless", "maths", "n", "seed", "max_new_tokens", "maths_tokens", "cot_budget"),
    *("temperature", "top_p", "samples"),
)  # choices of a plan that two comparable runs share
RATES = (
    ("refused, off", "harmful", "off", "refused"),
    ("refused, on", "harmful", "on", "refused"),
    ("over-refused, off", "harmless", "off", "refused"),
    ("solved, off", "maths", "off", "solved"),
    ("solved, on", "maths", "on", "solved"),
)


@dataclass(frozen=True, eq=False)
class Comparison(Result):
    """Audits side by side.

    `table`: one row per run: `run`, `model`, `n`, `judge`, rates in percent with 95 % intervals as text, one column for
    the verdict on each claim, the correlation of RAS with forgetting where it was measured, and `not comparable`: in
    what the run differs from the first one, empty where it does not. `numbers`: one row per run and rate: `rate`,
    `low`, `high`, `k`, `n`. `folders`: the runs' folders.
    """

    table: pd.DataFrame
    numbers: pd.DataFrame
    folders: list[str]

    def caption(self) -> str:
        """How many runs, and how many of them can be compared with the first."""
        apart = int((self.table["not comparable"] != "").sum())
        return (
            f"{len(self.table)} runs; rates in % with 95 % intervals"
            + (f"; {apart} asked otherwise than the first and cannot be compared with it" if apart else "")
            + "."
        )

    def links(self, out: Path) -> list[str]:
        """Each run's page as seen from a folder."""
        return [os.path.relpath(Path(folder) / "report.html", out) for folder in self.folders]

    def to_markdown(self) -> str:
        """The table in Markdown."""
        rows = [list(map(str, self.table.columns)), *self.table.astype(str).values.tolist()]
        lines = [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows]
        return "\n".join([lines[0], f"|{' --- |' * len(rows[0])}", *lines[1:]]) + "\n"


def compare_runs(folders: Sequence[str | Path]) -> Comparison:
    """Put finished audits side by side.

    Args:
        folders: the audits' folders, as `rim-lens audit --out` made them.

    Raises:
        RimLensError: fewer than two, or one that holds no finished audit.
    """
    if len(folders) < 2:
        raise RimLensError("A comparison takes two finished audits or more; give their folders.")
    runs = [read_run(Path(folder)) for folder in folders]
    first = runs[0]
    table = pd.DataFrame([row_of(run) | {"not comparable": differing(run, first)} for run in runs]).fillna("–")
    numbers = pd.concat([run.rates.assign(run=run.name) for run in runs], ignore_index=True)
    table.insert(1, "not comparable", table.pop("not comparable"))  # where it is seen without scrolling
    manifest = Manifest.collect(runs=[run.name for run in runs])
    return Comparison(table, numbers, [str(folder) for folder in folders], manifest=manifest)


@dataclass(frozen=True)
class Run:
    """A finished audit as far as a comparison needs it."""

    name: str
    plan: dict[str, Any]
    document: dict[str, Any]
    behavior: RimTable
    forgetting: Forgetting | None

    @property
    def rates(self) -> pd.DataFrame:
        """The compared rates that the run has."""
        columns = ["set", "condition", "measure"]
        wanted = pd.DataFrame([one[1:] for one in RATES], columns=columns)
        return wanted.merge(self.behavior.table, on=columns)[[*columns, "rate", "low", "high", "k", "n"]]


def read_run(folder: Path) -> Run:
    """A finished audit's plan, findings and behaviour."""
    try:
        document = json.loads((folder / "results.json").read_text())
        plan = json.loads((folder / PLAN_FILE).read_text())
    except (OSError, ValueError) as error:
        raise RimLensError(
            f"{folder} holds no finished audit ({error}); run rim-lens audit to the end first."
        ) from error
    behavior = load_result(folder / "stages" / "behavior" / "behavior")
    if not isinstance(behavior, RimTable):
        raise RimLensError(f"{folder} holds no rates; audit the model again with this version.")
    place = folder / "stages" / "neurons" / "forgetting"
    forgetting = load_result(place) if place.is_dir() else None
    return Run(folder.name, plan, document, behavior, forgetting if isinstance(forgetting, Forgetting) else None)


def row_of(run: Run) -> dict[str, Any]:
    """One run's row."""
    row: dict[str, Any] = {
        "run": run.name,
        "model": run.behavior.manifest.model.get("name", run.plan["model"]),
        "n": run.plan["n"],
        "judge": run.behavior.judge,
    }
    for title, *where in RATES:
        rates = run.rates
        found = rates[(rates[["set", "condition", "measure"]] == where).all(axis=1)]
        if len(found):
            rate, low, high = (100 * found.iloc[0][["rate", "low", "high"]]).tolist()
            row[title] = f"{rate:.0f} [{low:.0f}, {high:.0f}]"
    row |= {one["words"]: one["verdict"] for one in run.document.get("verdicts", [])}
    if run.forgetting is not None:
        ras = run.forgetting.correlations.query("predictor == 'ras_safety'")
        if len(ras) and pd.notna(ras.iloc[0]["pearson"]):
            one = ras.iloc[0]
            row["r of RAS with forgetting"] = (
                f"{one['pearson']:+.2f} [{one['pearson_low']:+.2f}, {one['pearson_high']:+.2f}], n = {one['n']}"
            )
    return row


def differing(run: Run, first: Run) -> str:
    """In what a run asked otherwise than the first one; its prompts count by their content, not by their name."""
    apart = [name for name in ASKED if run.plan.get(name) != first.plan.get(name)]
    if run.behavior.judge != first.behavior.judge:
        apart.append("judge")
    contents = [{name: entry["sha256"] for name, entry in one.behavior.manifest.data.items()} for one in (run, first)]
    if contents[0] != contents[1] and not {"harmful", "harmless", "maths", "n", "seed"} & set(apart):
        apart.append("prompts")
    return ", ".join(apart)
