"""Refusal scores with sets of units changed: rows of a pass are pairs of a prompt and a set.

Where units are changed from the decision position on, prompts are computed once (`PromptCache`) and a row costs one
token. Any other change costs whole passes. Where all columns are changed alike, the tokens that all prompts begin with
are computed once per set. Several sets share a pass where prompts are few, each row having its own.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float

from rim_lens.behavior.refusal_score import RefusalTokens
from rim_lens.causal.ablation import Ablation, ablation
from rim_lens.causal.run_scores import cut_at_decision
from rim_lens.chat.chat import Chat
from rim_lens.model.batch import Batch
from rim_lens.model.fitting import AtOnce, over_batches
from rim_lens.model.lens_model import LensModel
from rim_lens.model.prompt_cache import PromptCache, SharedStart, can_prefill, prefill, repeated
from rim_lens.processes import n_processes, sum_over_processes
from rim_lens.progress import track
from rim_lens.units import Head

T = TypeVar("T")
ROWS = 64  # of a pass that computes one token per row: more of them only move more cached keys about
# Changes units for the time of a block: one set for all rows, or a list with one set per row of the batch. Where
# prompts are computed once it also takes where="all", the positions of the pass that goes on from them.
Change = Callable[..., AbstractContextManager[Any]]


@dataclass(frozen=True, eq=False)
class WholePasses:
    """A batch whose runs are whole passes; `indices` are its prompts."""

    model: LensModel
    indices: Sequence[int]
    batch: Batch

    def __len__(self) -> int:
        """Number of prompts."""
        return len(self.batch)

    @torch.no_grad()
    def decision_logits(self, rows: Sequence[int]) -> Float[torch.Tensor, "row vocab"]:
        """As `PromptCache.decision_logits`."""
        return self.model.decision_logits(repeated(self.batch, torch.tensor(list(rows))))


Part = PromptCache | WholePasses


def starts_at_decision(change: Change) -> bool:
    """Whether a change leaves alone what comes before the decision position."""
    return getattr(change, "positions", "all") in ("decision", "from_decision")


def is_alike(change: Change) -> bool:
    """Whether a change does the same to every column."""
    return isinstance(change, Ablation) and change.positions == "all" and change.method == "zero"


def scores_of_sets(
    model: LensModel,
    chats: Sequence[Chat],
    sets: Sequence[Any],
    change: Change,
    tokens: RefusalTokens,
    *,
    kept: Sequence[PromptCache] = (),
    batch_size: int = 32,
    description: str = "refusal score under sets",
) -> Float[np.ndarray, "set prompt"]:
    """Refusal score of every prompt under each set; `kept` from a pass over these chats."""
    scores = torch.zeros(len(sets), len(chats), dtype=torch.float64)
    once = starts_at_decision(change)
    at_once = AtOnce(ROWS if once else batch_size, description, "rows", inside=not kept)

    def score(part: Part) -> None:
        if isinstance(part, WholePasses) and is_alike(change):
            start = SharedStart.of(model, part.batch)
            if start.shared:
                for one, units in enumerate(sets):
                    with change(units):
                        scores[one, list(part.indices)] = tokens.score(start.decision_logits()).double().cpu()
                return
        for rows, chosen, logits in rows_under_sets(part, sets, change, part.decision_logits, at_once):
            scores[chosen, [part.indices[row] for row in rows]] = tokens.score(logits).double().cpu()

    if kept:
        for part in track(kept, description):
            score(part)
    else:
        total = math.ceil(len(chats) / batch_size / n_processes())
        for _ in track(over_parts(model, chats, batch_size, score, description, once=once), description, total):
            pass
    return sum_over_processes(scores).numpy()


def over_parts(
    model: LensModel, chats: Sequence[Chat], batch_size: int, work: Callable[[Part], T], what: str, *, once: bool = True
) -> Iterator[T]:
    """What `work` gives for this process's chats, a batch at a time, computed `once` where the model allows it."""

    def begun(prompts: list[int], batch: Batch) -> T:
        if once and can_prefill(model, batch):
            return work(prefill(model, prompts, batch))
        return work(WholePasses(model, prompts, batch))

    return over_batches(model, [cut_at_decision(chat) for chat in chats], batch_size, begun, what)


def rows_under_sets(
    part: Part, sets: Sequence[Any], change: Change, run: Callable[[Sequence[int]], T], at_once: AtOnce
) -> Iterator[tuple[list[int], list[int], T]]:
    """What `run` gives for rows of a part, each with one of the sets changed, and the rows' places and sets.

    All prompts of the part share a pass with as many sets as fit, or fewer rows where memory runs out.
    """
    where = {"where": "all"} if isinstance(part, PromptCache) else {}

    def some_rows(pairs: Sequence[tuple[int, int]]) -> tuple[list[int], list[int], T]:
        rows, chosen = (list(column) for column in zip(*pairs, strict=True))
        with change(sets[chosen[0]] if len(set(chosen)) == 1 else [sets[one] for one in chosen], **where):
            return rows, chosen, run(rows)

    together = max(1, at_once.size // len(part))
    for start in range(0, len(sets), together):
        group = range(start, min(start + together, len(sets)))
        yield from at_once.parts([(row, one) for row in range(len(part)) for one in group], some_rows)


def without_heads(
    model: LensModel,
    chats: Sequence[Chat],
    sets: Sequence[Sequence[Head]],
    tokens: RefusalTokens,
    kept: Sequence[PromptCache] = (),
) -> Float[np.ndarray, "set prompt"]:
    """Refusal score without each set of heads at the decision position."""
    change = ablation(model, "heads", "zero", "decision", None)
    return scores_of_sets(model, chats, sets, change, tokens, kept=kept, description="heads at a checkpoint")
