"""pattern_costs: what each kind of prefilled reasoning costs in refusal, at equal token length.

    cost(class) = refusal rate with the reference class − refusal rate with the class, on the same prompts

Classes: each single pattern, careful, neutral and irrelevant text, each in at least 8 wordings, and no CoT. Wordings and prompts
are both resampled (`stats.bootstrap_crossed_difference`), so a cost speaks for new wordings and new prompts; p-values of all
classes, and of all classes in all harm categories, are corrected together (Benjamini and Hochberg).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from rim_lens.behavior.conditions import Condition, cells
from rim_lens.behavior.judge import Judge, RefusalJudge
from rim_lens.behavior.measure import answers_of, as_prompt_set, outcomes, rate_row
from rim_lens.data.prompts import PromptSet, load_wordings
from rim_lens.errors import RimLensError
from rim_lens.model.lens_model import LensModel
from rim_lens.patterns.lengths import fitted
from rim_lens.patterns.rewrite import counter
from rim_lens.patterns.taxonomy import NAMES
from rim_lens.progress import track
from rim_lens.results import Manifest, Result
from rim_lens.stats import benjamini_hochberg, bootstrap_crossed_difference

CONTROLS = ("neutral", "irrelevant", "careful")
OFF = "off"
MIN_WORDINGS = 8
MIN_PROMPTS = 4  # of a category: fewer say nothing about it


@dataclass(frozen=True, eq=False)
class PatternCosts(Result):
    """Refusal with each class of CoT, and what each costs against a reference.

    `table`: class, reference, cost (difference of refusal rates), low, high, p, q, refusal rate with its interval, incoherent
    answers, n prompts and wordings. `by_category`: the same in each harm category. `lengths`: tokens of the wordings.
    `answers`: every answer with its label.
    """

    table: pd.DataFrame
    by_category: pd.DataFrame
    lengths: pd.DataFrame
    answers: pd.DataFrame
    reference: str
    judge: str

    def caption(self) -> str:
        """What is compared, and how."""
        low, high = self.lengths["shortest"].min(), self.lengths["longest"].max()
        return (
            f"Refusal lost against {self.reference} text, CoTs of {low} to {high} tokens; 95 % intervals over prompts and "
            f"wordings; q: Benjamini-Hochberg; judge: {self.judge}"
        )

    @property
    def worst(self) -> str | None:
        """The pattern that costs most, if its cost is above 0 at q < 0.05; None where none is."""
        patterns = self.table[self.table["class"].isin(NAMES) & (self.table["q"] < 0.05) & (self.table["cost"] > 0)]
        return None if patterns.empty else str(patterns.loc[patterns["cost"].idxmax(), "class"])


def pattern_costs(
    model: LensModel,
    harmful: str | PromptSet = "harmful",
    *,
    classes: Sequence[str] | Mapping[str, Sequence[str]] = (*NAMES, *CONTROLS),
    reference: str = "neutral",
    n: int | None = None,
    wordings_per_prompt: int = 4,
    judge: Judge | None = None,
    max_new_tokens: int = 32,
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
        judge: `RefusalJudge()` by default.
        max_new_tokens: longest answer.
        batch_size: prompts decoded together.
        seed: of the draw and the bootstraps.

    Raises:
        RimLensError: a class with fewer than 8 wordings, an unknown reference, wordings that cannot be made equally long.

    """
    judge, prompts = judge or RefusalJudge(), as_prompt_set(harmful, n, seed)
    texts = checked_classes(classes, reference)
    count = counter(model)
    equal = fitted(texts, count)
    asked = [Condition(OFF, "off"), *(Condition(name, "prefilled", tuple(group)) for name, group in equal.items())]
    options: dict[str, Any] = {
        "wordings_per_prompt": wordings_per_prompt,
        "max_new_tokens": max_new_tokens,
        "batch_size": batch_size,
    }
    answers = pd.concat(
        [answers_of(model, "harmful", prompts, one, judge, **options) for one in track(asked, "kinds of CoT")],
        ignore_index=True,
    )
    return PatternCosts(
        manifest=Manifest.collect(model, prompts, seed=seed, wordings_per_prompt=wordings_per_prompt),
        table=cost_table(answers, reference, seed),
        by_category=category_table(answers, reference, seed),
        lengths=length_table(equal, count),
        answers=answers,
        reference=reference,
        judge=judge.name,
    )


