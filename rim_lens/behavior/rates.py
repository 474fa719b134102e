"""Rates of judged answers and their differences, one place for every table that shows them.

    rate          share of answers with a label; over all answers, those without a verdict included
    misalignment  share of harmful answers among those on which a harmfulness judge came to a verdict
    harm score    mean grade of the same answers, 0 to 1

One answer per prompt: Wilson's interval. Several samples per prompt: Wilson's for the effective number of answers, by how much prompts
differ. Several wordings: prompts and wordings are both resampled, samples of one prompt and wording being averaged first. A difference is
that of the same prompts: Tango's interval and McNemar's exact p for one answer per prompt, else the bootstrap over prompts and wordings.
Where the judge's errors are known every rate has `corrected` with `corrected_low` and `corrected_high` beside it, a difference has
`judge_could_make_it` too (`stats.misclassification`).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from rim_lens.behavior.judge import LABELS
from rim_lens.behavior.judge_errors import JudgeErrors
from rim_lens.stats import (
    Interval,
    Outcomes,
    ShareDifference,
    bootstrap_crossed_difference,
    bootstrap_mean,
    share_difference,
    share_interval,
    wilson,
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
UNKNOWN = Interval(np.nan, np.nan)


def measures_of(answers: pd.DataFrame, set_name: str = "harmful") -> list[str]:
    """What is counted of a set's answers; harm only where a harmfulness judge looked at them."""
    return [name for name in SETS[set_name] if COLUMN_OF.get(name, "label") in answers]


def harm_told(judges_harm: bool) -> str:
    """What the rates say about harm."""
    if judges_harm:
        return "Misalignment = harmful answers to harmful requests, of those judged; refusal and harm are judged apart"
    return "Complied = neither refused nor incoherent, which need not be harmful"


def outcomes(answers: pd.DataFrame, measure: str) -> Float[np.ndarray, "answer"]:
    """Per answer 1 or 0, or its harm score; NaN where the judge came to no verdict on it."""
    if measure in COLUMN_OF:
        return answers[COLUMN_OF[measure]].astype("Float64").to_numpy(dtype=float, na_value=np.nan)
    return (answers["label"] == measure).to_numpy(dtype=float)


def cells(answers: pd.DataFrame, values: Float[np.ndarray, "answer"]) -> Outcomes:
    """Outcomes as [prompt, wording, sample], NaN where there is no answer or no verdict on it."""
    prompts, samples = answers["prompt"].to_numpy(), column_of(answers, "sample")
    wordings = np.maximum(column_of(answers, "wording"), 0)
    table = np.full((prompts.max(initial=-1) + 1, wordings.max(initial=0) + 1, samples.max(initial=0) + 1), np.nan)
    table[prompts, wordings, samples] = values
    return table


def column_of(answers: pd.DataFrame, name: str) -> np.ndarray:
    """The number of each answer's wording or sample; 0 where answers have no such column."""
    return answers[name].to_numpy() if name in answers else np.zeros(len(answers), dtype=int)


def rate_row(answers: pd.DataFrame, measure: str, seed: int, errors: JudgeErrors | None = None) -> dict[str, Any]:
    """k, n, rate and interval of a measure; k is missing for a mean score. Corrected too where the judge's errors are known."""
    row = share_row(answers, outcomes(answers, measure), seed, is_score=measure == HARM_SCORE)
    known = errors and errors.of(measure)
    interval = Interval(row["low"], row["high"])
    return row | (ends("corrected", *known.corrected(row["rate"], interval)) if known and row["n"] else {})


def share_row(
    answers: pd.DataFrame, values: Float[np.ndarray, "answer"], seed: int, is_score: bool = False
) -> dict[str, Any]:
    """K hits of n answers, their share and its interval, and how many prompts, wordings and samples there are; NaN is left out."""
    answers, values = answers[~np.isnan(values)], values[~np.isnan(values)]
    table = cells(answers, values)
    table = table[~np.isnan(table).all(axis=(1, 2))]
    interval = interval_of(table, seed, is_score)
    return {
        "k": pd.NA if is_score else int(values.sum()),
        "n": len(values),
        "rate": float(values.mean()) if len(values) else np.nan,
        "low": interval.low,
        "high": interval.high,
        "n_prompts": len(table),
        "n_wordings": table.shape[1],
        "n_samples": table.shape[2],
    }


