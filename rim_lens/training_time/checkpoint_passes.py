"""What a series is asked, and the passes that answer it at one checkpoint: every prompt is computed once.

The pass over prompts leaves their keys and values (`PromptCache`); heads are ablated, answers written and right answers
scored from these. A model that allows no such cache, or memory that does not hold it, takes a pass for each.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int

from rim_lens.behavior.conditions import Asked, Condition, judged_answers
from rim_lens.behavior.generate import generate
from rim_lens.behavior.judge import Judge, RefusalJudge
from rim_lens.behavior.maths import solved
from rim_lens.behavior.refusal_score import RefusalTokens
from rim_lens.behavior.sampling import Sampling, sampling_for
from rim_lens.causal.set_answers import likelihood
from rim_lens.causal.set_scores import without_heads
from rim_lens.chat.chat import Chat
from rim_lens.chat.positions import Positions
from rim_lens.chat.segments import Thinking
from rim_lens.data.prompts import PromptSet
from rim_lens.model.lens_model import LensModel
from rim_lens.model.prompt_cache import PromptCache
from rim_lens.processes import gather_items, n_processes, rank, share, sum_over_processes
from rim_lens.training_time.prompt_pass import pass_over
from rim_lens.training_time.series import Checkpoint
from rim_lens.training_time.series_measures import AtCheckpoint, DecisionReader
from rim_lens.training_time.series_problems import STATED, WORKED, likelihoods, right_answer
from rim_lens.units import Head


@dataclass(frozen=True, eq=False)
class Answering:
    """How the safety prompts are answered and judged."""

    prompts: PromptSet
    judge: Judge
    sampling: Sampling
    thinking: Thinking
    options: dict[str, Any]

    @classmethod
    def of(
        cls,
        model: LensModel,
        prompts: PromptSet,
        judge: Judge | None,
        max_new_tokens: int,
        temperature: float | None,
        top_p: float | None,
        samples: int,
        seed: int,
        thinking: Thinking,
    ) -> "Answering":
        """With the base model's sampling where none is asked for, at every checkpoint."""
        sampling = sampling_for(model, temperature, top_p, samples)
        drawn = {"temperature": sampling.temperature, "top_p": sampling.top_p, "samples": samples, "seed": seed}
        return cls(prompts, judge or RefusalJudge(), sampling, thinking, {"max_new_tokens": max_new_tokens, **drawn})


@dataclass(frozen=True, eq=False)
class MathsAnswering:
    """The problems, the chats in which they are answered right, and how they are solved, if they are."""

    problems: PromptSet
    right: list[Chat]
    worked: bool
    solve: bool
    options: dict[str, Any]

    @classmethod
    def of(cls, model: LensModel, problems: PromptSet, solve: bool, tokens: int, cot_budget: int) -> "MathsAnswering":
        """Worked answers where all problems have rationales, else the stated ones."""
        worked = all(problem.rationale for problem in problems)
        right = [right_answer(model, problem, worked) for problem in problems]
        options = {"temperature": 0, "max_new_tokens": tokens, "cot_budget": cot_budget, "progress": False}
        return cls(problems, right, worked, solve, options)

    def after(self, chats: Sequence[Chat]) -> list[list[int]] | None:
        """The right answers' tokens after these chats; None where the answers are not written after them."""
        pairs = list(zip(self.right, chats, strict=True))
        if not self.worked or any(
            whole.token_ids[: len(chat)].tolist() != chat.token_ids.tolist() for whole, chat in pairs
        ):
            return None
        return [whole.token_ids[len(chat) :].tolist() for whole, chat in pairs]


