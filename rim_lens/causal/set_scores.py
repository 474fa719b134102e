"""Refusal scores with sets of heads or neurons changed at the decision position alone.

Where prompts were computed once (`PromptCache`), a run costs one token per prompt, and several sets share a pass, each
row of the batch having its own; other models take a whole pass per set.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Float64

from rim_lens.behavior.refusal_score import RefusalTokens
from rim_lens.causal.run_scores import cut_at_decision
from rim_lens.chat.chat import Chat
from rim_lens.chat.positions import Positions
from rim_lens.intervene.heads import ablate_heads
from rim_lens.model.batch import Batch
from rim_lens.model.fitting import AtOnce, over_batches
from rim_lens.model.lens_model import LensModel
from rim_lens.model.prompt_cache import PromptCache, can_prefill, prefill
from rim_lens.processes import n_processes, sum_over_processes
from rim_lens.progress import track
from rim_lens.units import Head

T = TypeVar("T")
Part = PromptCache | tuple[list[int], Batch]  # prompts that were computed once, or a batch with its prompts' indices
ROWS = 64  # of a pass that computes one token per row: more of them only move more cached keys about
# Called with one set a row and where=: changes them for the time of a block, at "all" positions of the pass or at
# "decision".
ChangeAt = Callable[..., AbstractContextManager[Any]]


def scores_of_sets(
    model: LensModel,
    chats: Sequence[Chat],
    sets: Sequence[Any],
    change: ChangeAt,
    tokens: RefusalTokens,
    *,
    kept: Sequence[PromptCache] = (),
    batch_size: int = 32,
    description: str = "refusal score under sets",
) -> Float[np.ndarray, "set prompt"]:
    """Refusal score of every prompt with each set changed at its decision position.

    `kept` from a pass over these chats.
    """
    scores = torch.zeros(len(sets), len(chats), dtype=torch.float64)

    def score(part: Part, at_once: AtOnce) -> None:
        for prompts, group, values in scores_of_part(model, part, sets, change, tokens, at_once):
            scores[group, prompts] = values

    if kept:
        at_once = rows_at_once(description)
        for part in track(kept, description):
            score(part, at_once)
    else:
        inner, total = rows_at_once(description, inside=True), math.ceil(len(chats) / batch_size / n_processes())
        scored = over_parts(model, chats, batch_size, lambda part: score(part, inner), description)
        for _ in track(scored, description, total):
            pass
    return sum_over_processes(scores).numpy()


def rows_at_once(what: str, *, inside: bool = False) -> AtOnce:
    """How many rows (a prompt under a set) a pass from the decision position on has."""
    return AtOnce(ROWS, what, "rows", inside=inside)


def over_parts(
    model: LensModel, chats: Sequence[Chat], batch_size: int, work: Callable[[Part], T], what: str
) -> Iterator[T]:
    """What `work` gives for this process's chats, a batch at a time, prefilled where the model allows it."""

    def begun(prompts: list[int], batch: Batch) -> T:
        return work(prefill(model, prompts, batch) if can_prefill(model, batch) else (prompts, batch))

    return over_batches(model, [cut_at_decision(chat) for chat in chats], batch_size, begun, what)


def rows_under_sets(
    part: PromptCache,
    sets: Sequence[Any],
    change: ChangeAt,
    run: Callable[[Sequence[int]], T],
    at_once: AtOnce,
) -> Iterator[tuple[list[int], list[int], T]]:
    """What `run` gives for rows of a part, each with one of the sets changed, and the rows' places and sets.

    All prompts of the part share a pass with as many sets as fit into `ROWS`, or fewer rows where memory runs out.
    """

    def some_rows(pairs: Sequence[tuple[int, int]]) -> tuple[list[int], list[int], T]:
        rows, chosen = (list(column) for column in zip(*pairs, strict=True))
        with change([sets[one] for one in chosen], where="all"):
            return rows, chosen, run(rows)

    together = max(1, ROWS // len(part))
    for start in range(0, len(sets), together):
        group = range(start, min(start + together, len(sets)))
        yield from at_once.parts([(row, one) for row in range(len(part)) for one in group], some_rows)


@torch.no_grad()
def scores_of_part(
    model: LensModel, part: Part, sets: Sequence[Any], change: ChangeAt, tokens: RefusalTokens, at_once: AtOnce
) -> Iterator[tuple[list[int], list[int], Float64[torch.Tensor, " row"]]]:
    """Refusal score of every prompt of a part under every set, some rows at a time, with their prompts and sets."""
    if isinstance(part, PromptCache):
        ready = part

        def run(rows: Sequence[int]) -> Float64[torch.Tensor, " row"]:
            return tokens.score(ready.decision_logits(rows)).double().cpu()

        for rows, chosen, values in rows_under_sets(part, sets, change, run, at_once):
            yield [part.indices[row] for row in rows], chosen, values
        return
    prompts, batch = part
    for one, units in enumerate(sets):
        with change([units] * len(batch), where="decision"):
            values = tokens.score(model.decision_logits(batch)).double().cpu()
        yield prompts, [one] * len(prompts), values


def without_heads(
    model: LensModel,
    chats: Sequence[Chat],
    sets: Sequence[Sequence[Head]],
    tokens: RefusalTokens,
    kept: Sequence[PromptCache] = (),
) -> Float[np.ndarray, "set prompt"]:
    """Refusal score without each set of heads at the decision position."""
    change = partial(zeroed_heads, model)
    return scores_of_sets(model, chats, sets, change, tokens, kept=kept, description="heads at a checkpoint")


def zeroed_heads(model: LensModel, sets: Sequence[Sequence[Head]], where: Positions) -> AbstractContextManager[Any]:
    """Zero ablation of one set of heads per row."""
    return ablate_heads(model, [list(heads) for heads in sets], positions=where)
