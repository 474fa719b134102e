"""Taps on TransformerLens hook points: a TransformerBridge, a HookedTransformer, or any object with their hook names.

    blocks.L.hook_resid_pre · attn.hook_attn_scores (hide keys) · attn.hook_pattern (read) · attn.hook_z · hook_attn_out
    · mlp.hook_post · hook_mlp_out, and hook_resid_post of the last block

The general way: attention is computed eagerly, with T×T patterns. Where an architecture's attention is delegated to its
original module, TransformerLens offers the finished pattern only: it can be read, and hiding keys is refused.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rim_lens.errors import RimLensError
from rim_lens.model.taps import AttentionCall, Pass, Tap, changed, wanting, wanting_neurons

if TYPE_CHECKING:
    from rim_lens.model.lens_model import LensModel

NEEDS = {
    "hook_resid_pre": "the residual stream",
    "hook_resid_post": "the residual stream",
    "attn.hook_pattern": "an attention pattern",
    "attn.hook_attn_scores": "attention scores",
    "attn.hook_z": "head outputs",
    "mlp.hook_post": "neurons",
    "hook_attn_out": "attention write",
    "hook_mlp_out": "MLP write",
}


class HookedPass:
    """The running pass, announced to the taps when the residual stream enters the first block."""

    def __init__(self, model: "LensModel", taps: Sequence[Tap]) -> None:
        self.model, self.taps = model, taps
        self.start = 0
        self.here: Pass | None = None
        self.unread: set[int] = set()  # layers whose pattern must come by in this pass
        self.patterned: set[int] = set()

    def begin(self, root: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward pre-hook of the root: note the number of cached columns."""
        self.start = cached_columns(kwargs)
        self.unread = set(self.patterned)

    def announce(self, resid: Tensor) -> None:
        """The stream enters the first block: its shape says how many rows and queries there are."""
        self.here = Pass(self.model.active_batch, self.start, resid.shape[0], resid.shape[1], resid.device)
        for tap in self.taps:
            tap.on_pass(self.here)

    def end(self, root: Any, args: Any, output: Any) -> None:
        """Forward hook of the root: every pattern that a tap asked for must have come by."""
        self.here = None
        if output is not None and self.unread:
            raise RimLensError(
                f"TransformerLens showed no attention pattern for layers {sorted(self.unread)} of {self.model.name}: "
                'its attention implementation hides them; load it with attn_implementation="eager".'
            )


def cached_columns(kwargs: dict[str, Any]) -> int:
    """Columns in the KV cache that a pass was given: transformers' cache or HookedTransformer's."""
    cache = kwargs.get("past_key_values")
    if cache is not None:
        return int(cache.get_seq_length())
    cache = kwargs.get("past_kv_cache")
    return 0 if cache is None else int(cache.entries[0].past_keys.shape[1])


def install(model: "LensModel", taps: Sequence[Tap], undo: ExitStack) -> None:
    """Put `taps` on the hook points of `model.bridge`; closing `undo` takes everything off again."""
    root = model.bridge
    current = HookedPass(model, taps)
    for handle in (
        root.register_forward_pre_hook(current.begin, with_kwargs=True),
        root.register_forward_hook(current.end, always_call=True),
    ):
        undo.callback(handle.remove)
    points = HookPoints(root, undo)
    points.hook(0, "hook_resid_pre", current.announce)
    for layer in range(model.n_layers):
        _install_layer(model, layer, taps, current, points)
    last = wanting(taps, "on_residual", model.n_layers)
    if last:
        points.hook(model.n_layers - 1, "hook_resid_post", _changing(last, "on_residual", model.n_layers))


class HookPoints:
    """Adds hooks by TransformerLens name and removes exactly those."""

    def __init__(self, root: Any, undo: ExitStack) -> None:
        self.root, self.undo = root, undo
        self.named: dict[str, Any] = dict(root.hook_dict)

    def offers(self, layer: int, name: str) -> bool:
        """Whether the block has such a hook point."""
        return f"blocks.{layer}.{name}" in self.named

    def hook(self, layer: int, name: str, function: Callable[[Tensor], Tensor | None]) -> None:
        """Call `function` with the tensor at a hook point; what it returns replaces the tensor.

        Raises:
            RimLensError: the model has no such hook point.

        """
        point = self.named.get(f"blocks.{layer}.{name}")
        if point is None:
            raise RimLensError(f"layer {layer} offers no {NEEDS[name]} (blocks.{layer}.{name}): leave it out.")
        # Permanent to TransformerLens, so that its own run_with_hooks inside the block does not take it off.
        point.add_hook(lambda tensor, hook: function(tensor), is_permanent=True)
        handle = point.fwd_hooks[-1]
        self.undo.callback(lambda: _remove(point, handle))


def _remove(point: Any, handle: Any) -> None:
    handle.hook.remove()
    point.fwd_hooks = [other for other in point.fwd_hooks if other is not handle]


