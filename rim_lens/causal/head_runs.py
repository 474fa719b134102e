"""Many runs at once, each with its own change of head outputs: zeroed, or replaced by donated ones.

Run r is prompt `prompt[r]` with the heads `heads[r]` changed at the columns `at` of that prompt; the last column is the
decision position. A zero change is z ← 0; a donated one z ← donated[prompt, layer, column, head] over the last
columns.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rim_lens.units import AnyHead, Head


class HeadRuns:
    """Runs over a batch whose last column is every row's decision position."""

    def __init__(
        self,
        prompt: Int[Tensor, " run"],
        heads: Bool[Tensor, "run layer head"],
        at: Bool[Tensor, "prompt pos"],
        donated: Float[Tensor, "prompt layer column head d_head"] | None = None,
        number: Int[Tensor, " run"] | None = None,
    ) -> None:
        self.prompt, self.heads, self.at, self.donated = prompt, heads, at, donated
        # Which of the changes a run makes; those of one number make the same in other prompts.
        self.number = torch.arange(len(prompt)) if number is None else number
        self.changed: Bool[Tensor, "run layer"] = heads.any(-1)  # layers at which a run changes something

    def __len__(self) -> int:
        """Number of runs."""
        return len(self.prompt)

    def some(self, index: Int[Tensor, " run"]) -> "HeadRuns":
        """Some of the runs."""
        return HeadRuns(self.prompt[index], self.heads[index], self.at, self.donated, self.number[index])

    def entry_layers(self) -> Int[Tensor, " run"]:
        """First changed layer of each run; the last layer for a run that changes nothing."""
        return first_layers(self.changed)

    def change(
        self, layer: int, runs: Int[Tensor, " row"], z: Float[Tensor, "row pos head d_head"]
    ) -> Float[Tensor, "row pos head d_head"]:
        """Head outputs of these runs after their change; `z` holds the last columns of the batch."""
        prompt = self.prompt[runs]
        where = self.heads[runs, layer][:, None] & self.at[prompt, -z.shape[1] :][..., None]
        where = where.to(z.device)[..., None]
        if self.donated is None:
            return z.masked_fill(where, 0)
        width = self.donated.shape[2]
        donated = torch.zeros_like(z)
        donated[:, -width:] = self.donated[prompt, layer].to(z)
        return torch.where(where, donated, z)


def first_layers(changed: Bool[Tensor, "run layer"]) -> Int[Tensor, " run"]:
    """First changed layer of each run; the last layer for a run that changes nothing."""
    return torch.where(changed.any(1), changed.to(torch.uint8).argmax(1), changed.shape[1] - 1)


class Branches:
    """Runs of one prompt are one state until their changes differ, so that what they share is computed once.

    `state` is each run's state after the layers so far; -1 - prompt while the run is still the clean pass. The last
    layer is computed for all of them. `first`: the first layer that has states.
    """

    def __init__(self, heads: Bool[Tensor, "run layer head"], prompt: Int[Tensor, " run"]) -> None:
        self.heads = heads.to(torch.long)
        self.begins = first_layers(heads.any(-1))
        self.first = int(self.begins.min())
        self.state = -1 - prompt

    def at(self, layer: int) -> tuple[Int[Tensor, " state"], Int[Tensor, " state"]]:
        """Of each state at a layer: the state that it comes from, and a run that is in it. Layer after layer."""
        begun = (self.begins <= layer).nonzero()[:, 0]
        keys = torch.cat([self.state[begun, None], self.heads[begun, layer]], dim=1)
        distinct, state = keys.unique(dim=0, return_inverse=True)
        example = torch.empty(len(distinct), dtype=torch.long)
        example[state] = begun
        self.state = self.state.clone()
        self.state[begun] = state
        return distinct[:, 0], example


def one_hot(heads: Sequence[Sequence[AnyHead]], n_layers: int, n_heads: int) -> Bool[Tensor, "run layer head"]:
    """True at the heads of each run."""
    mask = torch.zeros(len(heads), n_layers, n_heads, dtype=torch.bool)
    for run, chosen in enumerate(heads):
        for layer, head in map(Head.parse, chosen):
            mask[run, layer, head] = True
    return mask
