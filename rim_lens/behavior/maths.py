"""Maths accuracy: the model's final answer against the reference, compared by math-verify."""

from collections.abc import Sequence
from typing import Any

from rim_lens.behavior.generate import Generation, generate
from rim_lens.behavior.maths_text import states
from rim_lens.chat.segments import Thinking
from rim_lens.data.prompts import Prompt, Prompts, as_problems
from rim_lens.model.lens_model import LensModel
from rim_lens.stats import Rate


def is_correct(response: str, answer: str) -> bool:
    """Whether the result that a response states equals the reference answer, see `rim_lens.behavior.maths_text`."""
    return states(response, answer)


def solved(problems: Sequence[Prompt], generations: Sequence[Generation]) -> list[bool]:
    """Per problem, whether the generation's answer is right; a CoT's own result counts only if the answer states it."""
    return [is_correct(g.response, str(p.answer)) for p, g in zip(problems, generations, strict=True)]


def maths_accuracy(model: LensModel, problems: Prompts, *, thinking: Thinking = "off", **options: Any) -> Rate:
    """Share of problems solved, with n; options as in `generate`.

    Args:
        model: the model.
        problems: a set with answers, its name or file, or `Prompt`s.
        thinking: mode in which they are answered.
        options: of `generate`.

    Raises:
        RimLensError: a problem without an answer.

    """
    problems = as_problems(problems)
    options.setdefault("max_new_tokens", 64)
    generations = generate(model, [problem.text for problem in problems], thinking=thinking, **options)
    right = solved(problems, generations)
    return Rate(sum(right), len(right))
