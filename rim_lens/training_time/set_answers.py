"""Answers, and likelihoods of given answers, with sets of neurons ablated from the decision position on, many sets at once.

The ablation leaves the reading of the prompt alone, so prompts are computed once and every set costs the tokens of its answer.

answers                    greedy, judged as refused, complied or incoherent
log-likelihood of maths    mean over the tokens of "The answer is X." of log p(token | problem, thinking off), in nats: falls
                           with the ability to solve, and says something where no problem is solved
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from rim_lens.behavior.generate import is_thinking
from rim_lens.behavior.judge import LABELS
from rim_lens.behavior.refusal_score import mean_log_likelihood
from rim_lens.data.prompts import Prompt
from rim_lens.inference_time.head_measures import AnswerMeasure, Measured
from rim_lens.model.chat import Chat
from rim_lens.model.lens_model import LensModel
from rim_lens.model.prefilled import Continued, Prefilled
from rim_lens.progress import track
from rim_lens.training_time.set_scores import ROWS, ChangeAt, parts_of

ANSWER = "The answer is {answer}."


@dataclass(frozen=True)
class AnswersFromDecision:
    """What `AnswerMeasure` measures, for ablations that begin at the decision position."""

    plain: AnswerMeasure
    generated: bool = field(default=True, init=False)

    def __call__(self, sets: Sequence[Any], change: ChangeAt) -> dict[str, Measured]:
        """Indicators [set, prompt] of each label."""
        plain, chats = self.plain, list(self.plain.chats)
        parts = [] if any(is_thinking(chat) for chat in chats) else parts_of(plain.model, chats, ROWS)
        if not parts or not all(isinstance(part, Prefilled) for part in parts):
            return plain(sets, change)
        limit = plain.options["max_new_tokens"]
        answers: dict[tuple[int, int], tuple[str, bool]] = {}
        for part in track(parts, f"answers under sets, {plain.where}"):
            for group in groups_of(part, sets):
                with change([sets[one] for _ in range(len(part)) for one in group], where="all"):
                    found = greedy(plain.model, Continued(part, len(group)), limit)
                for row, ids in enumerate(found):
                    prompt, one = part.indices[row // len(group)], group[row % len(group)]
                    answers[one, prompt] = plain.model.chat_format.decode(ids).strip(), len(ids) >= limit
        labels = np.empty((len(sets), len(chats)), dtype="U12")
        requests, cots = [chat.request for chat in chats], [chat.segment_text("cot").strip() for chat in chats]
        for one in range(len(sets)):
            texts, cut = zip(*(answers[one, prompt] for prompt in range(len(chats))), strict=True)
            labels[one] = [judged.label for judged in plain.judge(requests, list(texts), cots, list(cut))]
        return {f"{label}, {plain.where}": Measured((labels == label).astype(float), is_share=True) for label in LABELS}


def groups_of(part: Prefilled, sets: Sequence[Any]) -> Iterator[range]:
    """The sets, as indices, that share a pass over the prompts of a part."""
    together = max(1, ROWS // len(part))
    for start in range(0, len(sets), together):
        yield range(start, min(start + together, len(sets)))


def greedy(model: LensModel, run: Continued, limit: int) -> list[list[int]]:
    """The most likely tokens of every row, until it ends its turn or reaches the limit."""
    found: list[list[int]] = [[] for _ in range(len(run.logits))]
    going = [True] * len(found)
    while any(going):
        chosen = run.logits.argmax(-1)
        for row, token in enumerate(chosen.tolist()):
            going[row] = going[row] and token not in model.chat_format.eos_ids
            if going[row]:
                found[row].append(token)
                going[row] = len(found[row]) < limit
        if any(going):
            run.step(chosen)
    return found


@dataclass(frozen=True)
class MathsLikelihood:
    """Mean log-likelihood per token of each problem's right answer, thinking off."""

    model: LensModel
    problems: Sequence[Prompt]
    from_decision: bool
    batch_size: int = 32
    generated: bool = field(default=False, init=False)

    @torch.no_grad()
    def __call__(self, sets: Sequence[Any], change: ChangeAt) -> dict[str, Measured]:
        """Log-likelihoods [set, problem]."""
        chats = self.model.render([problem.text for problem in self.problems], thinking="off")
        answers = [self.model.encode(ANSWER.format(answer=problem.answer)) for problem in self.problems]
        parts = parts_of(self.model, chats, self.batch_size) if self.from_decision else []
        if parts and all(isinstance(part, Prefilled) for part in parts):
            values = np.empty((len(sets), len(chats)))
            for part in track(parts, "likelihood of maths answers under sets"):
                wanted = [answers[prompt] for prompt in part.indices]
                for group in groups_of(part, sets):
                    with change([sets[one] for _ in range(len(part)) for one in group], where="all"):
                        found = likelihood(part, wanted, len(group))
                    values[np.ix_(list(group), list(part.indices))] = found.T
        else:
            values = self._whole(sets, change, chats, answers)
        return {"log-likelihood of maths answers": Measured(values, is_share=False)}

    def _whole(self, sets: Sequence[Any], change: ChangeAt, chats: list[Chat], answers: list[list[int]]) -> np.ndarray:
        """By whole passes over prompts and answers."""
        written = [chat.extend(ids, "response") for chat, ids in zip(chats, answers, strict=True)]
        values = np.empty((len(sets), len(chats)))
        for one, units in enumerate(track(sets, "likelihood of maths answers under sets")):
            for indices, batch in self.model.batches(written, self.batch_size):
                with change(units):
                    values[one, indices] = mean_log_likelihood(self.model, batch)
        return values


def likelihood(part: Prefilled, answers: Sequence[Sequence[int]], runs: int) -> Float[np.ndarray, "prompt run"]:
    """Mean log-probability of every prompt's answer in each run, in float64."""
    lengths = torch.tensor([len(ids) for ids in answers])
    filled = torch.tensor([[*ids, *[ids[-1]] * (int(lengths.max()) - len(ids))] for ids in answers])
    tokens = filled.to(part.batch.tokens.device)
    log_p = part.answer_logits(tokens, runs).log_softmax(-1)
    each = log_p.gather(-1, tokens.repeat_interleave(runs, 0)[..., None])[..., 0].double().cpu()
    inside = torch.arange(filled.shape[1]) < lengths.repeat_interleave(runs)[:, None]
    total = (each * inside).sum(1) / lengths.repeat_interleave(runs)
    return total.view(len(part), runs).numpy()
