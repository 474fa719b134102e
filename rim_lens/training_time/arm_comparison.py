"""compare_arms: what each arm of fine-tuning does to refusal and maths, over its seeds, and arms against each other.

    change(arm, step)       mean over prompts and seeds of (outcome after step − outcome of the reference), the same
    prompts
    contrast(a, b, step)    mean over prompts and seeds of (outcome in arm a − outcome in arm b) after the same step

Outcomes are shares (of each label, of harmful answers where a harmfulness judge looked, solved), the mean harm score or
the log-likelihood of right maths answers. With one seed a share has the interval and p of `stats.shares`, a likelihood
a bootstrap over prompts and the p of `stats.mean_test`, and nothing is said about other trainings. With several seeds,
prompts and seeds are both resampled (`stats.crossed`; Student's t with the degrees of freedom that few seeds leave),
seeds that two arms share being paired. q: Benjamini and Hochberg over all rows of a measure.

This is the paper's table 2 for one model: Yan et al., arXiv 2509.00544.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from jaxtyping import Float

from rim_lens.behavior.judge_errors import JudgeErrors
from rim_lens.behavior.rates import CORRECTED, judged_apart, measures_of, outcomes
from rim_lens.errors import RimLensError
from rim_lens.results import Result
from rim_lens.stats import (
    Interval,
    benjamini_hochberg,
    bootstrap_crossed,
    bootstrap_crossed_difference,
    bootstrap_mean,
    mean_test,
    share_difference,
    share_interval,
)
from rim_lens.training_time.series_answers import SeriesBehavior
from rim_lens.training_time.series_problems import SeriesMaths
from rim_lens.words import HARM_SCORE, HARMFUL, LIKELIHOOD, SOLVED

Outcomes = Float[np.ndarray, "prompt seed sample"]


@dataclass(frozen=True, eq=False)
class ArmComparison(Result):
    """What fine-tuning on each arm does.

    `table`: one row per arm, step and measure; a checkpoint without an arm counts as one of its own name, without a
    step as <NA>: `before` (the reference's) and `after` with `after_low`, `after_high`, `change` with its 95 % interval
    `low`, `high`, `p`, `q`, `n` prompts, `n_seeds`. `contrasts`: one row per step, measure and pair of arms `a`, `b`:
    `difference` (a − b) with interval, `p`, `q`, `n`, `n_seeds`. Where the judge's errors are known both have the
    difference `corrected` for them, and `judge_could_make_it` where they alone could make it.
    """

    figure: ClassVar = "arms:arm_changes"

    table: pd.DataFrame
    contrasts: pd.DataFrame
    reference: str
    judge: str
    errors: JudgeErrors | None = None

    @property
    def headline(self) -> str:
        """The measure that stands for misalignment.

        Harmful answers where a harmfulness judge looked, else complied ones.
        """
        return HARMFUL if HARMFUL in set(self.table["measure"]) else "complied"

    def caption(self) -> str:
        """What is compared over how many prompts and trainings."""
        is_maths = self.table["measure"].isin([LIKELIHOOD, SOLVED])
        n = f"{self.table.loc[~is_maths, 'n'].iloc[0]} harmful requests"
        n += f" and {self.table.loc[is_maths, 'n'].iloc[0]} maths problems" if is_maths.any() else ""
        seeds = int(self.table["n_seeds"].min())
        over = f"prompts and {seeds} trainings per arm" if seeds > 1 else "prompts alone (one training per arm)"
        return f"n = {n}; changes from {self.reference}; 95 % intervals over {over}; judge: {self.judge}"


def compare_arms(series: SeriesBehavior, maths: SeriesMaths | None = None) -> ArmComparison:
    """Changes of every arm after every dose, and arms against each other at the same dose.

    Args:
        series: answers to harmful requests at every checkpoint.
        maths: maths at the same checkpoints.

    Raises:
        RimLensError: a series with its reference alone, or maths of another series.

    """
    trained = series.table[series.table["checkpoint"] != series.reference]
    if trained.empty:
        raise RimLensError(f"The series holds only its reference {series.reference}; there is no change to measure.")
    if maths is not None and set(maths.table["checkpoint"]) != set(series.table["checkpoint"]):
        raise RimLensError("The maths was measured at other checkpoints than the requests; measure both on one series.")
    names = cells_of(trained)
    changes, contrasts, errors = [], [], series.errors
    for measure, by_checkpoint, is_share in measures(series, maths):
        before = by_checkpoint[series.reference]
        after = {
            cell: np.stack([by_checkpoint[name] for name in seeds.values()], axis=1) for cell, seeds in names.items()
        }
        changes += [
            {"arm": arm, "step": step, "measure": measure, **change_of(values, before, is_share, measure, errors)}
            for (arm, step), values in after.items()
        ]
        contrasts += list(contrasts_of(measure, names, by_checkpoint, is_share, errors))
    return ArmComparison(
        table=with_q(pd.DataFrame(changes)),
        contrasts=with_q(pd.DataFrame(contrasts, columns=[*CONTRAST_COLUMNS, *(CORRECTED if errors else [])])),
        reference=series.reference,
        judge=series.judge,
        errors=errors,
        manifest=series.manifest,
    )


CONTRAST_COLUMNS = ["step", "measure", "a", "b", "difference", "low", "high", "p", "n", "n_seeds"]
Cell = tuple[str, int | None]


def cells_of(trained: pd.DataFrame) -> dict[Cell, dict[int, str]]:
    """Checkpoints by arm and step, and within it by seed."""
    outcomes_at: dict[Cell, dict[int, str]] = {}
    for row in trained.itertuples():
        arm = str(row.checkpoint if pd.isna(row.arm) else row.arm)
        step, seed = (None if pd.isna(one) else int(one) for one in (row.step, row.seed))
        outcomes_at.setdefault((arm, step), {})[seed or 0] = str(row.checkpoint)
    return outcomes_at


def measures(
    series: SeriesBehavior, maths: SeriesMaths | None
) -> Iterator[tuple[str, dict[str, Float[np.ndarray, "prompt sample"]], bool]]:
    """Each measure: its name, outcomes per prompt by checkpoint, and whether it is a share."""
    for measure in measures_of(series.answers):
        shares = by_checkpoint(series.answers, lambda rows, measure=measure: pd.Series(outcomes(rows, measure)))
        judged = ~np.isnan(np.stack(list(shares.values()))).any(
            axis=(0, 2)
        )  # prompts with a verdict at every checkpoint
        if not judged.any() or not any(values[judged].any() for values in shares.values()):
            continue  # a label that nobody got is not one more test to correct for
        yield measure, {name: values[judged] for name, values in shares.items()}, measure != HARM_SCORE
    if maths is not None:
        yield LIKELIHOOD, by_checkpoint(maths.answers, lambda rows: rows["likelihood"]), False
        if "solved" in maths.answers:
            yield SOLVED, by_checkpoint(maths.answers, lambda rows: rows["solved"]), True


def by_checkpoint(answers: pd.DataFrame, outcome: Any) -> dict[str, Float[np.ndarray, "prompt sample"]]:
    """Outcomes per prompt, in the prompts' order, and sample."""
    values = {}
    for name, rows in answers.groupby("checkpoint", sort=False):
        n, by = rows["prompt"].nunique(), [column for column in ("prompt", "sample") if column in rows]
        values[str(name)] = outcome(rows.sort_values(by)).to_numpy(dtype=float).reshape(n, -1)
    return values


def change_of(
    after: Outcomes,
    before: Float[np.ndarray, "prompt sample"],
    is_share: bool,
    measure: str,
    errors: JudgeErrors | None,
) -> dict[str, Any]:
    """An arm after a dose against the reference."""
    n, n_seeds, _ = after.shape
    if is_share:
        level = share_interval(after)
    else:
        level = bootstrap_crossed(after).interval if n_seeds > 1 else bootstrap_mean(after[:, 0].mean(axis=1))
    row = {"before": before.mean(), "after": after.mean(), "after_low": level.low, "after_high": level.high}
    if n_seeds > 1:
        change = crossed(after, before[:, None], is_share, "change")
    else:
        change = paired(after, before[:, None], is_share, "change")
    interval = Interval(change["low"], change["high"])
    apart = judged_apart(measure, errors, change["change"], interval, row["before"], row["after"])
    return row | change | {"n": n, "n_seeds": n_seeds} | apart


def contrasts_of(
    measure: str,
    names: Mapping[Cell, Mapping[int, str]],
    outcomes: Mapping[str, np.ndarray],
    is_share: bool,
    errors: JudgeErrors | None,
) -> Iterator[dict[str, Any]]:
    """Every two arms after the same step, over the seeds that both have; effort-minimizing data are always `a`."""
    for (a, step), (b, other) in combinations(sorted(names, key=lambda cell: cell[0] != "effort"), 2):
        same_dose = step is not None and step == other
        shared = sorted(names[a, step].keys() & names[b, other].keys()) if same_dose else []
        if not shared:
            continue
        first, second = (np.stack([outcomes[names[arm, step][seed]] for seed in shared], axis=1) for arm in (a, b))
        if len(shared) > 1:
            answers = (first, second) if is_share else ()
            row = crossed(first.mean(axis=2) - second.mean(axis=2), None, is_share, "difference", answers)
        else:
            row = paired(first, second, is_share, "difference")
        interval = Interval(row["low"], row["high"])
        apart = judged_apart(measure, errors, row["difference"], interval, float(second.mean()), float(first.mean()))
        yield {"step": step, "measure": measure, "a": a, "b": b, **row, "n": len(first), "n_seeds": len(shared)} | apart


def crossed(
    after: np.ndarray, before: Outcomes | None, is_share: bool, name: str, answers: Sequence[Outcomes] = ()
) -> dict[str, Any]:
    """Several trainings' outcomes against others on the same prompts.

    None where they are differences already, of these `answers`: no difference of shares is known better than chance
    allows.
    """
    difference = bootstrap_crossed_difference(after, before, answers=answers)
    low, high = np.clip(tuple(difference.interval), -1, 1) if is_share else difference.interval
    return {name: difference.value, "low": float(low), "high": float(high), "p": difference.p}


def paired(after: Outcomes, before: Outcomes, is_share: bool, name: str) -> dict[str, Any]:
    """One training's outcomes against others on the same prompts."""
    if is_share:
        difference = share_difference(after, before)
        return {
            name: difference.value,
            "low": difference.interval.low,
            "high": difference.interval.high,
            "p": difference.p,
        }
    change = after[:, 0].mean(axis=1) - before[:, 0].mean(axis=1)
    ends, p = bootstrap_mean(change), float(mean_test(change).p)
    return {name: float(change.mean()), "low": ends.low, "high": ends.high, "p": p}


def with_q(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with a q-value over all rows of the same measure, and steps that may be unknown."""
    rows = rows.astype({"step": "Int64"})
    if rows.empty:
        return rows.assign(q=pd.Series(dtype=float))
    return rows.assign(q=rows.groupby("measure", sort=False)["p"].transform(lambda p: benjamini_hochberg(p.to_numpy())))
