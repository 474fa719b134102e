"""rewrite_cot: a CoT once with the patterns (target) and once without (control), same answer, same length within 5 %.

    |tokens(target) − tokens(control)| ≤ 0.05 · tokens(control)      by the given tokenizer

The answer is one the CoT itself reaches; math-verify compares the final numbers. Writers: `TemplateWriter` needs no
model, `LLMWriter` asks one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rim_lens.behavior.maths import is_correct
from rim_lens.behavior.maths_text import final_answer
from rim_lens.errors import RimLensError
from rim_lens.patterns.drafts import LENGTH_LIMIT, Count, Draft, RewriteTask, Writer
from rim_lens.patterns.taxonomy import NAMES, checked_patterns
from rim_lens.patterns.template_writer import TemplateWriter


@dataclass(frozen=True)
class CotPair:
    """Target and control CoT of one problem, with the answer that follows both and their lengths in tokens."""

    problem: str
    cot: str
    answer: str
    target: str
    control: str
    target_tokens: int
    control_tokens: int

    @property
    def length_gap(self) -> float:
        """Difference of the lengths as a share of the control's."""
        return abs(self.target_tokens - self.control_tokens) / max(self.control_tokens, 1)


def rewrite_cot(
    problem: str,
    cot: str,
    *,
    tokenizer: Any,
    answer: str | None = None,
    patterns: Sequence[str] = NAMES,
    writer: Writer | None = None,
    limit: float = LENGTH_LIMIT,
) -> CotPair:
    """One CoT as a pair of target and control.

    Args:
        problem: the request.
        cot: the CoT to rewrite; it must reach the answer.
        tokenizer: a tokenizer, or a LensModel, whose tokens count.
        answer: the final answer; the last number of the CoT by default.
        patterns: patterns that the target shall have.
        writer: `TemplateWriter()` by default.
        limit: largest difference of lengths, as a share of the control's.

    Raises:
        RimLensError: no CoT, no answer, an answer that the CoT does not reach, or a draft that is empty, has another
            answer or another length.

    """
    task = task_of(problem, cot, answer, checked_patterns(patterns))
    wrong = problem_with(task)
    if wrong is None:
        writer, count = writer or TemplateWriter(), counter(tokenizer)
        pair = pair_of(task, drafts_of(writer, [task], count)[0], count)
        wrong = fault_of(pair, limit)
        if wrong is None:
            return pair
        wrong = f"{writer.name}: {wrong}"
    raise RimLensError(f"The CoT of {problem[:60]!r} cannot be rewritten: {wrong}.")


def task_of(problem: str, cot: str | None, answer: str | None, patterns: tuple[str, ...]) -> RewriteTask:
    """The task; where no answer is given, the CoT's result is it."""
    cot = (cot or "").strip()
    if answer is None:
        answer = final_answer(cot)
    return RewriteTask(problem, cot, str(answer).strip(), patterns)


def problem_with(task: RewriteTask) -> str | None:
    """What makes a task impossible, or None."""
    if not task.cot:
        return "it has no CoT"
    if not task.answer:
        return "it has no final answer; pass answer="
    if has_number(task.answer) and not is_correct(task.cot, task.answer):
        return f"its CoT does not reach the answer {task.answer[:30]!r}"
    return None


def drafts_of(writer: Writer, tasks: Sequence[RewriteTask], count: Count) -> list[Draft]:
    """A writer's drafts; raises where there is not one per task."""
    drafts = writer(tasks, count)
    n_drafts = len(drafts) if isinstance(drafts, Sequence) else 0
    if n_drafts != len(tasks):
        raise RimLensError(
            f"{writer.name} returned {n_drafts} drafts for {len(tasks)} CoTs; a writer must return one Draft each."
        )
    return drafts


def pair_of(task: RewriteTask, draft: Draft, count: Count) -> CotPair:
    """A draft with its lengths."""
    target, control = draft.target.strip(), draft.control.strip()
    lengths = (count(text) if text else 0 for text in (target, control))
    return CotPair(task.problem, task.cot, task.answer, target, control, *lengths)


def fault_of(pair: CotPair, limit: float) -> str | None:
    """What puts a pair outside the limits, or None; the part before the colon is the kind that is counted."""
    if not pair.target or not pair.control:
        return "the writer returned nothing"
    if has_number(pair.answer):
        for name in ("target", "control"):
            if not is_correct(getattr(pair, name), pair.answer):
                return f"the {name} reaches another answer"
    if pair.length_gap > limit:
        return (
            f"lengths differ too much: {pair.target_tokens} and {pair.control_tokens} tokens, limit {100 * limit:.0f} %"
        )
    return None


def has_number(answer: str) -> bool:
    """Whether an answer can be compared as a number; others are kept as they are."""
    return any(map(str.isdigit, answer))


def counter(tokenizer: Any) -> Count:
    """A text's number of tokens by a tokenizer or a LensModel."""
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    if not callable(tokenizer):
        raise RimLensError(f"A {type(tokenizer).__name__} is not a tokenizer; pass a model's tokenizer or a LensModel.")
    return lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"])
