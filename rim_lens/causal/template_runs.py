"""The tokens that all prompts begin with, computed once per change of heads and not once per run."""

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import torch
from jaxtyping import Int
from torch import Tensor

from rim_lens.causal.head_runs import Branches, HeadRuns
from rim_lens.causal.layer_calls import Prefix, Recorded, Recorder, changed_heads, entering, for_rows

if TYPE_CHECKING:
    from rim_lens.causal.resume import ResumablePass


class TemplateRuns:
    """The tokens that all prompts begin with, one row per change of a group of runs."""

    def __init__(self, clean: "ResumablePass", runs: HeadRuns, group: Int[Tensor, " run"]) -> None:
        self.clean, self.runs, self.group = clean, runs, group
        self.branches = Branches(runs.heads[group], torch.zeros(len(group), dtype=torch.long))
        self.stream: Tensor | None = None

    def keys_values(self, index: int) -> Prefix:
        """Keys and values of this layer in every state of `branches`; to be asked layer by layer."""
        clean, call = self.clean, self.clean.template_calls[index]
        parent, example = self.branches.at(index)
        after, recorded = list[Tensor](), list[Recorder]()
        for rows in torch.arange(len(parent)).split(max(1, clean.tokens_at_once // call.entering.shape[1])):
            recorder = Recorder(enough=index == len(clean.layers) - 1)
            some = self.group[example[rows]]
            change = partial(self.runs.change, index, some) if bool(self.runs.changed[some, index].any()) else None
            args, kwargs = for_rows((call.args, call.kwargs), torch.zeros_like(rows), 1, recorder)
            with suppress(Recorded), changed_heads(clean.layers[index], clean.model.n_heads, change):
                out = clean.layers[index].block(entering(call, self.stream, parent[rows]), *args, **kwargs)
                after.append(out if isinstance(out, Tensor) else out[0])
            recorded.append(recorder)
        self.stream = torch.cat(after) if after else None
        return Prefix(torch.cat([one.keys for one in recorded]), torch.cat([one.values for one in recorded]))
