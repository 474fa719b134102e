"""Tables of `pattern_costs`: classes against the reference, patterns against each other, harm categories.

    cost(class) = refusal rate with the reference − refusal rate with the class, on the same prompts

Patterns together are all their wordings as one class, resampled as one: the interval speaks for a new wording of any of
them.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from rim_lens.behavior.judge import LABELS
from rim_lens.behavior.judge_errors import JudgeErrors
from rim_lens.behavior.rates import COLUMN_OF, CORRECTED, difference_row, measures_of, rate_row
from rim_lens.patterns.taxonomy import NAMES
from rim_lens.stats import benjamini_hochberg
from rim_lens.words import ANY

CAREFUL, OFF = "careful", "off"
MIN_PROMPTS = 4  # of a category: fewer say nothing about it
RATES = LABELS
COLUMNS = (
    *("class", "reference", "cost", "low", "high", "p", "q"),
    *(f"{rate}{end}" for rate in RATES for end in ("", "_low", "_high")),
    *("n", "n_prompts", "n_wordings"),
)


def cost_table(answers: pd.DataFrame, reference: str, seed: int, errors: JudgeErrors | None = None) -> pd.DataFrame:
    """One row per class, with q over the table."""
    by_class = dict(iter(answers.groupby("condition", sort=False)))
    rows = [compared(by_class, name, reference, seed, errors) for name in by_class if name != reference]
    rows.append(level_row(by_class[reference], seed, errors) | {"class": reference, "reference": reference})
    return with_q(rows)


def contrast_table(answers: pd.DataFrame, reference: str, seed: int, errors: JudgeErrors | None = None) -> pd.DataFrame:
    """Any pattern against the reference, careful text and no CoT, and each two patterns, with q over the table."""
    by_class = with_any(answers)
    patterns = [name for name in NAMES if name in by_class]
    others = [name for name in dict.fromkeys((reference, CAREFUL, OFF)) if name in by_class]
    pairs = [(ANY, other) for other in others if ANY in by_class]
    pairs += combinations(patterns, 2)
    return with_q([compared(by_class, first, second, seed, errors) for first, second in pairs])


def category_table(answers: pd.DataFrame, reference: str, seed: int, errors: JudgeErrors | None = None) -> pd.DataFrame:
    """One row per harm category and class, any pattern among them, with q over all of them."""
    rows = []
    for category, group in answers.dropna(subset=["category"]).groupby("category", sort=False):
        if group["prompt"].nunique() < MIN_PROMPTS:
            continue
        by_class = with_any(numbered_anew(group))
        rows += [
            compared(by_class, name, reference, seed, errors) | {"category": category}
            for name in by_class
            if name != reference
        ]
    table = with_q(rows)
    return table.reindex(columns=["category", *(name for name in table if name != "category")])


def with_any(answers: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The answers by class, and those to all patterns as one class whose wordings are numbered through."""
    by_class = {str(name): part for name, part in answers.groupby("condition", sort=False)}
    patterns = [by_class[name] for name in NAMES if name in by_class]
    if patterns:
        every = max(int(part["wording"].max()) for part in patterns) + 1
        moved = [part.assign(wording=part["wording"] + i * every) for i, part in enumerate(patterns)]
        by_class[ANY] = pd.concat(moved, ignore_index=True)
    return by_class


def numbered_anew(answers: pd.DataFrame) -> pd.DataFrame:
    """The answers with prompts counted from 0, for tables of a part of them."""
    codes = pd.Categorical(answers["prompt"]).codes
    return answers.assign(prompt=codes.astype(int))


def compared(
    by_class: Mapping[str, pd.DataFrame], name: str, reference: str, seed: int, errors: JudgeErrors | None
) -> dict[str, Any]:
    """Refusal in the reference minus refusal in a class, over shared prompts, with the class's own rates."""
    part = by_class[name]
    row = difference_row(part, by_class[reference], "refused", seed, errors)
    cost = {column: row[column] for column in ("low", "high", "p", *CORRECTED) if column in row}
    cost["p"] = np.nan if cost["p"] is None else cost["p"]
    return level_row(part, seed, errors) | {"cost": row["difference"], **cost, "class": name, "reference": reference}


def level_row(part: pd.DataFrame, seed: int, errors: JudgeErrors | None) -> dict[str, Any]:
    """A class's own rates with their intervals; no cost against itself."""
    row: dict[str, Any] = {"cost": 0.0, "low": np.nan, "high": np.nan, "p": np.nan}
    for measure in measures_of(part):
        rate, name = rate_row(part, measure, seed, errors), COLUMN_OF.get(measure, measure)
        row |= {name: rate["rate"], f"{name}_low": rate["low"], f"{name}_high": rate["high"]}
        row |= {f"{name}_{column}": rate[column] for column in CORRECTED if column in rate}
    return row | {"n": len(part), "n_prompts": part["prompt"].nunique(), "n_wordings": part["wording"].nunique()}


def with_q(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Rows as a table, with p corrected over all of them."""
    extra = dict.fromkeys(name for row in rows for name in row if name not in COLUMNS)
    table = pd.DataFrame(list(rows), columns=[*COLUMNS, *extra])
    table["q"] = benjamini_hochberg(table["p"].to_numpy(dtype=float))
    return table


def length_table(texts: Mapping[str, Sequence[str]], count: Callable[[str], int]) -> pd.DataFrame:
    """Tokens of each class's wordings."""
    rows = []
    for name, group in texts.items():
        lengths = [count(text) for text in group]
        rows.append({"class": name, "wordings": len(group), "shortest": min(lengths), "longest": max(lengths)})
    return pd.DataFrame(rows)
