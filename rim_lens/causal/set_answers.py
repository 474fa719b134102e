"""Answers, and likelihoods of given answers, with many sets of units ablated from the decision position on.

The ablation leaves the reading of the prompt alone, so prompts are computed once and every set costs the tokens of its
answer.

answers                    greedy, judged as refused, complied or incoherent
log-likelihood of maths    mean over the tokens of "The answer is X." of log p(token | problem, thinking off), in nats:
falls with the ability to solve, and says something where no problem is solved
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64

from rim_lens.behavior.generate import Counter, Generation, decode_rows, generation_of
from rim_lens.behavior.limits import is_thinking, limits_for
from rim_lens.behavior.refusal_score import mean_log_likelihood
from rim_lens.behavior.row import Written
from rim_lens.behavior.sampling import Picker, Sampling
from rim_lens.causal.run_scores import cut_at_decision
from rim_lens.causal.set_scores import ROWS, Change, Part, over_parts, rows_under_sets
from rim_lens.chat.chat import Chat
from rim_lens.model.batch import Batch
from rim_lens.model.fitting import AtOnce, over_batches
from rim_lens.model.lens_model import LensModel
from rim_lens.model.prompt_cache import PromptCache, can_prefill
from rim_lens.processes import gather_items, n_processes, sum_over_processes
from rim_lens.progress import track

ANSWER = "The answer is {answer}."


def continues(model: LensModel, chats: Sequence[Chat]) -> bool:
    """Whether answers to these chats can be continued from prompts that are computed once."""
    return not any(is_thinking(chat) for chat in chats) and prefillable(model, chats)


def prefillable(model: LensModel, chats: Sequence[Chat]) -> bool:
    """Whether all these chats can be computed once up to their decision positions."""
    return all(can_prefill(model, batch) for _, batch in model.batches([cut_at_decision(chat) for chat in chats], ROWS))


def answers_of_sets(
    model: LensModel, chats: Sequence[Chat], sets: Sequence[Any], change: Change, limit: int, what: str
) -> list[list[Generation]]:
    """The greedy answer to every chat under every set, [chat][set]; `continues` must hold."""
    at_once, limits = AtOnce(ROWS, what, "rows", inside=True), limits_for(model, chats, limit, 1)
    pick, chat_format = Picker(Sampling(), 0), model.chat_format

    def answered(part: PromptCache, rows: Sequence[int]) -> list[Written]:
        found = dict(decode_rows(model, part.decoder(rows), range(len(rows)), limits, pick, None, Counter()))
        return [found[row] for row in range(len(rows))]

    def written(part: Part) -> list[tuple[int, list[Generation]]]:
        assert isinstance(part, PromptCache)  # prefillable
        found: dict[int, dict[int, Generation]] = {prompt: {} for prompt in part.indices}
        for rows, chosen, answers in rows_under_sets(part, sets, change, partial(answered, part), at_once):
            for row, one, answer in zip(rows, chosen, answers, strict=True):
                prompt = part.indices[row]
                found[prompt][one] = generation_of(chats[prompt], answer, chat_format.decode, chat_format.tags)
        return [(prompt, [of[one] for one in range(len(sets))]) for prompt, of in found.items()]

    parts = track(over_parts(model, chats, ROWS, written, what), what, math.ceil(len(chats) / ROWS / n_processes()))
    mine = [pair for part in parts for pair in part]
    return gather_items(len(chats), [prompt for prompt, _ in mine], [answers for _, answers in mine])


@torch.no_grad()
def likelihoods_of_sets(
    model: LensModel,
    chats: Sequence[Chat],
    answers: Sequence[Sequence[int]],
    sets: Sequence[Any],
    change: Any,
    batch_size: int = 32,
    what: str = "log-likelihood of answers under sets",
) -> Float[np.ndarray, "set prompt"]:
    """Mean log-likelihood per token of each chat's answer under every set, in nats."""
    if getattr(change, "positions", None) != "from_decision" or not prefillable(model, chats):
        return _by_whole_passes(model, chats, answers, sets, change, batch_size, what)
    values, at_once = torch.zeros(len(sets), len(chats), dtype=torch.float64), AtOnce(ROWS, what, "rows", inside=True)

    def scored(part: Part) -> None:
        assert isinstance(part, PromptCache)  # prefillable
        run = partial(likelihood, part, [answers[prompt] for prompt in part.indices])
        for rows, chosen, found in rows_under_sets(part, sets, change, run, at_once):
            values[chosen, [part.indices[row] for row in rows]] = found

    parts = over_parts(model, chats, batch_size, scored, what)
    for _ in track(parts, what, math.ceil(len(chats) / batch_size / n_processes())):
        pass
    return sum_over_processes(values).numpy()


def _by_whole_passes(
    model: LensModel,
    chats: Sequence[Chat],
    answers: Sequence[Sequence[int]],
    sets: Sequence[Any],
    change: Any,
    batch_size: int,
    what: str,
) -> Float[np.ndarray, "set prompt"]:
    written = [chat.extend(ids, "response") for chat, ids in zip(chats, answers, strict=True)]
    values = np.empty((len(sets), len(chats)))
    for one, units in enumerate(track(sets, what)):

        def scored(indices: list[int], batch: Batch, one: int = one, units: Any = units) -> None:
            with change(units):
                values[one, indices] = mean_log_likelihood(model, batch)

        for _ in over_batches(model, written, batch_size, scored, what, split=False):
            pass
    return values


def likelihood(
    part: PromptCache, answers: Sequence[Sequence[int]], rows: Sequence[int]
) -> Float64[torch.Tensor, " row"]:
    """Mean log-probability of each row's prompt's answer; `answers` has one per prompt of the part."""
    wanted = [answers[row] for row in rows]
    lengths = torch.tensor([len(ids) for ids in wanted])
    filled = torch.tensor([[*ids, *[ids[-1]] * (int(lengths.max()) - len(ids))] for ids in wanted])
    tokens = filled.to(part.batch.tokens.device)
    log_p = part.answer_logits(tokens, rows).log_softmax(-1)
    each = log_p.gather(-1, tokens[..., None])[..., 0].double().cpu()
    inside = torch.arange(filled.shape[1]) < lengths[:, None]
    return (each * inside).sum(1) / lengths