def _changing(taps: Sequence[Tap], site: str, layer: int) -> Callable[[Tensor], Tensor]:
    return lambda tensor: changed(taps, site, layer, tensor)


def _install_layer(
    model: "LensModel", layer: int, taps: Sequence[Tap], current: HookedPass, points: HookPoints
) -> None:
    entering = wanting(taps, "on_residual", layer)
    if entering:
        points.hook(layer, "hook_resid_pre", _changing(entering, "on_residual", layer))
    keys, patterns = wanting(taps, "on_keys", layer), wanting(taps, "on_attention", layer)
    if (keys or patterns) and _offered(points, layer, "attn.hook_pattern", keys + patterns):
        tapped = TappedPattern(layer, keys, patterns, current)
        points.hook(layer, "attn.hook_attn_scores", tapped.scores)
        points.hook(layer, "attn.hook_pattern", tapped.pattern)
        current.patterned.add(layer)
    outputs = wanting(taps, "on_head_output", layer)
    if outputs and _offered(points, layer, "attn.hook_z", outputs):
        points.hook(layer, "attn.hook_z", lambda z: _head_output(outputs, layer, model.n_heads, z))
    for site, name in (("on_attention_write", "hook_attn_out"), ("on_mlp_write", "hook_mlp_out")):
        writing = wanting(taps, site, layer)
        if writing:
            points.hook(layer, name, _changing(writing, site, layer))
    neurons, experts = wanting_neurons(taps, layer, is_moe=model.is_moe)
    if experts or (neurons and model.is_moe):
        raise RimLensError(
            f"The neurons of experts of {model.name} cannot be read or changed through TransformerLens, whose "
            'mlp.hook_post is a block\'s output there: use backend="fast".'
        )
    if neurons:
        points.hook(layer, "mlp.hook_post", _changing(neurons, "on_neurons", layer))


def _offered(points: HookPoints, layer: int, name: str, taps: Sequence[Tap]) -> bool:
    """False where a layer lacks a hook point and every tap only asked for "all layers".

    Else its absence is an error.
    """
    return points.offers(layer, name) or any(tap.layers is not None for tap in taps)


def _head_output(taps: Sequence[Tap], layer: int, n_heads: int, z: Tensor) -> Tensor:
    # Split here: TransformerLens splits latent attention by the width of its rotary part, not of its values.
    split = z.reshape(*z.shape[:2], n_heads, -1)
    return changed(taps, "on_head_output", layer, split).reshape(z.shape)


class HookedCall(AttentionCall):
    """An attention call whose rows are taken from the computed pattern."""

    computed: Tensor

    def rows(self, columns: Int[Tensor, "row query"]) -> Float[Tensor, "row head query key"]:
        """See `AttentionCall.rows`."""
        index = self.query_index(columns)
        row = torch.arange(len(index), device=index.device)[:, None]
        return self.computed[row, :, index].transpose(1, 2).float()


class TappedPattern:
    """Scores, then pattern, of one layer in one pass."""

    def __init__(self, layer: int, keys: Sequence[Tap], patterns: Sequence[Tap], current: HookedPass) -> None:
        self.layer, self.keys, self.patterns, self.current = layer, keys, patterns, current
        self.call: HookedCall | None = None

    def _begin(self, tensor: Float[Tensor, "row head query key"]) -> HookedCall:
        rows, n_heads, n_queries, n_keys = tensor.shape
        here = self.current.here or Pass(None, n_keys - n_queries, rows, n_queries, tensor.device)
        return HookedCall(self.layer, here, n_heads, n_keys)

    def scores(self, scores: Float[Tensor, "row head query key"]) -> Tensor | None:
        """Before the softmax: hide keys."""
        if self.layer not in self.current.unread:
            return None  # delegated attention shows scores after the fact
        self.call = call = self._begin(scores)
        for tap in self.keys:
            tap.on_keys(self.layer, call)
        if call.hidden is None:
            return None
        # Masked keys carry a finite lowest score: where all others are hidden they would share the whole pattern.
        masked = scores <= torch.finfo(scores.dtype).min / 2
        return scores.masked_fill(call.hidden | masked, -torch.inf)

    def pattern(self, pattern: Float[Tensor, "row head query key"]) -> Tensor | None:
        """After the softmax: read."""
        call, self.call = self.call, None
        self.current.unread.discard(self.layer)
        if call is None and self.keys:
            raise RimLensError(
                f"TransformerLens delegates the attention of {self.current.model.name} to the original module, so keys "
                'cannot be hidden through its hooks: use backend="fast".'
            )
        call = call or self._begin(pattern)
        call.seal()
        call.computed = pattern if call.hidden is None else pattern.nan_to_num(0.0)  # no key left: nothing written
        for tap in self.patterns:
            tap.on_attention(self.layer, call)
        return None if call.hidden is None else call.computed
