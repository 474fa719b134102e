"""Many changed runs of the same prompts, each resumed at the layer where its change begins.

1. One clean pass over a batch keeps the residual stream that enters every layer and how the model calls its layers.
   Columns before `start`, which no run changes, go into a KV cache once.
2. Layers are then run one after the other over the runs that have begun: at each layer those whose change begins there
   join with the clean stream. A run whose change begins at layer l thus costs the layers from l on, over the columns
   from `start` on, and weights are read once for all runs. Runs that have made the same changes so far are one row
   (`Branches`). Tokens that all prompts begin with (the template and its
   system prompt) do not depend on the prompt, whatever is changed at all positions: where they are shared, they are
   computed once per change and not once per run (`template`).
   Runs that change the last column only are laid side by side as columns of one row (`side_by_side`).
3. Of the last layer only the attention sees all columns; its MLP, the final norm and the unembedding see the last one.

Exact: a run's logits are those of a whole pass with the same change; `changed_runs` compares the two once per model.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from rim_lens.causal import side_by_side
from rim_lens.causal.head_runs import Branches, HeadRuns
from rim_lens.causal.layer_calls import (
    AttentionReached,
    Call,
    Prefix,
    changed_heads,
    entering,
    for_rows,
    reached,
    replaced_forward,
)
from rim_lens.causal.template_runs import TemplateRuns
from rim_lens.errors import RimLensError
from rim_lens.model.batch import Batch
from rim_lens.model.fitting import AtOnce
from rim_lens.model.lens_model import LensModel
from rim_lens.model.shared_prefix import columns_cache
from rim_lens.model.sites import sites_of
from rim_lens.model.taps import Tap
from rim_lens.model.taps_fast import serves

# Of the widest tensor: larger ones are mapped afresh by malloc, page faults cost 10-15 %.
CPU_ACTIVATION_BYTES = 2 << 20
MIN_TOKENS, GPU_TOKENS = 128, 16384
STATE_BYTES = 128 << 20  # residual streams of the runs kept at once
ROWS_OF_LOGITS = 64
# Takes the indices of some runs and their decision logits.
TakeLogits = Callable[[Int[Tensor, " row"], Float[Tensor, "row vocab"]], Any]


def why_not_resumed(model: LensModel, start: int) -> str | None:
    """Why runs of a model cannot be resumed, as far as its parts show, or None."""
    if not serves(model):
        return "it is not a transformers model whose layers can be called one by one"
    if model.active_taps:
        return "other interventions are active"
    layers = sites_of(model).layers
    if any(layer.attention is not None and layer.output is None for layer in layers):
        return "its attention has no output projection where heads could be changed"
    if start and any(layer.attention is None for layer in layers):
        return "it has layers without attention, whose state is not a KV cache"
    return None


class ResumablePass:
    """A clean pass over a batch from which changed runs are resumed.

    The batch's last column must be every row's decision position. `start`: columns that no run changes. `template`:
    columns that all rows share and every run changes in the same way in all prompts; the batch must be
    `prefix_first(batch, template)`. `shared`: columns before `start` that all rows share, computed once; the batch must
    be `prefix_first(batch, shared)`. `gradient`: a tap that is attached to the clean pass, which is then differentiable
    until `detach` is called.

    Raises:
        RimLensError: the model cannot be resumed; `why_not_resumed` says so beforehand.

    """

    def __init__(
        self,
        model: LensModel,
        batch: Batch,
        start: int = 0,
        *,
        template: int = 0,
        shared: int = 0,
        gradient: Tap | None = None,
    ) -> None:
        reason = why_not_resumed(model, start or template)
        if reason:
            raise RimLensError(f"Runs of {model.name} cannot be resumed at a layer: {reason}.")
        if bool((batch.decision != batch.tokens.shape[1] - 1).any()):
            raise RimLensError("Resumed runs need batches that end at the decision position; cut the chats there.")
        self.model, self.batch, self.start, self.template = model, batch, start or template, template
        self.shared = shared
        self.layers = sites_of(model).layers
        self.calls: list[Call] = []
        self.template_calls: list[Call] = []
        self.prefixes: list[Prefix | None] = [None] * len(self.layers)
        taps = () if gradient is None else (gradient,)
        with torch.set_grad_enabled(bool(taps)), model.tap(*taps):
            self.logits: Float[Tensor, "prompt vocab"] = self._clean_pass()

    # ---- the clean pass -------------------------------------------------------------------------------------------
    def _clean_pass(self) -> Float[Tensor, "prompt vocab"]:
        batch, model = self.batch, self.model
        cache = None
        if self.start:
            with ExitStack() as stack:
                stack.enter_context(model.during(batch))
                if self.template:
                    self._keep_calls(stack)
                cache = columns_cache(model, batch, self.start, once=bool(self.template), shared=self.shared)
            self.template_calls, self.calls = self.calls, []
            self.prefixes = [_prefix(layer, model) for layer in cache.layers]
        after = slice(self.start, None)
        with ExitStack() as stack:
            self._keep_calls(stack)
            inputs = model.hf_inputs(batch.mask, batch.positions[:, after])
            output = model.hf(
                batch.tokens[:, after],
                **inputs,
                **model.last_logit_only,
                past_key_values=cache,
                use_cache=cache is not None,
            )
        return output.logits[:, -1].float()

    def _keep_calls(self, stack: ExitStack) -> None:
        for layer in self.layers:
            stack.callback(layer.block.register_forward_pre_hook(self._keep_call, with_kwargs=True).remove)

    def _keep_call(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        entering = args[0] if args else kwargs["hidden_states"]
        rest = {name: value for name, value in kwargs.items() if name != "hidden_states"}
        self.calls.append(Call(entering, args[1:], rest))

    def detach(self) -> None:
        """Let go of the graph."""
        self.logits = self.logits.detach()
        self.calls = [replace(call, entering=call.entering.detach()) for call in self.calls]

    @property
    def n_bytes(self) -> int:
        """Size of the residual streams kept."""
        return sum(call.entering.numel() * call.entering.element_size() for call in self.calls)

    # ---- the runs -------------------------------------------------------------------------------------------------
    @torch.no_grad()
    def give_logits(self, runs: HeadRuns, take: TakeLogits, at_once: AtOnce | None = None) -> None:
        """Give decision logits of every run to `take`, some runs at a time; fewer at a time where memory runs out."""
        entry = runs.entry_layers()
        example = self.calls[0].entering
        most = max(1, STATE_BYTES // (example[0].numel() * example.element_size()) // len(example)) * len(example)

        together = side_by_side.fits(self)

        def climb(some: Sequence[int]) -> None:
            group = torch.tensor(some)
            if together and side_by_side.is_grid(self, runs, group):
                last = side_by_side.climb(self, runs, group)
            else:
                last = self._climb(runs, group)
            for rows in torch.arange(len(group)).split(ROWS_OF_LOGITS):
                take(group[rows], self._unembedded(last[rows]))

        room = at_once or AtOnce(most, "resumed runs", "runs", inside=True)
        order = (entry * (int(runs.number.max()) + 1) + runs.number).argsort(stable=True)  # runs of one change together
        for _ in room.parts(order.tolist(), climb, most):
            pass

    def _climb(self, runs: HeadRuns, group: Int[Tensor, " run"]) -> Float[Tensor, "run one d_model"]:
        """Residual stream of the runs after the last layer, at the last column."""
        branches, top, stream = Branches(runs.heads[group], runs.prompt[group]), len(self.layers) - 1, None
        template = TemplateRuns(self, runs, group) if self.template else None
        for index in range(branches.first, top + 1):
            parent, example = branches.at(index)
            shared = None if template is None else template.keys_values(index)
            layer, after = self.layer if index < top else self._last_layer, list[Tensor]()
            for rows in torch.arange(len(parent)).split(self._rows_at_once):
                some = group[example[rows]]
                change = partial(runs.change, index, some) if bool(runs.changed[some, index].any()) else None
                if template is not None and shared is not None:
                    cache: Prefix | None = shared.of(template.branches.state[example[rows]])
                else:
                    cache = self.cached(index, runs.prompt[some])
                begin = entering(self.calls[index], stream, parent[rows])
                after.append(layer(index, begin, runs.prompt[some], change, cache))
            stream = torch.cat(after)
        assert stream is not None  # there is at least the last layer
        return stream[branches.state]

    def cached(self, index: int, prompts: Int[Tensor, " row"]) -> Prefix | None:
        """Keys and values of the columns before `start`, as the clean pass has them."""
        prefix = self.prefixes[index]
        return None if prefix is None else prefix.of(prompts)

    @property
    def _rows_at_once(self) -> int:
        return max(1, self.tokens_at_once // self.calls[0].entering.shape[1])

    @property
    def tokens_at_once(self) -> int:
        """Tokens in one call of a layer."""
        tokens = GPU_TOKENS
        if self.batch.tokens.device.type == "cpu":
            width = max(self.model.d_mlp, self.model.d_model) * self.calls[0].entering.element_size()
            tokens = max(MIN_TOKENS, CPU_ACTIVATION_BYTES // width)
        return tokens

    def _last_layer(
        self,
        index: int,
        stream: Float[Tensor, "row pos d_model"],
        prompts: Int[Tensor, " row"],
        change: Callable[[Tensor], Tensor] | None,
        cache: "Prefix | None",
    ) -> Float[Tensor, "row one d_model"]:
        """The last layer, whose MLP is run for the last column only."""
        layer = self.layers[index]
        if layer.attention is None:
            return self.layer(index, stream, prompts, change, cache)[:, -1:]
        with replaced_forward(layer.attention, reached):
            try:
                self.layer(index, stream, prompts, None, cache)
            except AttentionReached as here:
                args, kwargs = here.call
        with changed_heads(layer, self.model.n_heads, change):
            attended = layer.attention(*args, **kwargs)
        last = attended[:, -1:] if isinstance(attended, Tensor) else (attended[0][:, -1:], *attended[1:])
        with replaced_forward(layer.attention, lambda *args, **kwargs: last):
            return self.layer(index, stream[:, -1:], prompts, None, cache)

    def layer(
        self,
        index: int,
        stream: Float[Tensor, "row pos d_model"],
        prompts: Int[Tensor, " row"],
        change: Callable[[Tensor], Tensor] | None,
        cache: "Prefix | None",
        **others: Tensor,
    ) -> Float[Tensor, "row pos d_model"]:
        """One layer over some runs; `others` are arguments to call it with in place of the clean pass's."""
        call, layer = self.calls[index], self.layers[index]
        args, kwargs = for_rows((call.args, call.kwargs | others), prompts, len(self.batch), cache)
        with changed_heads(layer, self.model.n_heads, change):
            out = layer.block(stream.to(call.entering.device), *args, **kwargs)
        return out if isinstance(out, Tensor) else out[0]

    def _unembedded(self, last: Float[Tensor, "row one d_model"]) -> Float[Tensor, "row vocab"]:
        """Logits from the stream after the last layer, by the model's own final norm and unembedding."""
        tokens = torch.zeros(last.shape[:2], dtype=torch.long, device=self.batch.tokens.device)
        inputs = self.model.hf_inputs(torch.ones_like(tokens), torch.zeros_like(tokens))
        with ExitStack() as stack:
            for layer in self.layers[:-1]:
                stack.enter_context(replaced_forward(layer.block, lambda stream, *args, **kwargs: stream))
            stack.enter_context(replaced_forward(self.layers[-1].block, lambda *args, **kwargs: last))
            return self.model.hf(tokens, **inputs, **self.model.last_logit_only, use_cache=False).logits[:, -1].float()


def _prefix(layer: Any, model: LensModel) -> Prefix:
    if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer):
        raise RimLensError(f"{model.name} keeps a {type(layer).__name__} in its cache, from which runs cannot resume.")
    return Prefix(layer.keys, layer.values)
