"""The tokens that all prompts begin with, computed once per change of heads and not once per run."""

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import torch
from jaxtyping import Int
from torch import Tensor

from rim_lens.causal.head_runs import HeadRuns
from rim_lens.causal.layer_calls import Prefix, Recorded, Recorder, changed_heads, for_rows

if TYPE_CHECKING:
    from rim_lens.causal.resume import ResumablePass


class TemplateRuns:
    """The tokens that all prompts begin with, one row per change of a group of runs; `entry` of the runs is sorted."""

    def __init__(self, clean: "ResumablePass", runs: HeadRuns, group: Int[Tensor, " run"], entry: list[int]) -> None:
        numbers = runs.number[group].tolist()
        places = {number: place for place, number in enumerate(dict.fromkeys(numbers))}
        firsts = [numbers.index(number) for number in places]
        self.clean, self.runs, self.group = clean, runs, group[torch.tensor(firsts)]
        self.place = torch.tensor([places[number] for number in numbers])  # of every run's change
        self.entry = [entry[first] for first in firsts]
        self.changed = runs.changed[self.group].tolist()
        example = clean.template_calls[0].entering
        self.stream = example.new_empty(len(firsts), *example.shape[1:])
        self.n_begun = 0

    def keys_values(self, index: int) -> Prefix:
        """Keys and values of this layer under every change that has begun; to be asked layer by layer."""
        clean, call = self.clean, self.clean.template_calls[index]
        begun = sum(layer <= index for layer in self.entry)
        self.stream[self.n_begun : begun] = call.entering
        self.n_begun, recorded = begun, list[Recorder]()
        at_once = max(1, clean.tokens_at_once // self.stream.shape[1])
        for first in range(0, begun, at_once):
            rows = slice(first, min(first + at_once, begun))
            recorder = Recorder(enough=index == len(clean.layers) - 1)
            changing = any(one[index] for one in self.changed[rows])
            change = partial(self.runs.change, index, self.group[rows]) if changing else None
            none = torch.zeros(rows.stop - rows.start, dtype=torch.long)
            args, kwargs = for_rows((call.args, call.kwargs), none, 1, recorder)
            with suppress(Recorded), changed_heads(clean.layers[index], clean.model.n_heads, change):
                out = clean.layers[index].block(self.stream[rows].to(call.entering.device), *args, **kwargs)
                self.stream[rows] = out if isinstance(out, Tensor) else out[0]
            recorded.append(recorder)
        return Prefix(torch.cat([one.keys for one in recorded]), torch.cat([one.values for one in recorded]))