@dataclass(eq=False)
class Passes:
    """Measures one checkpoint after the other, the reference first."""

    safety: Sequence[Chat]
    task: Sequence[Chat]
    inside: bool  # whether neurons, KL and distances are measured, and not answers alone
    rows: Int[np.ndarray, "neuron index"] | None
    head_sets: Sequence[Sequence[Head]]
    tokens: RefusalTokens
    positions: Positions
    answering: Answering | None
    maths: MathsAnswering | None
    maths_chats: Sequence[Chat]
    batch_size: int
    reader: DecisionReader = field(init=False)
    task_reader: DecisionReader = field(init=False)

    def __post_init__(self) -> None:
        self.reader = DecisionReader(self.tokens, len(self.safety))
        self.task_reader = DecisionReader(self.tokens, len(self.task))

    def at(self, checkpoint: Checkpoint, model: LensModel, distance: float, *, is_reference: bool) -> AtCheckpoint:
        """Everything at one checkpoint, whose weights the model has."""
        options: Any = {"batch_size": self.batch_size, "per_prompt": False if self.rows is None else self.rows}
        safety = task = attention = scores = answers = maths = None
        refusal = kl = task_kl = np.full(0, np.nan)
        caches: Sequence[PromptCache] = ()
        if self.inside and self.safety:
            self.reader.begin(is_reference)
            follow = bool(self.head_sets)
            measures = pass_over(
                model, self.safety, self.positions, at_decision=self.reader, attention=follow,
                keep=follow or self.answering is not None, **options,
            )  # fmt: skip
            safety, attention, caches = measures.neurons, measures.attention, measures.kept
            refusal, kl = self.reader.of_all(self.reader.refusal), self.reader.of_all(self.reader.kl)
            scores = without_heads(model, self.safety, self.head_sets, self.tokens, caches) if follow else None
        if self.answering is not None:
            answers = self.answers(self.answering, model, caches).assign(checkpoint=checkpoint.name)
            answers.insert(0, "checkpoint", answers.pop("checkpoint"))
            if not self.inside:
                refusal = answers.groupby("prompt")["refusal_score"].mean().to_numpy()
        caches = ()
        if self.inside and self.task:
            self.task_reader.begin(is_reference)
            measures = pass_over(
                model, self.task, self.positions, at_decision=self.task_reader,
                keep=self.task is self.maths_chats, **options,
            )  # fmt: skip
            task, caches = measures.neurons, measures.kept
            task_kl = self.task_reader.of_all(self.task_reader.kl)
        if self.maths is not None:
            maths = self.maths_rows(self.maths, model, caches)
            maths.insert(0, "checkpoint", checkpoint.name)
        return AtCheckpoint(
            checkpoint, safety, task, refusal, kl, distance, attention, scores,
            answers=answers, maths=maths, task_kl=task_kl,
        )  # fmt: skip

    def answers(self, asked: Answering, model: LensModel, caches: Sequence[PromptCache]) -> pd.DataFrame:
        """Judged answers to the safety prompts."""
        generations = generate(
            model, list(self.safety), decision_score=self.tokens.score, started=of_all_processes(caches, self.safety),
            batch_size=self.batch_size, progress=False, **asked.options,
        )  # fmt: skip
        rows = [Asked(i, -1, k) for i in range(len(self.safety)) for k in range(asked.options["samples"])]
        condition = Condition(asked.thinking, asked.thinking)
        return judged_answers(list(asked.prompts), condition, rows, generations, asked.judge)

    def maths_rows(self, maths: MathsAnswering, model: LensModel, caches: Sequence[PromptCache]) -> pd.DataFrame:
        """Likelihood of the right answer to each problem and, where they are solved, the model's own."""
        started, after = of_all_processes(caches, self.maths_chats), maths.after(self.maths_chats)
        if started and after is not None:
            values = likelihoods_after(started, after)
        else:
            values = likelihoods(model, maths.right, WORKED if maths.worked else STATED, self.batch_size)
        rows = pd.DataFrame({"prompt": range(len(maths.right)), "likelihood": values})
        if not maths.solve:
            return rows
        generations = generate(
            model, list(self.maths_chats), started=started, batch_size=self.batch_size, **maths.options
        )
        return rows.assign(
            solved=solved(list(maths.problems), generations),
            cot=[generation.cot for generation in generations],
            response=[generation.response for generation in generations],
        )


def of_all_processes(caches: Sequence[PromptCache], chats: Sequence[Chat]) -> Sequence[PromptCache]:
    """The prompts kept here, where every process has kept its own; otherwise none, so that all go the same way."""
    here = bool(caches) or not share(len(chats))
    return caches if all(gather_items(n_processes(), [rank()], [here])) else ()


@torch.no_grad()
def likelihoods_after(parts: Sequence[PromptCache], answers: Sequence[Sequence[int]]) -> Float[np.ndarray, "prompt"]:
    """Mean log-probability per token of each prompt's answer, in nats."""
    values = torch.zeros(len(answers), dtype=torch.float64)
    for part in parts:
        wanted = [answers[prompt] for prompt in part.indices]
        values[list(part.indices)] = likelihood(part, wanted, range(len(part)))
    return sum_over_processes(values).numpy()
