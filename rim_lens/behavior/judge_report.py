"""judge_report: how often a judge is right on labelled answers, by label, model and source.

1. The judge labels every answer as it would label a model's own.
2. Each label against the rest: sensitivity and specificity with Wilson's interval; Cohen's κ with a bootstrap over
   requests. *Partial* answers count for the label "partial" alone, since they may be called either; the confusion table
   has them all.
3. The counts, by model, are what `measure_rim(..., judge_errors=report)` and the like correct their rates with.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import numpy as np
import pandas as pd

from rim_lens.behavior.judge import LABELS, Judge, filled_by
from rim_lens.behavior.judge_errors import JudgeErrors
from rim_lens.errors import RimLensError
from rim_lens.results import Manifest, Result
from rim_lens.stats import wilson
from rim_lens.stats.kappa import kappa, kappa_interval

TRUTHS = tuple(label for label in LABELS if label != "unjudged")
HARMFUL, HARMLESS = "harmful", "not harmful"
Rows: TypeAlias = pd.DataFrame | str | Path | Sequence[Mapping[str, Any]]


@dataclass(frozen=True, eq=False)
class JudgeReport(Result):
    """How a judge errs.

    `table`: one row per label in all answers, in those of each model, and of each source: `hits` of `positives`
    (sensitivity), `rejections` of `negatives` (specificity), `kappa`, each with its 95 % interval, NaN where there was
    nothing to count. `confusion`: answers by given label (rows) and judged label (columns), for the same groups.
    `answers`: one row per answer, without its text.
    """

    figure: ClassVar = "judge:judge_errors"

    table: pd.DataFrame
    confusion: pd.DataFrame
    answers: pd.DataFrame
    errors: JudgeErrors

    def caption(self) -> str:
        """The judge and what it was held against."""
        return (
            f"{self.errors.judge} against {self.errors.answers}; 95 % intervals: Wilson's, κ by bootstrap over requests"
        )


def judge_report(judge: Judge, labelled: Rows, *, seed: int = 0) -> JudgeReport:
    """Hold a judge against labelled answers.

    Args:
        judge: any judge.
        labelled: a DataFrame, a JSON Lines file, or rows, with `request`, `response` and `label` (refused, partial,
            complied, incoherent); where known also `model`, `source`, `cot`, `truncated`, and `harmful` (true or false)
            for a harmfulness judge.
        seed: of the bootstraps.

    Raises:
        RimLensError: a column is missing, a label unknown, or no answer given.

    """
    answers = labelled_answers(labelled)
    cots = list(answers["cot"]) if "cot" in answers else None
    cut = list(answers["truncated"]) if "truncated" in answers else None
    judged = judge(list(answers["request"]), list(answers["response"]), cots, cut)
    kept = [name for name in ("request", "model", "source", "label", "harmful") if name in answers]
    rows = answers[kept].assign(judged=[one.label for one in judged])
    looks_at_harm = "harmful" in filled_by(judge) and "harmful" in answers
    if looks_at_harm:
        verdicts = [one.harmful for one in judged]
        rows["judged_harmful"] = pd.array(verdicts, dtype="boolean")
    found = [
        (by, group, label, *pairs)
        for by, group, part in groups_of(rows)
        for label, *pairs in against_rest(part, looks_at_harm)
    ]
    return JudgeReport(
        table=pd.DataFrame([row_of(*one, seed=seed) for one in found]),
        confusion=pd.concat([confusion_of(*one) for one in groups_of(rows)], ignore_index=True),
        answers=rows,
        errors=JudgeErrors(judge.name, answers_in_words(rows), counts_by_model(rows, looks_at_harm)),
        manifest=Manifest.collect(seed=seed, judge=judge.name),
    )


def labelled_answers(given: Rows) -> pd.DataFrame:
    """The answers as a table, with what `judge_report` needs of it checked."""
    if isinstance(given, str | Path):
        try:
            lines = Path(given).read_text(encoding="utf-8-sig").splitlines()
            given = [json.loads(line) for line in lines if line.strip()]
        except (OSError, ValueError) as error:
            raise RimLensError(f"{given} could not be read as JSON Lines: {error}.") from error
    answers = pd.DataFrame(given).reset_index(drop=True)
    missing = [name for name in ("request", "response", "label") if name not in answers]
    if missing or answers.empty:
        raise RimLensError(
            f"Labelled answers need request, response and label; missing: {', '.join(missing) or 'all rows'}."
        )
    unknown = sorted(set(answers["label"].astype(str)) - set(TRUTHS))
    if unknown:
        raise RimLensError(f"The label {unknown[0]!r} is unknown; an answer is one of {', '.join(TRUTHS)}.")
    for name, empty in (
        ("response", ""),
        ("cot", ""),
        ("truncated", False),
        ("model", "unnamed"),
        ("source", "unnamed"),
    ):
        if name in answers:
            answers[name] = answers[name].astype(object).where(answers[name].notna(), empty)
    return answers


def groups_of(rows: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """All answers, then those of each model and each source."""
    yield "all", "all", rows
    for by in ("model", "source"):
        if by in rows:
            for name, part in rows.groupby(by, sort=True):
                yield by, str(name), part


def against_rest(rows: pd.DataFrame, looks_at_harm: bool) -> Iterator[tuple[str, pd.Series, pd.Series, pd.Series]]:
    """Each label: whether answers have it, whether they were called so, and their requests."""
    for label in TRUTHS:
        part = rows if label == "partial" else rows[rows["label"] != "partial"]
        yield label, part["label"] == label, part["judged"] == label, part["request"]
    if looks_at_harm:
        part = rows[rows["harmful"].notna() & rows["judged_harmful"].notna()]
        yield HARMFUL, part["harmful"].astype(bool), part["judged_harmful"].astype(bool), part["request"]


def four_counts(truth: pd.Series, judged: pd.Series) -> tuple[int, int, int, int]:
    """Hits, positives, correct rejections, negatives."""
    return int((truth & judged).sum()), int(truth.sum()), int((~truth & ~judged).sum()), int((~truth).sum())


def row_of(
    by: str, group: str, label: str, truth: pd.Series, judged: pd.Series, requests: pd.Series, *, seed: int
) -> dict[str, Any]:
    """Sensitivity, specificity and kappa of a label."""
    hits, positives, rejections, negatives = four_counts(truth, judged)
    codes, _ = pd.factorize(requests)
    each = np.zeros((codes.max(initial=-1) + 1, 2, 2))
    np.add.at(each, (codes, truth.to_numpy(dtype=int), judged.to_numpy(dtype=int)), 1)
    agreement = float(kappa(each.sum(axis=0)))
    low, high = kappa_interval(each, seed=seed)
    row: dict[str, Any] = {"by": by, "group": group, "label": label, "n": len(truth)}
    for name, k, n, counted in (
        ("sensitivity", hits, positives, ("hits", "positives")),
        ("specificity", rejections, negatives, ("rejections", "negatives")),
    ):
        ends = wilson(k, n)
        row |= dict(zip(counted, (k, n), strict=True)) | {name: k / n if n else np.nan}
        row |= {f"{name}_low": ends.low, f"{name}_high": ends.high}
    return row | {"kappa": agreement, "kappa_low": low, "kappa_high": high}


def confusion_of(by: str, group: str, rows: pd.DataFrame) -> pd.DataFrame:
    """Given labels by judged labels, one row per given label that occurs."""
    table = pd.crosstab(rows["label"], rows["judged"]).reindex(index=TRUTHS, columns=LABELS, fill_value=0)
    table = table[table.sum(axis=1) > 0].rename_axis(index="label", columns=None).reset_index()
    table.insert(0, "group", group)
    table.insert(0, "by", by)
    return table


def counts_by_model(rows: pd.DataFrame, looks_at_harm: bool) -> dict[str, dict[str, tuple[int, int, int, int]]]:
    """The counts of each label by model; one model where none is named."""
    found: dict[str, dict[str, tuple[int, int, int, int]]] = {}
    named = rows if "model" in rows else rows.assign(model="all")
    for model, part in named.groupby("model", sort=True):
        for label, truth, judged, _ in against_rest(part, looks_at_harm):
            four = four_counts(truth, judged)
            if four[1] or four[3]:
                found.setdefault(label, {})[str(model)] = four
    return found


def answers_in_words(rows: pd.DataFrame) -> str:
    """How many labelled answers of how many models."""
    models = f" of {rows['model'].nunique()} models" if "model" in rows and rows["model"].nunique() > 1 else ""
    return f"{len(rows)} labelled answers{models}"
