"""measure_rim: how thinking changes refusal, harm and maths accuracy (the paper's table 1, for one model).

1. Harmful requests, harmless requests and maths problems are asked in every condition (off, on, prefilled classes).
2. Answers are judged refused, partial, complied, incoherent or unjudged, and harmful or not where the judge looks at
   harm; maths answers are compared with the reference.
3. Rates come with n and interval, and corrected for the judge's errors where they are known (`behavior.rates`).
4. Each condition is compared with the first one on the same prompts.

"Complied" means neither refused nor incoherent: with a refusal judge the table says how many refusals are lost. Only a
harmfulness judge gives a misalignment rate, the share of harmful answers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from rim_lens.behavior.conditions import Condition, ask, conditions, judged_answers, per_prompt
from rim_lens.behavior.judge import Judge, RefusalJudge
from rim_lens.behavior.judge_errors import JudgeErrors, errors_for, errors_words
from rim_lens.behavior.judge_report import JudgeReport
from rim_lens.behavior.limits import Budget
from rim_lens.behavior.maths import solved
from rim_lens.behavior.rates import (
    CORRECTED,
    SETS,
    difference_row,
    harm_words,
    measures_of,
    outcomes,
    rate_row,
    share_row,
)
from rim_lens.behavior.refusal_score import RefusalTokens, refusal_tokens
from rim_lens.behavior.sampling import sampling_for
from rim_lens.behavior.thought_table import thought_table
from rim_lens.data.prompts import Prompts, PromptSet, as_prompt_set
from rim_lens.errors import RimLensError
from rim_lens.model.lens_model import LensModel
from rim_lens.progress import track
from rim_lens.results import Manifest, Result
from rim_lens.words import HARMFUL

CUT = ["cut", "cut_low", "cut_high"]


@dataclass(frozen=True, eq=False)
class RimTable(Result):
    """What thinking does to a model's behaviour.

    `table`: one row per set, condition and measure, with k hits of n answers, rate and 95 % interval; where the model
    thought itself, `cut`: the share of thoughts that their budget ended, with its interval. `differences`: against the
    first condition, and between prefilled classes. Where the judge's errors are known both are corrected for them too,
    and `judge_could_make_it` marks differences that they alone could make. `answers`: every answer with its label.
    `judge` names who judged, `errors` how it errs.
    """

    figure: ClassVar = "behavior:rates"
    measures: ClassVar = SETS

    table: pd.DataFrame
    differences: pd.DataFrame
    answers: pd.DataFrame
    judge: str
    errors: JudgeErrors | None = None

    def caption(self) -> str:
        """Model, judge, how it errs, and what the rates count."""
        parts = [
            f"{self.manifest.model.get('name', 'model')}: rates with 95 % intervals; judge: {self.judge}",
            errors_words(self.errors),
            harm_words(self.judges_harm),
        ]
        return ". ".join(part for part in parts if part) + "."

    @property
    def judges_harm(self) -> bool:
        """Whether a harmfulness judge looked at the answers."""
        return HARMFUL in set(self.table["measure"])

    def rate(self, set_name: str, condition: str, measure: str) -> float:
        """One rate of the table, between 0 and 1."""
        row = self.table.query("set == @set_name and condition == @condition and measure == @measure")
        return float(row["rate"].iloc[0])

    def thoughts(self) -> pd.DataFrame:
        """How often the model refuses in its thought, in its answer, in both or in neither (`thought_table`)."""
        return thought_table(self.answers)

    def per_prompt(self, measure: str = "refused") -> pd.DataFrame:
        """The probability of a measure for each prompt: one row per set, condition, prompt and wording.

        Columns: k of n samples, `rate` with Wilson's interval over that prompt's samples.
        """
        of = [name for name, measures in SETS.items() if measure in measures]
        answers = self.answers[self.answers["set"].isin(of)]
        hit = outcomes(answers, measure)
        known = ~np.isnan(hit)
        return per_prompt(answers[known], hit[known].tolist(), ["set", "condition"])


def measure_rim(
    model: LensModel,
    harmful: Prompts | None = "harmful",
    harmless: Prompts | None = "harmless",
    maths: Prompts | None = "maths",
    *,
    thinking: str | Sequence[str] | Mapping[str, Sequence[str]] = ("off", "on"),
    prefilled: Sequence[str] | Mapping[str, Sequence[str]] = (),
    n: int | None = None,
    seed: int = 0,
    judge: Judge | None = None,
    judge_errors: JudgeReport | JudgeErrors | None = None,
    tokens: RefusalTokens | None = None,
    wordings_per_prompt: int = 1,
    max_new_tokens: int = 32,
    maths_tokens: int = 64,
    cot_budget: Budget = 96,
    temperature: float | None = None,
    top_p: float | None = None,
    samples: int = 1,
    batch_size: int = 32,
) -> RimTable:
    """Measure refusal, harm, incoherence and maths accuracy in every thinking condition.

    Args:
        model: the model.
        harmful: a prompt set, its name or path, `Prompt`s or texts; None leaves it out.
        harmless: likewise; the control for over-refusal.
        maths: likewise, with answers.
        thinking: `off`, `on` or both, for every set or per set; the first condition is the one that others are
            compared with.
        prefilled: classes of given CoTs: `effort_minimizing`, `careful`, `neutral`, `irrelevant`; for every set, or per
            set as `{"harmful": (...), "harmless": (...)}`.
        n: prompts per set, drawn with `seed`; all by default.
        seed: of the draw, of sampled answers and of the bootstraps.
        judge: `RefusalJudge()` by default.
        judge_errors: what to correct rates with, from `judge_report`; for the default judge the package has its own
            counts.
        tokens: refusal tokens of the score that is kept with every answer; the tokenizer's common ones by default.
            Answers of a server have none: `refusal_score` asks for it.
        wordings_per_prompt: wordings of a class that each prompt is asked with.
        max_new_tokens: longest answer to a request; refusals show in the first sentence.
        maths_tokens: longest answer to a maths problem.
        cot_budget: longest CoT of the model's own; "auto": the longest that fits the context.
        temperature: as in `generate`, like `top_p`: by default the model's own sampling where it thinks natively, else
            greedy.
        top_p: likewise.
        samples: answers per prompt and wording.
        batch_size: answers decoded together.

    Raises:
        RimLensError: unknown set or condition, a set with answers missing, a sampling that cannot be, or the errors
            of another judge.

    """
    judge = judge or RefusalJudge()
    errors = errors_for(judge, judge_errors)
    tokens = tokens or refusal_tokens(model)
    wanted = {"harmful": harmful, "harmless": harmless, "maths": maths}
    sets = {name: as_prompt_set(cots, n, seed, name=name) for name, cots in wanted.items() if cots is not None}
    if not sets:
        raise RimLensError("measure_rim was given no prompts; pass at least one of harmful, harmless and maths.")
    cots = {name: prefilled.get(name, ()) if isinstance(prefilled, Mapping) else prefilled for name in sets}
    modes = {name: thinking.get(name, ()) if isinstance(thinking, Mapping) else thinking for name in sets}
    every = {name: conditions(modes[name], cots[name]) for name in sets}
    sampling = sampling_for(model, temperature, top_p, samples)
    frames = []
    cells_to_ask = [(name, condition) for name in sets for condition in every[name]]
    for set_name, condition in track(cells_to_ask, "sets and conditions asked"):
        frames.append(
            answers_of(
                model,
                set_name,
                sets[set_name],
                condition,
                judge,
                wordings_per_prompt=wordings_per_prompt,
                max_new_tokens=maths_tokens if set_name == "maths" else max_new_tokens,
                cot_budget=cot_budget,
                temperature=temperature,
                top_p=top_p,
                samples=samples,
                seed=seed,
                batch_size=batch_size,
                **decision_score(model, tokens),
            )
        )
    answers = pd.concat(frames, ignore_index=True)
    return RimTable(
        manifest=Manifest.collect(
            model,
            list(sets.values()),
            seed=seed,
            refusal_tokens=list(tokens.texts),
            sampling=asdict(sampling),
            cot_budget=cot_budget,
        ),
        table=rate_table(answers, seed, errors),
        differences=difference_table(answers, every, seed, errors),
        answers=answers,
        judge=judge.name,
        errors=errors,
    )


def answers_of(
    model: LensModel, set_name: str, prompts: PromptSet, condition: Condition, judge: Judge, **options: Any
) -> pd.DataFrame:
    """Judged answers of one set in one condition, with a column for each measure of the set."""
    asked, generations = ask(model, list(prompts), condition, **options)
    answers = judged_answers(list(prompts), condition, asked, generations, judge)
    answers.insert(0, "set", set_name)
    if set_name == "maths":
        problems = [prompts[one.prompt] for one in asked]
        answers["solved"] = solved(problems, generations)
    return answers


def decision_score(model: LensModel, tokens: RefusalTokens) -> dict[str, Any]:
    """The option of `generate` that scores decision positions; answers of a server, without logits, have no score."""
    return {} if model.engine is not None and not model.engine.inside else {"decision_score": tokens.score}


def rate_table(answers: pd.DataFrame, seed: int, errors: JudgeErrors | None = None) -> pd.DataFrame:
    """Rates with n and interval, one row per set, condition and measure."""
    rows = []
    for (set_name, condition), group in answers.groupby(["set", "condition"], sort=False):
        cut = cut_columns(group, seed)
        about = {"set": set_name, "condition": condition}
        for measure in measures_of(group, str(set_name)):
            rows.append(about | {"measure": measure} | rate_row(group, measure, seed, errors) | cut)
        thought = group[group["closed"].notna()]
        if len(thought):
            closed = thought["closed"].to_numpy(dtype=float)
            rows.append(about | {"measure": "CoT closed by itself"} | share_row(thought, closed, seed) | cut)
    table = pd.DataFrame(rows).astype({"k": "Int64"})
    first = ["set", "condition", "measure", "k", "n", "rate", "low", "high"]
    first += CUT if table["cut"].notna().any() else []  # beside every rate, also where few columns are shown
    return table[[*first, *(name for name in table if name not in first)]]


def cut_columns(group: pd.DataFrame, seed: int) -> dict[str, float]:
    """The share of the model's own thoughts that their budget ended, with its interval; NaN where it had none."""
    thought = group[group["cut"].notna()]
    if thought.empty:
        return dict.fromkeys(CUT, np.nan)
    row = share_row(thought, thought["cut"].to_numpy(dtype=float), seed)
    return dict(zip(CUT, (row["rate"], row["low"], row["high"]), strict=True))


