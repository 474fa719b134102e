"""pattern_costs: what each kind of prefilled reasoning costs in refusal, at equal token length.

    cost(class) = refusal rate with the reference class − refusal rate with the class, on the same prompts

Classes: each single pattern, careful, neutral and irrelevant text, each in at least 8 wordings, and no CoT. Wordings
and prompts are both resampled (`stats.bootstrap_crossed_difference`), so a cost speaks for new wordings and new
prompts; p-values of all classes, of all contrasts, and of all classes in all harm categories, are corrected together
(Benjamini and Hochberg).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import pandas as pd

from rim_lens.behavior.conditions import Condition
from rim_lens.behavior.judge import Judge, RefusalJudge
from rim_lens.behavior.judge_errors import JudgeErrors, errors_for, errors_words
from rim_lens.behavior.judge_report import JudgeReport
from rim_lens.behavior.measure import RimTable, answers_of
from rim_lens.behavior.sampling import Sampling, sampling_for
from rim_lens.data.prompts import Prompts, PromptSet, as_prompt_set, load_wordings
from rim_lens.errors import RimLensError
from rim_lens.model.lens_model import LensModel
from rim_lens.patterns.cost_tables import MIN_PROMPTS, OFF, category_table, contrast_table, cost_table, length_table
from rim_lens.patterns.lengths import fitted
from rim_lens.patterns.rewrite import counter
from rim_lens.patterns.taxonomy import NAMES
from rim_lens.progress import track
from rim_lens.results import Manifest, Result

CONTROLS = ("neutral", "irrelevant", "careful")
MIN_WORDINGS = 8


@dataclass(frozen=True, eq=False)
class PatternCosts(Result):
    """Refusal with each class of CoT, and what each costs against a reference.

    `table`: class, reference, cost (difference of refusal rates) with interval, p and q, rates of refused, complied and
    incoherent answers with their intervals, n answers, prompts and wordings. `contrasts`: the same for any pattern
    against the reference, careful text and no CoT, and for each two patterns. `by_category`: the same in each harm
    category. `lengths`: tokens of the wordings. `answers`: every answer with its label. `own_tags`: whether the think
    tags around the CoT are the chat template's own; if not, they stand in the chat as plain text.
    """

    figure: ClassVar = "patterns:cost_by_class"
    min_prompts: ClassVar = MIN_PROMPTS

    table: pd.DataFrame
    contrasts: pd.DataFrame
    by_category: pd.DataFrame
    lengths: pd.DataFrame
    answers: pd.DataFrame
    reference: str
    judge: str
    own_tags: bool
    errors: JudgeErrors | None = None

    def caption(self) -> str:
        """What is compared, and how."""
        tags = "" if self.own_tags else "; the chat template writes no think tags, they are given as plain text"
        return (
            f"Refusal lost against {self.reference} text, CoTs of {self.tokens_words()} tokens; 95 % intervals over "
            "prompts and wordings; q: Benjamini-Hochberg; judge: "
            f"{self.judge}{tags}{'. ' if self.errors else ''}{errors_words(self.errors)}"
        )

    def tokens_words(self) -> str:
        """Length of the wordings in tokens: "54", or "54 to 56"."""
        low, high = self.lengths["shortest"].min(), self.lengths["longest"].max()
        return f"{low}" if low == high else f"{low} to {high}"

    @property
    def worst(self) -> str | None:
        """The pattern that costs most, if its cost is above 0 at q < 0.05; None where none is.

        Whether it costs more than the other patterns do is in `contrasts`.
        """
        patterns = self.table[self.table["class"].isin(NAMES) & (self.table["q"] < 0.05) & (self.table["cost"] > 0)]
        return None if patterns.empty else str(patterns.loc[patterns["cost"].idxmax(), "class"])


def pattern_costs(
    model: LensModel,
    harmful: Prompts = "harmful",
    *,
    classes: Sequence[str] | Mapping[str, Sequence[str]] = (*NAMES, *CONTROLS),
    reference: str = "neutral",
    n: int | None = None,
    wordings_per_prompt: int = 4,
    measured: RimTable | None = None,
    judge: Judge | None = None,
    judge_errors: JudgeReport | JudgeErrors | None = None,
    max_new_tokens: int = 32,
    temperature: float | None = None,
    top_p: float | None = None,
    samples: int = 1,
    batch_size: int = 32,
    seed: int = 0,
) -> PatternCosts:
    """Measure refusal with no CoT and with each class of CoT prefilled.

    Args:
        model: the model.
        harmful: a prompt set, its name or file, with harm categories.
        classes: names of wordings, or texts of your own by class, at least 8 each.
        reference: the class that the others are compared with; no CoT is compared with it too.
        n: prompts, drawn with `seed`; all by default.
        wordings_per_prompt: wordings of each class that a prompt is asked with, in rotation.
        measured: a table of the same model, prompts, judge, sampling and `max_new_tokens`, whose answers with thinking
            off are taken in place of asking again.
        judge: `RefusalJudge()` by default.
        judge_errors: what to correct rates with, from `judge_report`; for the default judge the package has its own
            counts.
        max_new_tokens: longest answer.
        temperature: as in `generate`, like `top_p`: by default the model's own sampling where it thinks natively, else
            greedy.
        top_p: likewise.
        samples: answers per prompt and wording.
        batch_size: answers decoded together.
        seed: of the draw, of sampled answers and of the bootstraps.

    Raises:
        RimLensError: a class with fewer than 8 wordings, an unknown reference, wordings that cannot be made equally
            long, a chat format without think tags, a table of other prompts or another judge.

    """
    judge, prompts = judge or RefusalJudge(), as_prompt_set(harmful, n, seed)
    errors = errors_for(judge, judge_errors)
    sampling = sampling_for(model, temperature, top_p, samples)
    check_think_part(model)
    texts = checked_classes(classes, reference)
    count = counter(model)
    equal = fitted(texts, count)
    asked = [Condition(name, "prefilled", tuple(group)) for name, group in equal.items()]
    options: dict[str, Any] = {
        "wordings_per_prompt": wordings_per_prompt,
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "samples": samples,
        "seed": seed,
        "batch_size": batch_size,
    }
    known = [] if measured is None else [off_answers(measured, model, prompts, judge, sampling)]
    if measured is None:
        asked.insert(0, Condition(OFF, "off"))
    new = [answers_of(model, "harmful", prompts, one, judge, **options) for one in track(asked, "kinds of CoT")]
    answers = pd.concat([*known, *new], ignore_index=True)
    return PatternCosts(
        manifest=Manifest.collect(
            model, prompts, seed=seed, wordings_per_prompt=wordings_per_prompt, sampling=asdict(sampling)
        ),
        table=cost_table(answers, reference, seed, errors),
        contrasts=contrast_table(answers, reference, seed, errors),
        by_category=category_table(answers, reference, seed, errors),
        lengths=length_table(equal, count),
        answers=answers,
        reference=reference,
        judge=judge.name,
        own_tags=model.chat_format.writes_tags,
        errors=errors,
    )


def check_think_part(model: LensModel) -> None:
    """Raise where a CoT would stand in the answer itself."""
    if not model.chat_format.tags.open_mark or not model.chat_format.tags.close_mark:
        raise RimLensError(
            f"{model.name} was loaded without think tags, so a given CoT would be part of the answer; load it with "
            "tags=ThinkTags(open, close)."
        )


def off_answers(
    measured: RimTable, model: LensModel, prompts: PromptSet, judge: Judge, sampling: Sampling
) -> pd.DataFrame:
    """The answers with thinking off that a table already holds."""
    every = measured.answers
    answers = every[(every["set"] == "harmful") & (every["condition"] == OFF)].sort_values(["prompt", "sample"])
    differing = {
        "model": measured.manifest.model.get("fingerprint") != model.fingerprint,
        "prompts": list(answers["request"]) != [prompt.text for prompt in prompts for _ in range(sampling.samples)],
        "sampling": measured.manifest.extra.get("sampling") != asdict(sampling),
        "judge": measured.judge != judge.name,
    }
    if any(differing.values()):
        others = ", ".join(name for name, differs in differing.items() if differs)
        raise RimLensError(f"The table of answers measured before has another {others}; pass one of the same, or none.")
    return answers


def checked_classes(classes: Sequence[str] | Mapping[str, Sequence[str]], reference: str) -> dict[str, list[str]]:
    """The texts of each class."""
    if isinstance(classes, Mapping):
        texts = {name: list(group) for name, group in classes.items()}
    else:
        texts = {name: [wording.text for wording in load_wordings(name)] for name in classes}
    for name, group in texts.items():
        if len(set(group)) < MIN_WORDINGS:
            raise RimLensError(
                f"The class {name!r} has {len(set(group))} wordings; one wording is not a finding, give at least 8."
            )
    if reference not in texts or OFF in texts:
        raise RimLensError(
            f"The reference {reference!r} must be one of the classes {', '.join(texts)}, none of them named off."
        )
    return texts
