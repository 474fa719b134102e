"""verdicts: what an audit says about each claim. Supported, excluded, or undecided with the n that would decide it.

    supported   the lower bound is above 0, and an effect as large as the margin is not ruled out
    excluded    the upper bound is below the margin: an effect as large as that is ruled out
    undecided   neither; `n_needed` is the n at which the interval is narrower than the margin, which always decides

The margin (smallest effect of interest) is fixed in the audit's plan before any answer is read. Both bounds are
one-sided at 2.5 % over all measured claims together, each by Holm's steps: the lower bounds against 0, the upper ones
against the margins. Among claims without an effect at most 2.5 % of audits call any supported; among claims with an
effect of the margin or more at most 2.5 % call any excluded, as far as each bound keeps its level (simulated in
tests/test_verdicts.py). A single claim has its ordinary
95 % interval. Source: Holm 1979; equivalence bounds as in Schuirmann 1987.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from rim_lens.claims.claims import CLAIMS, margins_of
from rim_lens.claims.evidence import Evidence
from rim_lens.claims.measured import evidence_of
from rim_lens.errors import RimLensError
from rim_lens.results import Manifest, Result, load_result

SUPPORTED, EXCLUDED, UNDECIDED = "supported", "excluded", "undecided"
TAIL = 0.025  # one-sided, over all claims
UNITS = {"points": "pts", "nats": "nats", "rho": "rho", "%": "%"}


@dataclass(frozen=True, eq=False)
class Verdicts(Result):
    """A verdict per claim.

    `table`: one row per claim: `claim` (its name), `words`, `verdict`, `effect` in the claimed direction with the
    bounds `low` and `high` that decided (corrected over claims), `unit`, `n` of what is `counted`, `margin`, two-sided
    `p` of "no effect" and `p_holm`, `p_margin` and `p_margin_holm` of "as large as the margin", `n_needed` (where more
    would decide it), `evidence` (the result that it is read from), `note` (why it is undecided, where the figures do
    not say it).
    """

    table: pd.DataFrame

    def __str__(self) -> str:
        return "\n".join([*map(line, self.table.to_dict("records")), self.caption()])

    def caption(self) -> str:
        """How intervals are to be read."""
        return (
            f"bounds at 95 % over {int(self.table['effect'].notna().sum())} measured claims (Holm); <n: n that decides"
        )

    def of(self, claim: str) -> pd.Series:
        """The row of one claim. Raises RimLensError for an unknown name."""
        rows = self.table[self.table["claim"] == claim]
        if rows.empty:
            raise RimLensError(f"There is no claim {claim!r}; the claims are {', '.join(self.table['claim'])}.")
        return rows.iloc[0]


def verdicts(audit: Any, margins: Mapping[str, float] | None = None) -> Verdicts:
    """The verdict on every claim.

    Args:
        audit: an `Audit`, an audit's folder, or its results by name.
        margins: smallest effects of interest by claim; by default those of the audit's plan, where it has one.

    Raises:
        RimLensError: a folder without an audit, an unknown claim or a margin that is not above 0.
    """
    results, planned = results_of(audit)
    wanted = margins_of(planned if margins is None else margins)
    evidence = evidence_of(results, wanted)
    manifest = Manifest.collect(None, margins=wanted, margins_sha256=digest_of(wanted))
    audited = next((result.manifest.model for result in results.values()), {})
    return Verdicts(table=verdict_table(evidence, wanted), manifest=replace(manifest, model=audited))


def digest_of(margins: Mapping[str, float]) -> str:
    """sha256 over the claims and their margins."""
    return hashlib.sha256(json.dumps(dict(margins), sort_keys=True).encode()).hexdigest()


def results_of(audit: Any) -> tuple[dict[str, Result], Mapping[str, float] | None]:
    """Results by name, and the margins of the plan where there is one."""
    if isinstance(audit, Mapping):
        return dict(audit), None
    folder = Path(getattr(audit, "folder", audit))
    plan = folder / "plan.json"
    planned = json.loads(plan.read_text()).get("margins") if plan.is_file() else None
    if hasattr(audit, "results"):
        return dict(audit.results), planned
    records = sorted(folder.glob("stages/*/stage.json"))
    if not records:
        raise RimLensError(f"{folder} holds no finished stage of an audit; pass the folder given as --out.")
    names = {name: path.parent / name for path in records for name in json.loads(path.read_text())["results"]}
    return {name: load_result(path) for name, path in names.items()}, planned


def verdict_table(evidence: Mapping[str, Evidence | str], margins: Mapping[str, float]) -> pd.DataFrame:
    """One row per claim, corrected over those that have evidence."""
    known = {name: one for name, one in evidence.items() if isinstance(one, Evidence)}
    none = np.array([one.p_of_none() for one in known.values()])
    large = np.array([one.p_of_margin(margins[name]) for name, one in known.items()])
    low_levels, high_levels, p_none, p_large = holm_level(none), holm_level(large), holm(none), holm(large)
    rows = {}
    for i, (name, one) in enumerate(known.items()):
        low, high = one.bounds(low_levels[i])[0], one.bounds(high_levels[i])[1]
        open_by_second = p_none[i] > TAIL and low > 0
        low = 0.0 if open_by_second else low
        supported = p_none[i] <= TAIL and low > 0 and not one.hindrance
        verdict = EXCLUDED if p_large[i] <= TAIL and high < margins[name] else SUPPORTED if supported else UNDECIDED
        note = one.hindrance or (one.second if open_by_second else "")
        finite = math.isfinite(low) and math.isfinite(high)
        rows[name] = {
            "verdict": verdict,
            "effect": one.effect,
            "low": low,
            "high": high,
            "n": one.n,
            "counted": one.counted,
            "p": two_sided(none[i]),
            "p_holm": two_sided(p_none[i]),
            "p_margin": two_sided(large[i]),
            "p_margin_holm": two_sided(p_large[i]),
            "n_needed": one.n_needed(margins[name], low, high, low_levels[i])
            if verdict == UNDECIDED and finite and low <= 0 and not open_by_second
            else None,
            "evidence": one.where,
            "note": note if verdict == UNDECIDED else "",
        }
    table = []
    for claim in CLAIMS:
        reason = evidence.get(claim.name, "not measured")
        empty = {"verdict": UNDECIDED, "n": None, "n_needed": None, "evidence": "", "note": reason}
        row = rows.get(claim.name, empty)
        table.append(
            {"claim": claim.name, "words": claim.words, "unit": claim.unit, "margin": margins[claim.name]} | row
        )
    return pd.DataFrame(table, columns=COLUMNS).astype({"n": "Int64", "n_needed": "Int64"})


COLUMNS = [
    *("claim", "words", "verdict", "effect", "low", "high", "unit", "n", "counted", "margin", "p", "p_holm"),
    *("p_margin", "p_margin_holm", "n_needed", "evidence", "note"),
]


def two_sided(p: float) -> float:
    """Twice a one-sided p, at most 1."""
    return min(1.0, 2 * float(p))


def holm(p: Float[np.ndarray, "claim"]) -> Float[np.ndarray, "claim"]:
    """P-values after Holm's steps."""
    order = np.argsort(p, kind="stable")
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * (len(p) - np.arange(len(p)))))
    return adjusted


