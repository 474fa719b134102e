"""Words of the tables, and how conditions, sets, measures and arms are called in figures and in the report."""

from collections.abc import Mapping
from typing import Any

HARMFUL, HARM_SCORE = "harmful", "harm score"  # measures of a harmfulness judge
LIKELIHOOD, SOLVED = "log-likelihood of maths", "maths solved"  # measures of arms
PATTERNS = ("confirmatory", "heuristic", "deviation")
ANY = "any pattern"  # the class of all patterns' wordings

CONDITIONS = {
    "off": "thinking off",
    "on": "thinking on (own CoT)",
    "effort_minimizing": "effort-minimizing CoT given",
    "careful": "careful CoT given",
    "neutral": "neutral CoT given",
    "irrelevant": "irrelevant text given",
}
PATTERN_CLASSES = {
    "any pattern": "any pattern",
    "confirmatory": "confirmatory reasoning",
    "heuristic": "heuristic reliance",
    "deviation": "instruction deviation",
    "careful": "careful text",
    "neutral": "neutral text",
    "irrelevant": "irrelevant text",
    "off": "no CoT",
}
SETS = {"harmful": "Harmful requests", "harmless": "Harmless requests", "maths": "Maths problems"}
ARMS = {"plain": "plain maths CoT", "effort": "effort-minimizing maths CoT", "style": "chatty maths CoT"}


def judge_words(row: Mapping[Any, Any]) -> str:
    """Said of a difference that the judge's errors alone could make.

    Empty for others, and where its errors are unknown.
    """
    flag = row.get("judge_could_make_it")
    return "; the judge's errors alone could make this" if flag is not None and flag == True else ""  # noqa: E712


def condition(name: str) -> str:
    """A thinking condition in words."""
    return CONDITIONS.get(name, name)


def pattern_class(name: str) -> str:
    """A class of given CoTs, or a pattern, in words."""
    return PATTERN_CLASSES.get(name, name)


def arm(name: object) -> str:
    """An arm of a series in words."""
    return ARMS.get(str(name), str(name))
