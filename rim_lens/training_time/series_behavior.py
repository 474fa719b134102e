"""series_behavior: how refusal changes over a series of checkpoints, on the same prompts, against the reference.

Per checkpoint: refused, complied and incoherent answers with n and Wilson's interval, the paired difference from the
reference (Tango's interval, exact McNemar p, Benjamini-Hochberg q over the checkpoints), and the mean refusal score with a
bootstrap interval over prompts.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from rim_lens.behavior.conditions import Condition, ask, judged_answers
from rim_lens.behavior.judge import LABELS, Judge, RefusalJudge
from rim_lens.behavior.refusal_score import RefusalTokens, refusal_tokens
from rim_lens.data.prompts import Prompts, as_prompt_set
from rim_lens.model.lens_model import LensModel
from rim_lens.progress import track
from rim_lens.results import Manifest, Result
from rim_lens.stats import benjamini_hochberg, bootstrap_mean, paired_difference, wilson
from rim_lens.training_time.checkpoints import Checkpoints


@dataclass(frozen=True, eq=False)
class SeriesBehavior(Result):
    """Refusal over a checkpoint series.

    `table`: one row a checkpoint. `answers`: every answer with its label and refusal score. `reference`: the checkpoint
    that the others are compared with.
    """

    figure: ClassVar = "series:refusal_over_series"

    table: pd.DataFrame
    answers: pd.DataFrame
    reference: str
    judge: str

    def caption(self) -> str:
        """What is compared with what."""
        n = int(self.table["n"].iloc[0])
        return f"n = {n} harmful requests per checkpoint, thinking off; differences from {self.reference}; judge: {self.judge}."


def series_behavior(
    model: LensModel,
    checkpoints: Checkpoints,
    harmful: Prompts,
    *,
    judge: Judge | None = None,
    tokens: RefusalTokens | None = None,
    max_new_tokens: int = 24,
    batch_size: int = 32,
    seed: int = 0,
) -> SeriesBehavior:
    """Ask every checkpoint the same harmful requests with thinking off.

    Args:
        model: the series' base model; it is at the checkpoint it was at before when the function returns.
        checkpoints: the series.
        harmful: harmful requests: a set, its name or file, `Prompt`s or texts.
        judge: `RefusalJudge()` by default.
        tokens: refusal tokens of the score; the tokenizer's common ones by default.
        max_new_tokens: longest answer.
        batch_size: prompts decoded together.
        seed: of the bootstraps.

    """
    judge, harmful = judge or RefusalJudge(), as_prompt_set(harmful, name="harmful")
    tokens = tokens or refusal_tokens(model)
    off = Condition("off", "off")
    frames = []
    for checkpoint, loaded in track(checkpoints.loaded(model), "checkpoints", total=len(checkpoints)):
        asked, generations = ask(
            loaded,
            list(harmful),
            off,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            decision_score=tokens.score,
            progress=False,
        )
        answers = judged_answers(list(harmful), off, asked, generations, judge)
        answers.insert(0, "checkpoint", checkpoint.name)
        frames.append(answers)
    answers = pd.concat(frames, ignore_index=True)
    return SeriesBehavior(
        manifest=Manifest.collect(model, [harmful], seed=seed, refusal_tokens=list(tokens.texts)),
        table=series_table(answers, checkpoints, seed),
        answers=answers,
        reference=checkpoints.reference.name,
        judge=judge.name,
    )


def series_table(answers: pd.DataFrame, checkpoints: Checkpoints, seed: int) -> pd.DataFrame:
    """One row a checkpoint: counts, rates, differences from the reference, mean refusal score."""
    by_name = {str(name): group for name, group in answers.groupby("checkpoint", sort=False)}
    reference = by_name[checkpoints.reference.name]
    rows = [
        {
            "checkpoint": one.name,
            "arm": one.arm,
            "step": one.step,
            "seed": one.seed,
            **row_of(by_name[one.name], reference, seed),
        }
        for one in checkpoints
    ]
    table = pd.DataFrame(rows)
    others = table["checkpoint"] != checkpoints.reference.name
    table["q"] = np.nan
    if others.any():
        table.loc[others, "q"] = benjamini_hochberg(table.loc[others, "p"].to_numpy())
    return table


def row_of(answers: pd.DataFrame, reference: pd.DataFrame, seed: int) -> dict[str, Any]:
    """Counts, refusal rate, difference from the reference and mean refusal score of one checkpoint."""
    refused = (answers["label"] == "refused").to_numpy()
    before = (reference["label"] == "refused").to_numpy()
    interval = wilson(int(refused.sum()), len(refused))
    change = paired_difference(refused, before)
    scores = answers["refusal_score"].to_numpy()
    score_interval = bootstrap_mean(scores, seed=seed)
    return {
        "n": len(answers),
        **{label: int((answers["label"] == label).sum()) for label in LABELS},
        "rate": float(refused.mean()),
        "low": interval.low,
        "high": interval.high,
        "difference": change.value,
        "difference_low": change.interval.low,
        "difference_high": change.interval.high,
        "gained": change.only_a,
        "lost": change.only_b,
        "p": change.p,
        "score": float(scores.mean()),
        "score_low": score_interval.low,
        "score_high": score_interval.high,
    }