def holm_level(p: Float[np.ndarray, "claim"], tail: float = TAIL) -> Float[np.ndarray, "claim"]:
    """The level of each claim's bound at which it leaves the null value out exactly where Holm rejects it.

    The i-th smallest p has tail / (m − i + 1) up to the first that fails, whose level all later ones have.
    """
    order = np.argsort(p, kind="stable")
    steps = tail / (len(p) - np.arange(len(p)))
    failing = np.flatnonzero(p[order] > steps)
    if len(failing):
        steps[failing[0] :] = steps[failing[0]]
    levels = np.empty(len(p))
    levels[order] = steps
    return levels


def line(row: Mapping[Any, Any]) -> str:
    """One claim in at most 80 columns."""
    start = f"{row['verdict']:<9} {row['words']:<36} "
    if pd.isna(row["effect"]):
        return (start + str(row["note"]))[:80]
    unit, digits = UNITS[row["unit"]], 0 if row["unit"] in ("points", "%") else 2
    figures = [f"{value:+.{digits}f}" for value in (row["effect"], row["low"], row["high"])]
    more = f"<{row['n_needed']}" if pd.notna(row["n_needed"]) else ""
    return f"{start}{figures[0]} {unit} [{figures[1]}, {figures[2]}] n={row['n']}{more}"