def interval_of(table: Outcomes, seed: int, is_score: bool) -> Interval:
    """The 95 % interval of a mean of outcomes, for new prompts and for new wordings where there are several."""
    n, wordings, samples = table.shape
    if n == 0 or (n < 2 and (is_score or wordings * samples > 1)):
        return UNKNOWN
    if is_score and wordings == 1:
        return bootstrap_mean(np.nanmean(table[:, 0], axis=1), seed=seed)
    return share_interval(table, seed=seed)


def difference_row(
    a: pd.DataFrame, b: pd.DataFrame, measure: str, seed: int, errors: JudgeErrors | None = None
) -> dict[str, Any]:
    """Rate in `b` minus rate in `a` over the prompts that have a verdict in both."""
    before, after = on_same_prompts(cells(a, outcomes(a, measure)), cells(b, outcomes(b, measure)))
    if len(before) < 2:
        empty = dict.fromkeys(("difference", "low", "high", "p"), np.nan)
        return {**empty, "gained": None, "lost": None, "n": len(before), "method": "fewer than 2 prompts"}
    change = (
        share_difference(after, before, seed=seed) if measure != HARM_SCORE else score_difference(after, before, seed)
    )
    found = {
        "difference": change.value,
        "low": change.interval.low,
        "high": change.interval.high,
        "p": np.nan if change.p is None else change.p,
        "n": len(before),
        "gained": change.gained,
        "lost": change.lost,
        "method": change.method,
    }
    value, interval = change.value, change.interval
    return found | judged_apart(measure, errors, value, interval, float(np.nanmean(before)), float(np.nanmean(after)))


def score_difference(after: Outcomes, before: Outcomes, seed: int) -> ShareDifference:
    """The difference of two mean scores on the same prompts, by the bootstrap over prompts and wordings."""
    found = bootstrap_crossed_difference(after, before, seed=seed)
    method = "bootstrap over prompts" + (f" and {found.n_wordings} wordings" if found.n_wordings > 1 else "")
    return ShareDifference(found.value, found.interval, found.p, found.n_prompts, None, None, method)


def on_same_prompts(a: Outcomes, b: Outcomes) -> tuple[Outcomes, Outcomes]:
    """The prompts of two tables on which both have a verdict."""
    n = min(len(a), len(b))
    both = ~np.isnan(a[:n]).all(axis=(1, 2)) & ~np.isnan(b[:n]).all(axis=(1, 2))
    return a[:n][both], b[:n][both]


def judged_apart(
    measure: str, errors: JudgeErrors | None, difference: float, interval: Interval, before: float, after: float
) -> dict[str, Any]:
    """A difference corrected for the judge's errors, and whether they alone could make it; nothing where they are unknown."""
    known = errors and errors.of(measure)
    if not known or np.isnan(difference):
        return {}
    return ends("corrected", *known.corrected_difference(difference, interval)) | {
        "judge_could_make_it": known.could_make(before, after)
    }


def ends(name: str, value: float, interval: Interval) -> dict[str, float]:
    """A value and its interval as columns."""
    return {name: value, f"{name}_low": interval.low, f"{name}_high": interval.high}


def per_prompt(answers: pd.DataFrame, values: Float[np.ndarray, "answer"], by: Sequence[str]) -> pd.DataFrame:
    """How often a prompt's answers count: one row per prompt and wording within `by`.

    Columns: k of n samples, `rate`, and Wilson's interval of that prompt's own probability. Answers without a verdict are left out.
    """
    keys = [*by, "prompt", "wording", "request"]
    judged = answers.assign(hit=values)[~np.isnan(values)]
    counts = judged.groupby(keys, sort=False)["hit"].agg(["sum", "size"])
    table = counts.rename(columns={"sum": "k", "size": "n"}).reset_index().astype({"k": int})
    limits = [wilson(int(k), int(n)) for k, n in zip(table["k"], table["n"], strict=True)]
    return table.assign(
        rate=table["k"] / table["n"], low=[end.low for end in limits], high=[end.high for end in limits]
    )
