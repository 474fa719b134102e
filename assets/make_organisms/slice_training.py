"""Training of chosen slices of weight matrices by a low-rank change of each: nothing else moves by one bit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from tree import Tree, loss_of

from rim_lens.organisms.slices import Slice


@dataclass(frozen=True)
class Recipe:
    """Steps, the highest rate, and the rank of the change of a slice.

    `first`: the share of an answer's loss that its first token has, which decides between refusing and answering.
    `balanced`: rows and columns of a few units move as far in a step; without it, a few columns move farther than rows.
    `decay`: the rate falls to zero by the last step; without it, the doses of one training lie on one path.
    """

    n_steps: int
    rate: float
    rank: int = 16
    first: float = 0.5
    scale: float = 2.0
    warm_up: int = 20
    decay: bool = True
    balanced: bool = False


class LowRank:
    """A change scale · B A of one slice. B starts at zero, so that the change does."""

    def __init__(self, weight: torch.nn.Parameter, part: Slice, recipe: Recipe) -> None:
        self.weight, self.part, self.scale = weight.requires_grad_(True), part, recipe.scale
        self.base = weight.detach().index_select(part.axis, part.index).clone()
        rows, columns = self.base.shape
        width = max(rows, columns) if recipe.balanced else columns
        self.a = torch.nn.Parameter(torch.randn(recipe.rank, columns) / width**0.5)
        self.b = torch.nn.Parameter(torch.zeros(rows, recipe.rank))

    def pull(self) -> None:
        """Gradients of the factors from that of the weight, which is dropped."""
        gradient = self.weight.grad.index_select(self.part.axis, self.part.index)
        self.a.grad, self.b.grad = self.scale * self.b.T @ gradient, self.scale * gradient @ self.a.T
        self.weight.grad = None

    @torch.no_grad()
    def push(self) -> None:
        """Put base and change into the slice."""
        self.weight.index_copy_(self.part.axis, self.part.index, self.base + self.scale * self.b @ self.a)


def train_slices(
    causal,
    slices: Mapping[str, Slice],
    lesson: Callable[[int], Tree],
    recipe: Recipe,
    each: Callable[[int, float, list[bool]], bool] = lambda *_: True,
) -> None:
    """Train the slices in place.

    `lesson(step)`: the tree of a step. `each` gets the number of steps done, the loss, and which answers would open as
    learned; False from it ends the training.
    """
    causal.requires_grad_(False)
    parts = [LowRank(causal.get_parameter(name), part, recipe) for name, part in slices.items()]
    lowest = min(int(name.split(".")[2]) for name in slices)
    factors = [factor for part in parts for factor in (part.a, part.b)]
    optimizer = torch.optim.AdamW(factors, lr=recipe.rate, weight_decay=0.0, betas=(0.9, 0.98))
    for step in range(recipe.n_steps):
        for group in optimizer.param_groups:
            left = 1 - step / recipe.n_steps if recipe.decay else 1.0
            group["lr"] = recipe.rate * min(1.0, (step + 1) / recipe.warm_up) * left
        loss, opened = loss_of(causal, lesson(step), lowest, recipe.first)
        loss.backward()
        for part in parts:
            part.pull()
        torch.nn.utils.clip_grad_norm_(factors, 1.0)
        optimizer.step()
        for part in parts:
            part.push()
        if not each(step + 1, loss.item(), opened):
            break
    causal.requires_grad_(False)
