"""What is measured while a set of heads is changed: refusal score, judged answers, maths accuracy; a value per prompt.

A measure is asked for many sets at once, which share what they have in common (`run_scores`, `set_scores`,
`set_answers`).
"""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from rim_lens.behavior.generate import Generation, generate
from rim_lens.behavior.judge import LABELS, Judge
from rim_lens.behavior.maths import solved
from rim_lens.behavior.refusal_score import RefusalTokens, refusal_score
from rim_lens.causal.ablation import Ablation
from rim_lens.causal.run_scores import score_runs
from rim_lens.causal.set_answers import ANSWER, answers_of_sets, continues, likelihoods_of_sets
from rim_lens.causal.set_scores import Change, scores_of_sets
from rim_lens.chat.chat import Chat
from rim_lens.chat.segments import Thinking
from rim_lens.data.prompts import Prompt
from rim_lens.model.as_chats import as_chats
from rim_lens.model.lens_model import LensModel
from rim_lens.progress import track
from rim_lens.units import Head

HeadSet = Sequence[Head]


@dataclass(frozen=True, eq=False)
class Measured:
    """Values per head set and prompt; 0 and 1 where `is_share` (a rate over prompts), else in nats."""

    values: Float[np.ndarray, "set prompt"]
    is_share: bool


@dataclass(frozen=True)
class ScoreMeasure:
    """Refusal score at the decision position: no generation, so every control set is affordable.

    How it is computed follows from the change: zeroed heads are resumed where the first one is changed
    (`causal.run_scores`), any other change is made in rows of passes (`causal.set_scores`).
    """

    model: LensModel
    chats: Sequence[Chat]
    tokens: RefusalTokens
    where: str
    batch_size: int = 32
    cost: str = field(default="score", init=False)

    @torch.no_grad()
    def __call__(self, sets: Sequence[HeadSet], change: Change) -> dict[str, Measured]:
        """Scores [set, prompt] under the name "refusal score, <where>"."""
        return {f"refusal score, {self.where}": Measured(self._scores(sets, change), is_share=False)}

    def _scores(self, sets: Sequence[HeadSet], change: Change) -> Float[np.ndarray, "set prompt"]:
        if not any(len(one) for one in sets):
            return np.repeat(refusal_score(self.model, self.chats, self.tokens)[None], len(sets), axis=0)
        what = f"refusal score under sets, {self.where}"
        if isinstance(change, Ablation) and change.kind == "heads" and change.method == "zero":
            at, score = change.positions, self.tokens.score
            return score_runs(self.model, self.chats, sets, score, positions=at, description=what).changed.T
        size = self.batch_size
        return scores_of_sets(self.model, self.chats, sets, change, self.tokens, batch_size=size, description=what)


def answers_under(
    model: LensModel,
    chats: Sequence[Chat],
    sets: Sequence[HeadSet],
    change: Change,
    options: dict[str, Any],
    what: str,
) -> Iterator[list[Generation]]:
    """Greedy answers to the chats under one set after the other; vLLM writes those of all sets in one batch."""
    options = {"temperature": 0, "progress": False, **options}
    if model.engine is not None and len(sets) > 1 and not len(sets[0]):  # the untouched model
        yield generate(model, list(chats), **options)
        sets = sets[1:]
    if model.engine is not None and all(len(units) for units in sets):
        with change([units for units in sets for _ in chats]):
            answers = generate(model, [chat for _ in sets for chat in chats], **options)
        yield from (answers[start : start + len(chats)] for start in range(0, len(answers), len(chats)))
        return
    for units in track(sets, what):
        with change(units) if units else nullcontext():
            answers = generate(model, list(chats), **options)
        yield answers


@dataclass(frozen=True)
class AnswerMeasure:
    """Answers generated with few tokens and judged: shares of refused, complied and incoherent ones."""

    model: LensModel
    chats: Sequence[Chat]
    judge: Judge
    where: str
    options: dict[str, Any]
    cost: str = field(default="answers", init=False)

    def __call__(self, sets: Sequence[HeadSet], change: Change) -> dict[str, Measured]:
        """Indicators [set, prompt] of each label."""
        if getattr(change, "positions", None) == "from_decision" and continues(self.model, self.chats):
            labels = self._from_decision(sets, change)  # type: ignore[arg-type]
        else:
            labels = self._one_after_the_other(sets, change)
        return {f"{label}, {self.where}": Measured((labels == label).astype(float), is_share=True) for label in LABELS}

    def _one_after_the_other(self, sets: Sequence[HeadSet], change: Change) -> np.ndarray:
        labels = np.empty((len(sets), len(self.chats)), dtype="U12")
        what = f"answers under head sets, {self.where}"
        for i, answers in enumerate(answers_under(self.model, self.chats, sets, change, self.options, what)):
            labels[i] = self._labels(answers)
        return labels

    def _from_decision(self, sets: Sequence[HeadSet], change: Ablation) -> np.ndarray:
        """Prompts are computed once, and every set costs the tokens of its answer."""
        limit, what = self.options["max_new_tokens"], f"answers under sets, {self.where}"
        answers = answers_of_sets(self.model, self.chats, sets, change, limit, what)
        return np.array([self._labels([of[one] for of in answers]) for one in range(len(sets))], dtype="U12")

    def _labels(self, answers: Sequence[Generation]) -> list[str]:
        requests = [chat.request for chat in self.chats]
        judged = self.judge(
            requests, [a.response for a in answers], [a.cot for a in answers], [a.truncated for a in answers]
        )
        return [one.label for one in judged]


@dataclass(frozen=True)
class MathsMeasure:
    """Maths problems solved: what a change of heads costs."""

    model: LensModel
    problems: Sequence[Prompt]
    thinking: Thinking
    options: dict[str, Any]
    cost: str = field(default="answers", init=False)

    def __call__(self, sets: Sequence[HeadSet], change: Change) -> dict[str, Measured]:
        """Indicators [set, problem] of a right answer."""
        chats = as_chats(self.model, [problem.text for problem in self.problems], thinking=self.thinking)
        right = np.empty((len(sets), len(chats)))
        for i, answers in enumerate(
            answers_under(self.model, chats, sets, change, self.options, "maths under head sets")
        ):
            right[i] = solved(self.problems, answers)
        return {"maths solved": Measured(right, is_share=True)}


@dataclass(frozen=True)
class MathsLikelihood:
    """Mean log-likelihood per token of each problem's right answer, thinking off, in nats."""

    model: LensModel
    problems: Sequence[Prompt]
    batch_size: int = 32
    cost: str = field(default="likelihood", init=False)

    def __call__(self, sets: Sequence[HeadSet], change: Change) -> dict[str, Measured]:
        """Log-likelihoods [set, problem]."""
        chats = self.model.render([problem.text for problem in self.problems], thinking="off")
        answers = [
            self.model.chat_format.encode_after(chat.text, ANSWER.format(answer=problem.answer))
            for chat, problem in zip(chats, self.problems, strict=True)
        ]
        values = likelihoods_of_sets(self.model, chats, answers, sets, change, self.batch_size)
        return {"log-likelihood of maths answers": Measured(values, is_share=False)}
