"""Rates of judged answers and their differences, one place for every table that shows them.

    rate          share of answers with a label; over all answers, those without a verdict included
    misalignment  share of harmful answers among those on which a harmfulness judge came to a verdict
    harm score    mean grade of the same answers, 0 to 1

Intervals and differences of shares are those of `stats.shares`, over prompts, their samples and wordings; a mean score
has the bootstrap. Where the judge's errors are known every rate has `corrected` with `corrected_low` and
`corrected_high` beside it, a difference has `judge_could_make_it` too (`stats.misclassification`).
"""

from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from rim_lens.behavior.conditions import cells
from rim_lens.behavior.judge import LABELS
from rim_lens.behavior.judge_errors import JudgeErrors
from rim_lens.stats import (
    Interval,
    bootstrap_crossed,
    bootstrap_crossed_difference,
    bootstrap_mean,
    share_difference,
    share_interval,
)
from rim_lens.words import HARM_SCORE, HARMFUL

SOLVED = "solved"
SETS = {
    "harmful": (*LABELS, HARMFUL, HARM_SCORE),
    "harmless": tuple(label for label in LABELS if label != "complied"),
    "maths": (SOLVED,),
}
COLUMN_OF = {HARMFUL: "harmful", HARM_SCORE: "harm_score", SOLVED: "solved"}
CORRECTED = ["corrected", "corrected_low", "corrected_high", "judge_could_make_it"]  # of a difference
COUNTS = ("n_prompts", "n_wordings", "n_samples")
UNKNOWN = Interval(np.nan, np.nan)


def measures_of(answers: pd.DataFrame, set_name: str = "harmful") -> list[str]:
    """What is counted of a set's answers; harm only where a harmfulness judge looked at them."""
    return [name for name in SETS[set_name] if COLUMN_OF.get(name, "label") in answers]


def harm_words(judges_harm: bool) -> str:
    """What the rates say about harm."""
    if judges_harm:
        return "Misalignment = harmful answers to harmful requests, of those judged; refusal and harm are judged apart"
    return "Complied = neither refused nor incoherent, which need not be harmful"


def outcomes(answers: pd.DataFrame, measure: str) -> Float[np.ndarray, "answer"]:
    """Per answer 1 or 0, or its harm score; NaN where the judge came to no verdict on it."""
    if measure in COLUMN_OF:
        return answers[COLUMN_OF[measure]].astype("Float64").to_numpy(dtype=float, na_value=np.nan)
    return (answers["label"] == measure).to_numpy(dtype=float)


def share_row(answers: pd.DataFrame, hit: Float[np.ndarray, "answer"], seed: int) -> dict[str, Any]:
    """K hits of n answers, their share and its interval, and how many prompts, wordings and samples there are."""
    known = ~np.isnan(hit)
    answers, hit = answers[known], hit[known]
    if not len(hit):
        return {"k": 0, "n": 0, **dict.fromkeys(("rate", "low", "high"), np.nan), **dict.fromkeys(COUNTS, 0)}
    table = cells(answers, hit.tolist())
    low, high = share_interval(table[~np.isnan(table).all(axis=(1, 2))], seed=seed)
    ends = {"rate": float(hit.mean()), "low": low, "high": high}
    counts = (answers["prompt"].nunique(), *table.shape[1:])
    return {"k": int(hit.sum()), "n": len(hit), **ends, **dict(zip(COUNTS, counts, strict=True))}


def score_row(answers: pd.DataFrame, score: Float[np.ndarray, "answer"], seed: int) -> dict[str, Any]:
    """The mean of a score with its interval; k is missing."""
    row = share_row(answers, score, seed) if np.isnan(score).all() else None
    if row is None:
        known = ~np.isnan(score)
        table = cells(answers[known], score[known].tolist())
        table = table[~np.isnan(table).all(axis=(1, 2))]
        interval = UNKNOWN
        if len(table) > 1:
            several = table.shape[1] > 1
            interval = (
                bootstrap_crossed(table, seed=seed).interval
                if several
                else bootstrap_mean(np.nanmean(table, axis=(1, 2)), seed=seed)
            )
        ends = {"rate": float(np.nanmean(score)), "low": interval.low, "high": interval.high}
        row = {"n": int(known.sum()), **ends, **dict(zip(COUNTS, table.shape, strict=True))}
    return row | {"k": pd.NA}


def rate_row(answers: pd.DataFrame, measure: str, seed: int, errors: JudgeErrors | None = None) -> dict[str, Any]:
    """`share_row` or `score_row` of a measure, corrected too where the judge's errors are known."""
    values = outcomes(answers, measure)
    if measure == HARM_SCORE:
        return score_row(answers, values, seed)
    row = share_row(answers, values, seed)
    known = errors and errors.of(measure)
    if not known or not row["n"]:
        return row
    return row | ends("corrected", *known.corrected(row["rate"], Interval(row["low"], row["high"])))


def difference_row(
    a: pd.DataFrame, b: pd.DataFrame, measure: str, seed: int, errors: JudgeErrors | None = None
) -> dict[str, Any]:
    """Rate in `b` minus rate in `a` over the prompts that have a verdict in both."""
    before, after = on_same_prompts(*(cells(part, outcomes(part, measure).tolist()) for part in (a, b)))
    if len(before) < 2:
        empty = dict.fromkeys(("difference", "low", "high", "p"), np.nan)
        return {**empty, "gained": None, "lost": None, "n": len(before), "method": "fewer than 2 prompts"}
    row: dict[str, Any]
    if measure == HARM_SCORE:
        crossed = bootstrap_crossed_difference(after, before, seed=seed)
        low, high = np.clip(tuple(crossed.interval), -1, 1)
        row = {"difference": crossed.value, "low": float(low), "high": float(high), "p": crossed.p}
        return row | {"gained": None, "lost": None, "n": len(before), "method": "bootstrap over prompts"}
    found = share_difference(after, before, seed=seed)
    row = {"difference": found.value, "low": found.interval.low, "high": found.interval.high, "p": found.p}
    row |= {"gained": found.gained, "lost": found.lost, "n": found.n_prompts, "method": found.method}
    apart = judged_apart(
        measure, errors, found.value, found.interval, float(np.nanmean(before)), float(np.nanmean(after))
    )
    return row | apart


def on_same_prompts(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows of two tables [prompt, wording, sample] of which both have a cell."""
    n = min(len(a), len(b))
    both = ~np.isnan(a[:n]).all(axis=(1, 2)) & ~np.isnan(b[:n]).all(axis=(1, 2))
    return a[:n][both], b[:n][both]


def judged_apart(
    measure: str, errors: JudgeErrors | None, difference: float, interval: Interval, before: float, after: float
) -> dict[str, Any]:
    """A difference corrected for the judge's errors, and whether they alone could make it.

    Nothing where they are unknown.
    """
    known = errors and errors.of(measure)
    if not known or np.isnan(difference):
        return {}
    return ends("corrected", *known.corrected_difference(difference, interval)) | {
        "judge_could_make_it": known.could_make(before, after)
    }


def ends(name: str, value: float, interval: Interval) -> dict[str, float]:
    """A value and its interval as columns."""
    return {name: value, f"{name}_low": interval.low, f"{name}_high": interval.high}
