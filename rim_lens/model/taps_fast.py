"""Taps on a plain transformers tree.

Heads' outputs, residual stream and neurons are read by forward hooks on the modules found by `sites`. The attention
pattern is read through transformers' `AttentionInterface`, which gets q, k, v after rotary embedding and q/k-norm: the
layer's output is left to the implementation the model had (SDPA, or the architecture's own eager function where it has
soft-capping or sinks), and only the asked rows, or the heads that must not see some keys, are computed here:

    pattern[q, k] = softmax_k( cap(q · k * scaling) + mask )        cap(x) = c tanh(x / c) where the model soft-caps,
    with one more logit, dropped afterwards, where the model has an attention sink.

The first pass through each attention module checks this formula against the module's own output.
"""

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, WeakSet

from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask

from rim_lens.errors import RimLensError
from rim_lens.model import taps_experts
from rim_lens.model.sites import Layer, sites_of
from rim_lens.model.softmax_rows import SoftmaxRows
from rim_lens.model.taps import AttentionCall, Pass, Tap, changed, wanting, wanting_neurons

if TYPE_CHECKING:
    from rim_lens.model.lens_model import LensModel

SDPA, EAGER = "rim_lens_sdpa", "rim_lens_eager"
_TAPPED: WeakKeyDictionary[nn.Module, "TappedAttention"] = WeakKeyDictionary()
_CHECKED: WeakSet[nn.Module] = WeakSet()


def serves(model: "LensModel") -> bool:
    """Whether the model is a transformers model whose attention goes through AttentionInterface."""
    return model.hf is not None and model.hf._can_set_attn_implementation()


class CurrentPass:
    """Announces each pass to the taps; `here` is the running one."""

    def __init__(self, model: "LensModel", taps: Sequence[Tap]) -> None:
        self.model, self.taps = model, taps
        self.here: Pass | None = None

    def begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward pre-hook of the module that runs the decoder layers."""
        tokens = kwargs.get("input_ids", args[0] if args else None)
        if tokens is None:
            tokens = kwargs["inputs_embeds"]
        cache = kwargs.get("past_key_values")
        start = 0 if cache is None else int(cache.get_seq_length())
        self.announce(start, tokens)

    def announce(self, start: int, tokens: Tensor) -> None:
        """Tell the taps that a pass over `tokens`, from column `start` on, begins."""
        self.here = Pass(self.model.active_batch, start, tokens.shape[0], tokens.shape[1], tokens.device)
        for tap in self.taps:
            tap.on_pass(self.here)

    def end(self, module: nn.Module, args: Any, output: Any) -> None:
        """Forward hook of the same module; also called when the pass raises."""
        self.here = None


def install(model: "LensModel", taps: Sequence[Tap], undo: ExitStack) -> None:
    """Put `taps` on `model.hf`; closing `undo` takes everything off again."""
    sites = sites_of(model)
    current = CurrentPass(model, taps)
    keep(undo, sites.trunk.register_forward_pre_hook(current.begin, with_kwargs=True))
    keep(undo, sites.trunk.register_forward_hook(current.end, always_call=True))
    for index, layer in enumerate(sites.layers):
        _install_layer(model, index, layer, taps, current, undo)
    experts = [wanting_neurons(taps, index, is_moe=model.is_moe)[1] for index in range(model.n_layers)]
    if any(experts):
        taps_experts.install(model, experts, current, undo)
    last = wanting(taps, "on_residual", model.n_layers)
    if last:
        hook = partial(_residual_out, last, model.n_layers)
        keep(undo, sites.layers[-1].block.register_forward_hook(hook))


def keep(undo: ExitStack, handle: Any) -> None:
    """Remove a torch hook when `undo` is closed."""
    undo.callback(handle.remove)


def _install_layer(
    model: "LensModel", index: int, layer: Layer, taps: Sequence[Tap], current: CurrentPass, undo: ExitStack
) -> None:
    entering = wanting(taps, "on_residual", index)
    if entering:
        hook = partial(_residual_in, entering, index)
        keep(undo, layer.block.register_forward_pre_hook(hook, with_kwargs=True))
    outputs = wanting(taps, "on_head_output", index)
    if outputs and layer.attention is not None and layer.output is None:
        raise RimLensError(
            f'no output projection found in layer {index} of {model.name}: use backend="hooks" for this model.'
        )
    if outputs and _has_site(layer.output, outputs, index, "heads whose outputs could be read or changed"):
        hook = partial(_head_output, outputs, index, model.n_heads)
        keep(undo, layer.output.register_forward_pre_hook(hook))  # type: ignore[union-attr]
    for site, module in (("on_attention_write", layer.attention_write), ("on_mlp_write", layer.mlp_write)):
        writing = wanting(taps, site, index)
        if writing and module is None:
            raise RimLensError(f"layer {index} of {model.name} has no {site[3:]} to the residual stream that is known.")
        if writing:
            keep(undo, module.register_forward_hook(partial(_written, writing, site, index)))  # type: ignore[union-attr]
    neurons, _ = wanting_neurons(taps, index, is_moe=model.is_moe)
    if neurons:
        if layer.down is None:
            raise RimLensError(f"layer {index} has no plain MLP neurons (a mixture of experts): leave it out.")
        keep(undo, layer.down.register_forward_pre_hook(partial(_neurons, neurons, index)))
    keys, patterns = wanting(taps, "on_keys", index), wanting(taps, "on_attention", index)
    if (keys or patterns) and _has_site(layer.attention, keys + patterns, index, "attention"):
        _tap_attention(layer.attention, TappedAttention(index, keys, patterns, current), undo)  # type: ignore[arg-type]


def _has_site(module: nn.Module | None, taps: Sequence[Tap], index: int, what: str) -> bool:
    """False where a layer lacks a site and every tap only asked for "all layers".

    An error where one named the layer.
    """
    if module is None and any(tap.layers is not None for tap in taps):
        raise RimLensError(f"layer {index} has no {what}: leave it out.")
    return module is not None


def _residual_in(
    taps: Sequence[Tap], index: int, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if args:
        return (changed(taps, "on_residual", index, args[0]), *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": changed(taps, "on_residual", index, kwargs["hidden_states"])}


def _residual_out(taps: Sequence[Tap], index: int, block: nn.Module, args: Any, output: Any) -> Any:
    return _written(taps, "on_residual", index, block, args, output)


def _written(taps: Sequence[Tap], site: str, index: int, module: nn.Module, args: Any, output: Any) -> Any:
    if isinstance(output, Tensor):
        return changed(taps, site, index, output)
    return (changed(taps, site, index, output[0]), *output[1:])


def _head_output(
    taps: Sequence[Tap], index: int, n_heads: int, projection: nn.Module, args: tuple[Any, ...]
) -> tuple[Any, ...]:
    flat = args[0]
    z = changed(taps, "on_head_output", index, flat.view(*flat.shape[:-1], n_heads, -1))
    return (z.reshape(flat.shape), *args[1:])


def _neurons(taps: Sequence[Tap], index: int, projection: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return (changed(taps, "on_neurons", index, args[0]), *args[1:])


class TappedAttention:
    """The taps of one attention module."""

    def __init__(self, index: int, keys: Sequence[Tap], patterns: Sequence[Tap], current: CurrentPass) -> None:
        self.index, self.keys, self.patterns, self.current = index, keys, patterns, current


def _tap_attention(attention: nn.Module, tapped: TappedAttention, undo: ExitStack) -> None:
    """Send one module's attention through `_attention` until `undo` is closed."""
    config: Any = getattr(attention, "config", None)
    if config is None:
        raise RimLensError(
            f"layer {tapped.index} has {type(attention).__name__}, which has no attention rows that transformers "
            "hands out: leave it out."
        )
    before = config._attn_implementation
    if before not in (SDPA, EAGER):  # layers share their config: the first one switches it
        config._attn_implementation = EAGER if before == "eager" else SDPA
        undo.callback(setattr, config, "_attn_implementation", before)
    _TAPPED[attention] = tapped
    undo.callback(_TAPPED.pop, attention, None)


