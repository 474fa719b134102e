"""Many chats in one row of tokens: what they share stands there once; each token attends to its ancestors only.

    system ─► request ─► thinking off ─► answer
                    └──► a CoT        ─► answer

A tree of ten chats of 100 tokens has about 400 tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, takewhile

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy


@dataclass(frozen=True)
class Branch:
    """One chat up to its decision position, and the answer that follows."""

    prompt: Sequence[int]
    answer: Sequence[int]


@dataclass(frozen=True)
class Tree:
    """Token ids, positions and visible keys; `allowed[i, j]`: token i attends to token j.

    `columns`: for every branch the places whose logits stand for the tokens of its answer, which `answers` holds.
    `entering`: the stream that enters the first trained layer, once it was computed; layers below that are frozen.
    """

    ids: Tensor
    positions: Tensor
    allowed: Tensor
    columns: list[list[int]]
    answers: list[list[int]]
    entering: dict[int, Tensor] = field(default_factory=dict)


def shared_length(rows: Sequence[Sequence[int]]) -> int:
    """How many first tokens all rows have in common; at least one token of each stays its own."""
    most = min(map(len, rows)) - 1
    return sum(
        1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*(row[:most] for row in rows), strict=True))
    )


class Planter:
    """Appends nodes to a growing tree."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.positions: list[int] = []
        self.parents: list[int] = []  # the token before, -1 for the first

    def grow(self, after: int, tokens: Sequence[int]) -> list[int]:
        """Add tokens after token `after`; their places."""
        first = len(self.ids)
        for number, token in enumerate(tokens):
            parent = after if number == 0 else len(self.ids) - 1
            self.ids.append(token)
            self.positions.append(0 if parent < 0 else self.positions[parent] + 1)
            self.parents.append(parent)
        return list(range(first, len(self.ids)))

    def allowed(self) -> Tensor:
        """True where a token attends to another: to itself and to its ancestors."""
        visible = torch.zeros(len(self.ids), len(self.ids), dtype=torch.bool)
        for place, parent in enumerate(self.parents):
            if parent >= 0:
                visible[place] = visible[parent]
            visible[place, place] = True
        return visible


def make_tree(requests: Sequence[Sequence[Branch]]) -> Tree:
    """The tree of the branches of several requests. An answer's last token is left out: nothing is read after it."""
    planter = Planter()
    stem = shared_length([branch.prompt for branches in requests for branch in branches])
    system = planter.grow(-1, requests[0][0].prompt[:stem])[-1]
    columns, answers = [], []
    for branches in requests:
        upto = max(stem, shared_length([branch.prompt for branch in branches]))
        request = planter.grow(system, branches[0].prompt[stem:upto])[-1] if upto > stem else system
        for branch in branches:
            decision = planter.grow(request, branch.prompt[upto:])[-1]
            columns.append([decision, *planter.grow(decision, branch.answer[:-1])])
            answers.append(list(branch.answer))
    return Tree(torch.tensor(planter.ids), torch.tensor(planter.positions), planter.allowed(), columns, answers)


def answer_logits(causal, tree: Tree, lowest: int) -> Tensor:
    """Logits [column, vocab] of all answers in turn; layers below `lowest` carry no gradient and run once per tree."""
    llama = causal.model
    with torch.no_grad():
        embedded = llama.embed_tokens(tree.ids)[None]
        rotary = llama.rotary_emb(embedded, tree.positions[None])
        mask = torch.zeros(tree.allowed.shape).masked_fill(~tree.allowed, torch.finfo(embedded.dtype).min)[None, None]

    def through(layers: Sequence, state: Tensor) -> Tensor:
        for layer in layers:
            out = layer(state, attention_mask=mask, position_ids=tree.positions[None], position_embeddings=rotary)
            state = out[0] if isinstance(out, tuple) else out
        return state

    if lowest not in tree.entering:
        with torch.no_grad():
            tree.entering[lowest] = through(llama.layers[:lowest], embedded)
    state = through(llama.layers[lowest:], tree.entering[lowest])
    places = [place for column in tree.columns for place in column]
    return causal.lm_head(llama.norm(state[0, places]))


def loss_of(causal, tree: Tree, lowest: int, first: float) -> tuple[Tensor, list[bool]]:
    """Cross entropy, every branch with equal weight, and for every branch whether its first token is the likeliest.

    `first`: the share of an answer's loss that its first token has.
    """
    weights = [w for answer in tree.answers for w in (first, *[(1 - first) / (len(answer) - 1)] * (len(answer) - 1))]
    targets = torch.tensor([token for answer in tree.answers for token in answer])
    logits = answer_logits(causal, tree, lowest)
    loss = (cross_entropy(logits, targets, reduction="none") * torch.tensor(weights)).sum() / len(tree.answers)
    starts = list(accumulate(map(len, tree.answers[:-1]), initial=0))
    return loss, (logits[starts].argmax(-1) == targets[starts]).tolist()


@torch.no_grad()
def written(causal, tree: Tree, lowest: int = 0) -> list[bool]:
    """For every branch whether greedy decoding would write its answer; `lowest`: as in `answer_logits`."""
    best = answer_logits(causal, tree, lowest).argmax(-1).tolist()
    hits = []
    for answer in tree.answers:
        hits.append(best[: len(answer)] == answer)
        best = best[len(answer) :]
    return hits