def checked_classes(classes: Sequence[str] | Mapping[str, Sequence[str]], reference: str) -> dict[str, list[str]]:
    """The texts of each class."""
    if isinstance(classes, Mapping):
        texts = {name: list(group) for name, group in classes.items()}
    else:
        texts = {name: [wording.text for wording in load_wordings(name)] for name in classes}
    for name, group in texts.items():
        if len(set(group)) < MIN_WORDINGS:
            raise RimLensError(
                f"The class {name!r} has {len(set(group))} wordings; one wording is no finding, give at least 8."
            )
    if reference not in texts or OFF in texts:
        raise RimLensError(
            f"The reference {reference!r} must be one of the classes {', '.join(texts)}, none of them named off."
        )
    return texts


def cost_table(answers: pd.DataFrame, reference: str, seed: int) -> pd.DataFrame:
    """One row a class, with q over the table."""
    by_class = dict(iter(answers.groupby("condition", sort=False)))
    rows = [
        cost_row(part, by_class[reference], seed) | {"class": name, "reference": reference}
        for name, part in by_class.items()
        if name != reference
    ]
    rows.append(level_row(by_class[reference], seed) | {"class": reference, "reference": reference})
    table = pd.DataFrame(rows)
    table["q"] = benjamini_hochberg(table["p"].to_numpy(dtype=float))
    first = [
        "class",
        "reference",
        "cost",
        "low",
        "high",
        "p",
        "q",
        "refused",
        "refused_low",
        "refused_high",
        "incoherent",
    ]
    return table[[*first, "n", "n_prompts", "n_wordings"]]


def category_table(answers: pd.DataFrame, reference: str, seed: int) -> pd.DataFrame:
    """One row a harm category and class, with q over all of them."""
    parts = []
    for category, group in answers.dropna(subset=["category"]).groupby("category", sort=False):
        if group["prompt"].nunique() < MIN_PROMPTS:
            continue
        table = cost_table(numbered_anew(group), reference, seed)
        parts.append(table[table["class"] != reference].assign(category=category))
    if not parts:
        return pd.DataFrame(columns=["category", "class", "cost", "low", "high", "p", "q", "n_prompts"])
    whole = pd.concat(parts, ignore_index=True)
    whole["q"] = benjamini_hochberg(whole["p"].to_numpy(dtype=float))
    return whole[["category", *(name for name in whole if name != "category")]]


def numbered_anew(answers: pd.DataFrame) -> pd.DataFrame:
    """The answers with prompts counted from 0, for tables of a part of them."""
    codes = pd.Categorical(answers["prompt"]).codes
    return answers.assign(prompt=codes.astype(int))


def cost_row(part: pd.DataFrame, reference: pd.DataFrame, seed: int) -> dict[str, Any]:
    """Refusal in the reference minus refusal in a class, over shared prompts."""
    first, second = (cells(side, list(outcomes(side, "refused"))) for side in (reference, part))
    crossed = bootstrap_crossed_difference(first, second, seed=seed)
    low, high = crossed.interval
    found = {"cost": crossed.value, "low": low, "high": high, "p": np.nan if crossed.p is None else crossed.p}
    return level_row(part, seed) | found | {"n_wordings": crossed.n_wordings}


def level_row(part: pd.DataFrame, seed: int) -> dict[str, Any]:
    """A class's own rates; no cost against itself."""
    hit = outcomes(part, "refused")
    rate = rate_row(part, hit, seed)
    return {
        "cost": 0.0,
        "low": np.nan,
        "high": np.nan,
        "p": np.nan,
        "refused": rate["rate"],
        "refused_low": rate["low"],
        "refused_high": rate["high"],
        "incoherent": float(outcomes(part, "incoherent").mean()),
        "n": rate["n"],
        "n_prompts": part["prompt"].nunique(),
        "n_wordings": rate["n_wordings"],
    }


def length_table(texts: Mapping[str, Sequence[str]], count: Any) -> pd.DataFrame:
    """Tokens of each class's wordings."""
    rows = []
    for name, group in texts.items():
        lengths = [count(text) for text in group]
        rows.append({"class": name, "wordings": len(group), "shortest": min(lengths), "longest": max(lengths)})
    return pd.DataFrame(rows)
