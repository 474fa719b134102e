"""In vLLM's workers: the edits of the requests in the batch that is being computed.

vLLM computes the tokens of many requests in one row of tokens. Before each step the rows of its batch say which tokens
belong to which request and at which position (`query_start_loc`), and the request's `extra_args` which edits it has
there. The hooks on the output projections and on the MLPs' down projections then change those tokens alone. Units are
sharded over ranks: each rank keeps its share of every factor.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

EDITS = "rim_lens_edits"  # the key in SamplingParams.extra_args: a list of [edit, from, until]


class Edits:
    """Part of the worker extension; vLLM mixes it into its worker class, so `self` is the worker."""

    model_runner: Any

    def lens_layers(self) -> list[nn.Module]:
        """The decoder layers; a ValueError where they are not built as Llama's are."""
        model = self.model_runner.get_model()
        layers = list(getattr(getattr(model, "model", None), "layers", ()))
        for layer in layers:
            if not hasattr(getattr(layer, "self_attn", None), "o_proj"):
                raise ValueError(f"{type(model).__name__} has layers without self_attn.o_proj")
        if not layers:
            raise ValueError(f"{type(model).__name__} has no model.layers")
        return layers

    def lens_put_edits(self, edits: Sequence[Mapping[str, Any]]) -> None:
        """Take these edits, numbered from 0, in place of all others, and hook the layers that they change."""
        self.lens_drop_edits()
        if not edits:
            return
        layers = self.lens_layers()
        self._lens_rows: list[tuple[Tensor, Tensor]] = []  # of this step: tokens, and the edit of each
        self._lens_handles = [self.model_runner.get_model().register_forward_pre_hook(self._lens_begin)]
        dtype, device = self.model_runner.dtype, self.model_runner.device
        for index, layer in enumerate(layers):
            for site, module in (("heads", layer.self_attn.o_proj), ("neurons", getattr(layer.mlp, "down_proj", None))):
                having = [n for n, edit in enumerate(edits) if edit["site"] == site and index in edit["factor"]]
                if not having:
                    continue
                if module is None:
                    raise ValueError(f"layer {index} has no MLP with a down projection")
                hook = EditHook(self, edits, having, index, module.input_size_per_partition, dtype, device)
                self._lens_handles.append(module.register_forward_pre_hook(hook))

    def lens_drop_edits(self) -> None:
        """Take every hook of the edits off."""
        for handle in getattr(self, "_lens_handles", ()):
            handle.remove()
        self._lens_handles = []

    def lens_hooks(self) -> int:
        """How many hooks stand on the model's modules now."""
        modules = self.model_runner.get_model().modules()
        return sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in modules)

    def _lens_begin(self, model: nn.Module, args: Any) -> None:
        """Find the tokens with edits in the step that begins."""
        runner = self.model_runner
        batch, starts = runner.input_batch, runner.query_start_loc.np
        slots: list[tuple[list[int], list[int]]] = []
        for row, request_id in enumerate(batch.req_ids):
            request = runner.requests.get(request_id)
            extra = None if request is None else request.sampling_params.extra_args
            start, stop, done = int(starts[row]), int(starts[row + 1]), int(batch.num_computed_tokens_cpu[row])
            for slot, (edit, first, until) in enumerate((extra or {}).get(EDITS, ())):
                if slot == len(slots):
                    slots.append(([], []))
                begin = start + max(first - done, 0)
                end = stop if until < 0 else min(stop, start + max(until - done, 0))
                slots[slot][0].extend(range(begin, end))
                slots[slot][1].extend([edit] * max(end - begin, 0))
        device = runner.device
        self._lens_rows = [
            (torch.tensor(tokens, device=device), torch.tensor(which, device=device))
            for tokens, which in slots
            if tokens
        ]


class EditHook:
    """The edits of one projection's inputs: this rank's factors and shifts, one row per edit; row 0 changes nothing."""

    def __init__(
        self,
        worker: Edits,
        edits: Sequence[Mapping[str, Any]],
        having: Sequence[int],
        layer: int,
        width: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        from vllm.distributed import get_tensor_model_parallel_rank, get_tensor_model_parallel_world_size

        rank, size = get_tensor_model_parallel_rank(), get_tensor_model_parallel_world_size()
        n_units = len(edits[having[0]]["factor"][layer]) // size
        mine, self.units, self.each = slice(rank * n_units, (rank + 1) * n_units), n_units, width // n_units
        self.worker = worker
        self.row_of = torch.zeros(len(edits), dtype=torch.long, device=device)
        self.row_of[having] = torch.arange(1, len(having) + 1, device=device)
        ones = torch.ones(1, n_units)
        self.factor = torch.cat([ones, *(edits[n]["factor"][layer][None, mine] for n in having)]).to(device, dtype)
        self.shift: Tensor | None = None
        if any(layer in edits[n]["shift"] for n in having):
            self.shift = torch.zeros(1 + len(having), n_units, self.each, device=device, dtype=dtype)
            for row, n in enumerate(having, start=1):
                if layer in edits[n]["shift"]:
                    self.shift[row] = edits[n]["shift"][layer][mine].to(device, dtype)

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Change the tokens that have an edit in this layer."""
        changed = None
        for tokens, which in self.worker._lens_rows:
            rows = self.row_of[which]
            here = rows > 0
            if not bool(here.any()):
                continue
            changed = args[0].clone() if changed is None else changed
            at, rows = tokens[here], rows[here]
            x = changed[at].view(len(at), self.units, self.each) * self.factor[rows][..., None]
            changed[at] = (x if self.shift is None else x + self.shift[rows]).flatten(1)
        return None if changed is None else (changed, *args[1:])
