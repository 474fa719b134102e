"""Answers, and likelihoods of given answers, with sets of neurons ablated from the decision position on, many sets at once.

The ablation leaves the reading of the prompt alone, so prompts are computed once and every set costs the tokens of its answer.

answers                    greedy, judged as refused, complied or incoherent
log-likelihood of maths    mean over the tokens of "The answer is X." of log p(token | problem, thinking off), in nats: falls
                           with the ability to solve, and says something where no problem is solved
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64

from rim_lens.behavior.generate import is_thinking
from rim_lens.behavior.judge import LABELS
from rim_lens.behavior.refusal_score import mean_log_likelihood
from rim_lens.chat.chat import Chat
from rim_lens.data.prompts import Prompt
from rim_lens.inference_time.head_measures import AnswerMeasure, Measured
from rim_lens.inference_time.run_scores import cut_at_decision
from rim_lens.model.batch import Batch
from rim_lens.model.fitting import over_batches
from rim_lens.model.lens_model import LensModel
from rim_lens.model.prefilled import Continued, Prefilled, can_prefill
from rim_lens.processes import gather_items, n_processes, sum_over_processes
from rim_lens.progress import track
from rim_lens.training_time.set_scores import ROWS, ChangeAt, Part, over_parts, rows_at_once, rows_under_sets

ANSWER = "The answer is {answer}."


@dataclass(frozen=True)
class AnswersFromDecision:
    """What `AnswerMeasure` measures, for ablations that begin at the decision position."""

    plain: AnswerMeasure
    generated: bool = field(default=True, init=False)

    def __call__(self, sets: Sequence[Any], change: ChangeAt) -> dict[str, Measured]:
        """Indicators [set, prompt] of each label."""
        plain, chats = self.plain, list(self.plain.chats)
        model, limit = plain.model, plain.options["max_new_tokens"]
        if any(is_thinking(chat) for chat in chats) or not prefillable(model, chats):
            return plain(sets, change)
        what = f"answers under sets, {plain.where}"
        at_once = rows_at_once(what, inside=True)

        def written(part: Part) -> list[tuple[int, list[list[int]]]]:
            """Token ids of the answer under every set, prompt by prompt."""
            assert isinstance(part, Prefilled)  # prefillable
            found: dict[int, dict[int, list[int]]] = {prompt: {} for prompt in part.indices}
            run = partial(greedy, part, limit=limit)
            for rows, chosen, answers in rows_under_sets(part, sets, change, run, at_once):
                for row, one, ids in zip(rows, chosen, answers, strict=True):
                    found[part.indices[row]][one] = ids
            return [(prompt, [of[one] for one in range(len(sets))]) for prompt, of in found.items()]

        parts = track(over_parts(model, chats, ROWS, written, what), what, math.ceil(len(chats) / ROWS / n_processes()))
        mine = [pair for part in parts for pair in part]
        answers = gather_items(len(chats), [prompt for prompt, _ in mine], [ids for _, ids in mine])
        labels = np.empty((len(sets), len(chats)), dtype="U12")
        requests, cots = [chat.request for chat in chats], [chat.segment_text("cot").strip() for chat in chats]
        for one in range(len(sets)):
            texts = [model.chat_format.decode(of[one]).strip() for of in answers]
            cut = [len(of[one]) >= limit for of in answers]
            labels[one] = [judged.label for judged in plain.judge(requests, texts, cots, cut)]
        return {f"{label}, {plain.where}": Measured((labels == label).astype(float), is_share=True) for label in LABELS}


def prefillable(model: LensModel, chats: Sequence[Chat]) -> bool:
    """Whether all these chats can be computed once up to their decision positions."""
    return all(can_prefill(model, batch) for _, batch in model.batches([cut_at_decision(chat) for chat in chats], ROWS))


def greedy(part: Prefilled, rows: Sequence[int], limit: int) -> list[list[int]]:
    """The most likely tokens of every row, until it ends its turn or reaches the limit."""
    model, run = part.model, Continued(part, rows)
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
        answers = [
            self.model.chat_format.encode_after(chat.text, ANSWER.format(answer=problem.answer))
            for chat, problem in zip(chats, self.problems, strict=True)
        ]
        what = "log-likelihood of maths answers under sets"
        if self.from_decision and prefillable(self.model, chats):
            values = self._continued(sets, change, chats, answers, what)
        else:
            values = self._whole(sets, change, chats, answers, what)
        return {"log-likelihood of maths answers": Measured(values, is_share=False)}

    def _continued(
        self, sets: Sequence[Any], change: ChangeAt, chats: list[Chat], answers: Sequence[Sequence[int]], what: str
    ) -> Float[np.ndarray, "set problem"]:
        """With problems that are computed once."""
        values, at_once = torch.zeros(len(sets), len(chats), dtype=torch.float64), rows_at_once(what, inside=True)

        def scored(part: Part) -> None:
            assert isinstance(part, Prefilled)  # prefillable
            wanted = [answers[prompt] for prompt in part.indices]
            run = partial(likelihood, part, wanted)
            for rows, chosen, found in rows_under_sets(part, sets, change, run, at_once):
                values[chosen, [part.indices[row] for row in rows]] = found

        parts = over_parts(self.model, chats, self.batch_size, scored, what)
        for _ in track(parts, what, math.ceil(len(chats) / self.batch_size / n_processes())):
            pass
        return sum_over_processes(values).numpy()

    def _whole(
        self, sets: Sequence[Any], change: ChangeAt, chats: list[Chat], answers: Sequence[Sequence[int]], what: str
    ) -> Float[np.ndarray, "set problem"]:
        """By whole passes over prompts and answers."""
        written = [chat.extend(ids, "response") for chat, ids in zip(chats, answers, strict=True)]
        values = np.empty((len(sets), len(chats)))
        for one, units in enumerate(track(sets, what)):

            def scored(indices: list[int], batch: Batch, one: int = one, units: Any = units) -> None:
                with change(units):
                    values[one, indices] = mean_log_likelihood(self.model, batch)

            for _ in over_batches(self.model, written, self.batch_size, scored, what, split=False):
                pass
        return values


def likelihood(part: Prefilled, answers: Sequence[Sequence[int]], rows: Sequence[int]) -> Float64[torch.Tensor, " row"]:
    """Mean log-probability of each row's prompt's answer; `answers` has one a prompt of the part."""
    wanted = [answers[row] for row in rows]
    lengths = torch.tensor([len(ids) for ids in wanted])
    filled = torch.tensor([[*ids, *[ids[-1]] * (int(lengths.max()) - len(ids))] for ids in wanted])
    tokens = filled.to(part.batch.tokens.device)
    log_p = part.answer_logits(tokens, rows).log_softmax(-1)
    each = log_p.gather(-1, tokens[..., None])[..., 0].double().cpu()
    inside = torch.arange(filled.shape[1]) < lengths[:, None]
    return (each * inside).sum(1) / lengths
