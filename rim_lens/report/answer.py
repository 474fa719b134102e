"""The answer of an audit: what was found, what it would take to know more, each claim with the figure that shows it.

Everything is read from the table of `verdicts`; nothing is decided here.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from rim_lens.errors import RimLensError
from rim_lens.report.blocks import Drawing
from rim_lens.results import Result

SUPPORTED, EXCLUDED, UNDECIDED = "supported", "excluded", "undecided"
NONE = "–"  # in place of a figure that is not there
LONGEST = 3  # claims that a sentence names


@dataclass(frozen=True)
class ClaimView:
    """One claim on the page: its verdict, its figures as text, and the figure that shows it.

    `drawing` is None where nothing was measured, or where the figure stands at an earlier claim (`same_as`).
    """

    name: str
    words: str
    verdict: str
    effect: str
    n: str
    margin: str
    needed: str
    evidence: str
    note: str
    drawing: Drawing | None
    same_as: str = ""

    @property
    def measured(self) -> bool:
        """Whether there is an effect."""
        return self.effect != NONE


def claim_views(table: pd.DataFrame, results: Mapping[str, Result]) -> list[ClaimView]:
    """The claims in the table's order."""
    views, figures = list[ClaimView](), dict[str, str]()
    for row in table.to_dict("records"):
        evidence, measured = str(row["evidence"] or ""), pd.notna(row["effect"])
        drawing = None if evidence in figures else figure_of(results.get(evidence))
        views.append(
            ClaimView(
                name=row["claim"],
                words=row["words"],
                verdict=row["verdict"],
                effect=effect_words(row) if measured else NONE,
                n=f"{row['n']} {row['counted']}" if measured else "–",
                margin=f"{row['margin']:g} {row['unit']}",
                needed=f"fewer than {row['n_needed']}" if pd.notna(row["n_needed"]) else "–",
                evidence=evidence if evidence in results else "",
                note=str(row["note"] or ""),
                drawing=drawing,
                same_as=figures.get(evidence, ""),
            )
        )
        if drawing is not None:
            figures[evidence] = row["claim"]
    return views


def figure_of(result: Result | None) -> Drawing | None:
    """A result's main figure, if it has one."""
    try:
        return None if result is None else Drawing(result.plot())
    except RimLensError:
        return None


def effect_words(row: Mapping[str, object]) -> str:
    """+22 points [+9, +35], in the direction that is claimed."""
    digits = 0 if row["unit"] in ("points", "%") else 2
    effect, low, high = (f"{row[name]:+.{digits}f}".replace("-", "−") for name in ("effect", "low", "high"))
    return f"{effect} {row['unit']} [{low},\u00a0{high}]"


def found_sentence(table: pd.DataFrame, model: str, longest: int = LONGEST) -> str:
    """What was found on this model; at most `longest` claims of a kind by their words."""
    words = {verdict: table.loc[table["verdict"] == verdict, "words"].tolist() for verdict in (SUPPORTED, EXCLUDED)}
    parts = [f"{verdict}: {named(claims, longest)}" for verdict, claims in words.items() if claims] or [
        "no claim is decided"
    ]
    open_ones = int((table["verdict"] == UNDECIDED).sum())
    more = f"; {open_ones} of {len(table)} undecided" if open_ones and any(words.values()) else ""
    return f"On {model}, {'; '.join(parts)}{more}."


def named(claims: list[str], longest: int) -> str:
    """The first claims by their words, the rest counted."""
    rest = f" and {len(claims) - longest} more" if len(claims) > longest else ""
    return ", ".join(claims[:longest]) + rest


def more_sentence(table: pd.DataFrame) -> str:
    """What it would take to know more."""
    undecided = table[table["verdict"] == UNDECIDED]
    if undecided.empty:
        return (
            "Every claim is decided at this n; other prompts, a judge of harm or another seed would test the verdicts."
        )
    by_prompts = undecided[undecided["n_needed"].notna() & (undecided["counted"] == "prompts")]
    if by_prompts.empty:
        return (
            f"More prompts alone decide none of the {len(undecided)} undecided claims; their notes say what is missing."
        )
    n = int(by_prompts["n_needed"].max())
    decided = (
        f"{len(by_prompts)} of the {len(undecided)} undecided claims" if len(undecided) > 1 else "the undecided claim"
    )
    return f"To know more: --n {n} decides {decided}, at the smallest effects of interest that the plan fixes."
