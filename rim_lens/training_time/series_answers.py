"""How refusal changes over a series of checkpoints, on the same prompts, against the reference.

Per checkpoint: how many answers have each label, the refusal rate and its difference from the reference on the same
prompts (Benjamini-Hochberg q over the checkpoints), both corrected for the judge's errors where they are known
(`behavior.rates`); harmful answers and their mean harm score where a harmfulness judge looked; and the mean refusal
score with a bootstrap interval over prompts. All checkpoints are sampled with what the base model is sampled with.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from rim_lens.behavior.conditions import per_prompt
from rim_lens.behavior.judge import LABELS
from rim_lens.behavior.judge_errors import JudgeErrors, errors_words
from rim_lens.behavior.rates import COLUMN_OF, CORRECTED, difference_row, measures_of, rate_row
from rim_lens.results import Result
from rim_lens.stats import benjamini_hochberg, bootstrap_mean
from rim_lens.training_time.series import Checkpoint
from rim_lens.words import HARM_SCORE, HARMFUL


@dataclass(frozen=True, eq=False)
class SeriesBehavior(Result):
    """Refusal over a checkpoint series.

    `table`: one row per checkpoint; columns that begin with `difference` are the change of the refusal rate from
    `reference`. `answers`: every answer with its label and refusal score. `errors`: how the judge errs, where known.
    """

    figure: ClassVar = "series:refusal_over_series"

    table: pd.DataFrame
    answers: pd.DataFrame
    reference: str
    judge: str
    errors: JudgeErrors | None = None

    def caption(self) -> str:
        """What is compared with what, and how the judge errs."""
        n, samples = self.answers["prompt"].nunique(), self.answers["sample"].nunique()
        each = f" × {samples} samples" if samples > 1 else ""
        about = (
            f"n = {n} harmful requests{each} per checkpoint, thinking off; differences from {self.reference}; judge: "
            f"{self.judge}"
        )
        return ". ".join(part for part in (about, errors_words(self.errors)) if part) + "."

    def per_prompt(self, label: str = "refused") -> pd.DataFrame:
        """The probability of a label for each prompt, k of n samples with Wilson's interval.

        One row per checkpoint and prompt.
        """
        return per_prompt(self.answers, (self.answers["label"] == label).tolist(), ["checkpoint"])


def series_table(
    answers: pd.DataFrame,
    checkpoints: Sequence[Checkpoint],
    reference: str,
    seed: int,
    errors: JudgeErrors | None = None,
) -> pd.DataFrame:
    """One row per checkpoint: counts, rates, differences from the reference, mean refusal score."""
    by_name = {str(name): group for name, group in answers.groupby("checkpoint", sort=False)}
    before = by_name[reference]
    rows = [
        {
            "checkpoint": checkpoint.name,
            "arm": checkpoint.arm,
            "step": checkpoint.step,
            "seed": checkpoint.seed,
            **row_of(by_name[checkpoint.name], before, seed, errors),
        }
        for checkpoint in checkpoints
    ]
    table = pd.DataFrame(rows)
    others = table["checkpoint"] != reference
    table["q"] = np.nan
    if others.any():
        table.loc[others, "q"] = benjamini_hochberg(table.loc[others, "p"].to_numpy())
    return table


def row_of(answers: pd.DataFrame, reference: pd.DataFrame, seed: int, errors: JudgeErrors | None) -> dict[str, Any]:
    """Counts, refusal rate, difference from the reference, harm and mean refusal score of one checkpoint."""
    rate = rate_row(answers, "refused", seed, errors)
    change = difference_row(reference, answers, "refused", seed, errors)
    scores = answers.groupby("prompt")["refusal_score"].mean().to_numpy()
    score_interval = bootstrap_mean(scores, seed=seed)
    row: dict[str, Any] = {
        "n": len(answers),
        **{label: int((answers["label"] == label).sum()) for label in LABELS},
        **{name: rate[name] for name in ("rate", "low", "high", *CORRECTED[:3]) if name in rate},
        "difference": change["difference"],
        **{f"difference_{name}": change[name] for name in ("low", "high", *CORRECTED[:3]) if name in change},
        **{name: change[name] for name in ("gained", "lost", "p", "judge_could_make_it") if name in change},
    }
    for measure in (HARMFUL, HARM_SCORE):
        if measure in measures_of(answers):
            harm, name = rate_row(answers, measure, seed, errors), COLUMN_OF[measure]
            ends = {f"{name}_{end}": harm[end] for end in ("low", "high", "n")}
            row |= {name: harm["rate"], **ends}
    return row | {
        "score": float(scores.mean()),
        "score_low": score_interval.low,
        "score_high": score_interval.high,
    }
