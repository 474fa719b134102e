"""Refusal scores with sets of heads or neurons changed at the decision position alone.

Where prompts were computed once (`Prefilled`), a run costs one token a prompt, and several sets share a pass, each row of the
batch having its own; other models take a whole pass a set.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from rim_lens.behavior.refusal_score import RefusalTokens
from rim_lens.inference_time.head_measures import Head
from rim_lens.inference_time.run_scores import cut_at_decision
from rim_lens.intervene.heads import ablate_heads
from rim_lens.intervene.selection import Where
from rim_lens.model.chat import Chat
from rim_lens.model.lens_model import LensModel
from rim_lens.model.prefilled import Prefilled, can_prefill, prefill
from rim_lens.processes import share, sum_over_processes
from rim_lens.progress import track

ROWS = 64  # of a pass that computes one token a row: more of them only move more cached keys about
# Called with one set a row and where=: changes them for the time of a block, at "all" positions of the pass or at "decision".
ChangeAt = Callable[..., AbstractContextManager[Any]]


def scores_of_sets(
    model: LensModel,
    chats: Sequence[Chat],
    sets: Sequence[Any],
    change: ChangeAt,
    tokens: RefusalTokens,
    *,
    kept: Sequence[Prefilled] = (),
    batch_size: int = 32,
    description: str = "refusal score under sets",
) -> Float[np.ndarray, "set prompt"]:
    """Refusal score of every prompt with each set changed at its decision position; `kept` from a pass over these chats."""
    scores = torch.zeros(len(sets), len(chats), dtype=torch.float64)
    parts: Sequence[Prefilled | tuple[Any, Any]] = kept or parts_of(model, chats, batch_size)
    for part in track(parts, description):
        if isinstance(part, Prefilled):
            together, prompts = max(1, ROWS // len(part)), part.indices
        else:
            together, prompts = 1, part[0]
        for start in range(0, len(sets), together):
            group = sets[start : start + together]
            logits = changed_logits(model, part, group, change)
            values = tokens.score(logits).double().cpu().view(len(prompts), len(group))
            scores[start : start + len(group), list(prompts)] = values.T
    return sum_over_processes(scores).numpy()


def parts_of(model: LensModel, chats: Sequence[Chat], batch_size: int) -> list[Any]:
    """The chats of this process in batches, prefilled where the model allows it."""
    mine = share(len(chats), [len(chat) for chat in chats])
    found: list[Any] = []
    if not mine:
        return found
    for rows, batch in model.batches([cut_at_decision(chats[i]) for i in mine], batch_size):
        prompts = [mine[row] for row in rows]
        found.append(prefill(model, prompts, batch) if can_prefill(model, batch) else (prompts, batch))
    return found


@torch.no_grad()
def changed_logits(
    model: LensModel, part: Any, group: Sequence[Any], change: ChangeAt
) -> Float[torch.Tensor, "row vocab"]:
    """Decision logits of every prompt under each set, prompt by prompt."""
    if isinstance(part, Prefilled):
        with change([one for _ in range(len(part)) for one in group], where="all"):
            return part.decision_logits(len(group))
    _, batch = part
    with change([group[0]] * len(batch), where="decision"):
        return model.decision_logits(batch)


def without_heads(
    model: LensModel,
    chats: Sequence[Chat],
    sets: Sequence[Sequence[Head]],
    tokens: RefusalTokens,
    kept: Sequence[Prefilled] = (),
) -> Float[np.ndarray, "set prompt"]:
    """Refusal score without each set of heads at the decision position."""
    change = partial(zeroed_heads, model)
    return scores_of_sets(model, chats, sets, change, tokens, kept=kept, description="heads at a checkpoint")


def zeroed_heads(model: LensModel, sets: Sequence[Sequence[Head]], where: Where) -> AbstractContextManager[Any]:
    """Zero ablation of one set of heads a row."""
    return ablate_heads(model, [list(heads) for heads in sets], positions=where)