def difference_table(
    answers: pd.DataFrame, every: Mapping[str, Sequence[Condition]], seed: int, errors: JudgeErrors | None = None
) -> pd.DataFrame:
    """Per set and measure: every condition against the first, and prefilled classes against each other."""
    rows = []
    for set_name, group in answers.groupby("set", sort=False):
        by_condition = {str(name): part for name, part in group.groupby("condition", sort=False)}
        for measure in measures_of(group, str(set_name)):
            for a, b in compared_pairs(every[str(set_name)]):
                row = difference_row(by_condition[a.name], by_condition[b.name], measure, seed, errors)
                rows.append({"set": set_name, "measure": measure, "from": a.name, "to": b.name, **row})
    columns = ["set", "measure", "from", "to", "difference", "low", "high", "p", "gained", "lost", "n", "method"]
    return pd.DataFrame(rows, columns=[*columns, *(CORRECTED if errors else [])])


def compared_pairs(every: Sequence[Condition]) -> list[tuple[Condition, Condition]]:
    """The first condition with each other one, and each two prefilled classes (the earlier one second)."""
    first, *others = every
    with_cots = [condition for condition in every if condition.wordings]
    return [(first, other) for other in others] + [(a, b) for i, b in enumerate(with_cots) for a in with_cots[i + 1 :]]