class FastCall(AttentionCall):
    """An attention call whose rows are computed from q and k."""

    def __init__(self, layer: int, here: Pass, softmax: SoftmaxRows) -> None:
        super().__init__(layer, here, softmax.query.shape[1], softmax.key.shape[2])
        self.softmax = softmax

    def rows(self, columns: Int[Tensor, "row query"]) -> Float[Tensor, "row head query key"]:
        """See `AttentionCall.rows`."""
        return self.softmax.at(self.query_index(columns), self.hidden)


def _attention(
    compute: Callable[..., tuple[Tensor, Tensor | None]],
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """The registered function: the model's own attention, read and changed by the module's taps."""
    out, weights = compute(module, query, key, value, attention_mask, **options)
    tapped = _TAPPED.get(module)
    if tapped is None:
        return out, weights
    softmax = SoftmaxRows(module, query, key, attention_mask, options)
    if module not in _CHECKED:
        softmax.check(value, out)
        _CHECKED.add(module)
    here = tapped.current.here or Pass(None, key.shape[2] - query.shape[2], len(query), query.shape[2], query.device)
    call = FastCall(tapped.index, here, softmax)
    for tap in tapped.keys:
        tap.on_keys(tapped.index, call)
    call.seal()
    if call.hidden is not None:
        out = softmax.without(call.hidden, value, out)
    for tap in tapped.patterns:
        tap.on_attention(tapped.index, call)
    return out, weights


def _eager(module: nn.Module, *args: Any, **options: Any) -> tuple[Tensor, Tensor | None]:
    """The eager attention function of the module's own modeling file."""
    function = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    if function is None:
        raise RimLensError(
            f'{type(module).__name__} runs eager attention of its own making: use backend="hooks" for this model.'
        )
    return function(module, *args, **options)


# Registered for the whole process; the names do nothing until a config names them.
AttentionInterface.register(SDPA, partial(_attention, sdpa_attention_forward))
AttentionInterface.register(EAGER, partial(_attention, _eager))
AttentionMaskInterface.register(SDPA, sdpa_mask)
AttentionMaskInterface.register(EAGER, eager_mask)
