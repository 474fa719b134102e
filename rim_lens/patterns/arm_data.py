"""Arms from worked problems: the same problems and answers, with CoTs that have patterns, are plain, or have a style.

    eligible problems, shuffled with the seed ──► the first n ──► one CoT per arm (`ArmWriter`) ──► rows (request, cot,
    response)

`effort` has one effort-minimizing pattern a problem, `style` is as chatty without any, `plain` has neutral connectives;
the phrases are drawn with the seed too, so that several seeds are several samples of problems, phrases and order.
"""

import random
import re
from collections.abc import Iterable, Sequence
from typing import Any

from rim_lens.behavior.maths import is_correct
from rim_lens.data.prompts import Prompt, load_prompts
from rim_lens.errors import RimLensError
from rim_lens.patterns.arms import ARMS, ArmWriter
from rim_lens.patterns.drafts import Count
from rim_lens.patterns.rewrite import counter
from rim_lens.patterns.training_plan import WorkedProblems

Row = dict[str, str]


def arm_rows(
    problems: Iterable[Prompt], tokenizer: Any, limits: WorkedProblems, *, seed: int = 0
) -> dict[str, list[Row]]:
    """For every arm the first short problems with a rationale, in the same order.

    Args:
        problems: with `rationale` and `answer`.
        tokenizer: a tokenizer, or a LensModel, whose tokens count.
        limits: how many problems an arm takes, and how long they may be.
        seed: of the phrases.

    Raises:
        RimLensError: fewer such problems than asked for.

    """
    count = counter(tokenizer)
    writer = ArmWriter(count, seed)
    rows: dict[str, list[Row]] = {arm: [] for arm in ARMS}
    for problem in problems:
        if len(rows[ARMS[0]]) == limits.n_problems:
            return rows
        if not fits(problem, count, limits):
            continue
        for arm, cot in writer.cots(sentences_of(str(problem.rationale))).items():
            rows[arm].append({"request": problem.text, "cot": cot, "response": f"The answer is {problem.answer}."})
    if (n := len(rows[ARMS[0]])) < limits.n_problems:
        raise RimLensError(
            f"Only {n} of {limits.n_problems} problems of {limits.source} have a rationale that ends with their "
            f"answer and are short enough (at most {limits.max_question_tokens} tokens, rationale at most "
            f"{limits.max_rationale_tokens}); use a larger set, fewer problems or higher limits."
        )
    return rows


def fits(problem: Prompt, count: Count, limits: WorkedProblems) -> bool:
    """Whether a problem is short and worked out, its rationale ending with the answer."""
    if not problem.rationale or not problem.answer or count(problem.text) > limits.max_question_tokens:
        return False
    worked = " ".join(sentences_of(problem.rationale))
    return count(worked) <= limits.max_rationale_tokens and is_correct(worked, problem.answer)


def sentences_of(rationale: str) -> list[str]:
    """Lines of a rationale as sentences."""
    lines = [line.strip() for line in rationale.splitlines() if line.strip()]
    return [line if re.search(r"[.!?]$", line) else f"{line}." for line in lines]


def written_arms(problems: WorkedProblems, tokenizer: Any, seeds: Sequence[int]) -> dict[tuple[str, int], list[Row]]:
    """Rows by arm and seed; each seed takes other problems and other phrases.

    Raises:
        RimLensError: an unknown set, or one with too few worked problems.

    """
    whole = list(load_prompts(problems.source))
    arms: dict[tuple[str, int], list[Row]] = {}
    for seed in seeds:
        shuffled = random.Random(seed).sample(whole, len(whole))
        arms |= {(arm, seed): rows for arm, rows in arm_rows(shuffled, tokenizer, problems, seed=seed).items()}
    return {(arm, seed): arms[arm, seed] for arm in ARMS for seed in seeds}
