"""Maths accuracy: the model's final answer against the reference, compared by math-verify."""

import logging
import re
from collections.abc import Sequence
from typing import Any

from rim_lens.behavior.generate import Generation, generate
from rim_lens.chat.segments import Thinking
from rim_lens.data.prompts import Prompt, Prompts, as_problems
from rim_lens.model.lens_model import LensModel
from rim_lens.stats import Rate

NUMBER = re.compile(r"-?\$?\d[\d,]*(?:\.\d+)?(?:/\d+)?")


def final_answer(text: str) -> str:
    """The part of an answer that states the result: after `####` or the last "answer is", else the last number.

    Thousands separators and currency signs are dropped, since math-verify reads "1,200" as a pair.
    """
    if "\\boxed" in text:
        return text
    for mark in ("####", "answer is", "Answer:"):
        if mark in text and (found := NUMBER.search(text.rpartition(mark)[2])):
            return plain_number(found.group())
    numbers = NUMBER.findall(text)
    return plain_number(numbers[-1]) if numbers else text


def plain_number(text: str) -> str:
    """A number without currency sign and thousands separators."""
    return text.replace("$", "").replace(",", "")


def is_correct(response: str, answer: str) -> bool:
    """Whether a response's final answer equals the reference."""
    from math_verify import parse, verify

    for name in ("math_verify.parser", "math_verify.grader"):  # they warn at every call without a time limit
        logging.getLogger(name).setLevel(logging.ERROR)
    gold = parse(plain_number(answer), parsing_timeout=None)
    found = parse(final_answer(response), parsing_timeout=None)
    return bool(verify(gold, found, timeout_seconds=None))


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
