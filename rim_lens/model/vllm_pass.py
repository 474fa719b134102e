"""In vLLM's workers: one whole pass over a padded batch, with taps, through vLLM's own modules and weights.

The batch is flattened to vLLM's row of tokens and sent through the model without a KV cache. Attention alone is
computed here, from the q, k and v that vLLM hands to its attention layer, with the same code that reads transformers'
models (`softmax_rows`), so that every query's pattern can be read and keys can be hidden. Each rank has some of the
heads and neurons: what a tap wants to see is gathered over ranks, and each rank goes on with its own part of what the
tap made of it. Taps reduce where they are: only their state leaves the worker.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from rim_lens.engine.vllm_edits import Edits
from rim_lens.errors import RimLensError
from rim_lens.model.batch import Batch
from rim_lens.model.softmax_rows import SoftmaxRows
from rim_lens.model.taps import Pass, Tap, changed, wanting
from rim_lens.model.taps_fast import FastCall, keep


class Inside(Edits):
    """The worker extension: passes with taps, besides `Edits`."""

    @torch.no_grad()
    def lens_pass(
        self, batch: Batch, taps: Sequence[Tap], kept: Int[Tensor, " kept"] | None
    ) -> tuple[Float[Tensor, "row kept vocab"], list[dict[str, Any]]] | None:
        """Logits at the kept columns (None: all), and the state of every tap; None from ranks other than the first."""
        from vllm.distributed import get_tensor_model_parallel_rank
        from vllm.forward_context import set_forward_context

        runner = self.model_runner
        batch = moved(batch, runner.device)
        here = Pass(batch, 0, len(batch.tokens), batch.tokens.shape[1], runner.device)
        model = runner.get_model()
        with ExitStack() as undo:
            for tap in taps:
                tap.on_pass(here)
            for index, layer in enumerate(self.lens_layers()):
                tap_layer(undo, index, layer, taps, here)
            n_layers = len(model.model.layers)
            last = wanting(taps, "on_residual", n_layers)
            if last:
                keep(undo, model.model.norm.register_forward_pre_hook(partial(residual_out, last, n_layers, here)))
            n_tokens = batch.tokens.numel()
            with set_forward_context(None, runner.vllm_config, num_tokens=n_tokens):
                hidden = model(batch.tokens.flatten(), batch.positions.flatten())
            hidden = hidden.view(*batch.tokens.shape, -1)
            wanted = hidden if kept is None else hidden[:, kept.to(hidden.device)]
            logits = model.compute_logits(wanted.flatten(0, 1))  # gathered over ranks, so that all must call it
        if get_tensor_model_parallel_rank() != 0:
            return None
        return logits.view(*wanted.shape[:2], -1).cpu(), [vars(tap) for tap in taps]

    def lens_digests(self) -> list[tuple[str, bytes]]:
        """Names and sha256 of this rank's parameters."""
        from rim_lens.model.lens_model import digest_of

        return [(name, digest_of(value)) for name, value in self.model_runner.get_model().named_parameters()]

    def lens_embedded(self) -> int:
        """Number of token ids that the model has an embedding for."""
        return int(self.model_runner.get_model().model.embed_tokens.org_vocab_size)


def moved(batch: Batch, device: torch.device) -> Batch:
    """The batch on the worker's device."""
    return replace(
        batch,
        tokens=batch.tokens.to(device),
        mask=batch.mask.to(device),
        segments=batch.segments.to(device),
        positions=batch.positions.to(device),
        decision=batch.decision.to(device),
    )


def tap_layer(undo: ExitStack, index: int, layer: nn.Module, taps: Sequence[Tap], here: Pass) -> None:
    """Hook one decoder layer for the time of a pass."""
    attention: Any = layer.self_attn
    keys, patterns = wanting(taps, "on_keys", index), wanting(taps, "on_attention", index)
    keep(undo, attention.attn.register_forward_hook(partial(attend, index, keys, patterns, here)))
    entering = wanting(taps, "on_residual", index)
    if entering:
        keep(undo, layer.register_forward_pre_hook(partial(residual_in, entering, index, here), with_kwargs=True))
    outputs = wanting(taps, "on_head_output", index)
    if outputs:
        each = attention.attn.head_size_v
        keep(
            undo,
            attention.o_proj.register_forward_pre_hook(partial(units, outputs, "on_head_output", index, here, each)),
        )
    neurons = wanting(taps, "on_neurons", index)
    if neurons:
        down = getattr(layer.mlp, "down_proj", None)
        if down is None:
            raise RimLensError(
                f"layer {index} has no plain MLP neurons under vLLM (a mixture of experts): leave it out."
            )
        keep(undo, down.register_forward_pre_hook(partial(units, neurons, "on_neurons", index, here, 0)))
    for site, module in (("on_attention_write", attention), ("on_mlp_write", layer.mlp)):
        writing = wanting(taps, site, index)
        if writing and hasattr(layer, "post_feedforward_layernorm"):
            raise RimLensError(
                f"{type(layer).__name__} has norms behind its sublayers, whose writes are not read under vLLM: "
                "load the model with load_model(name)."
            )
        if writing:
            keep(undo, module.register_forward_hook(partial(written, writing, site, index, here)))


def written(
    taps: Sequence[Tap], site: str, layer: int, here: Pass, module: nn.Module, args: Any, output: Tensor
) -> Tensor:
    """What a sublayer adds to the stream, as the taps leave it; it is whole in every rank."""
    values = output.clone().view(here.n_rows, here.n_queries, -1)  # vLLM's norm adds to the output in place
    return changed(taps, site, layer, values).reshape(output.shape)


def units(
    taps: Sequence[Tap], site: str, layer: int, here: Pass, each: int, module: nn.Module, args: tuple[Any, ...]
) -> tuple[Any, ...]:
    """Heads' outputs (`each`: their width) or neurons (0), gathered, as the taps leave them."""
    whole = gathered(args[0])
    values = whole.view(here.n_rows, here.n_queries, *((-1, each) if each else (-1,)))
    after = changed(taps, site, layer, values)
    return args if after is values else (local(after.reshape(whole.shape)), *args[1:])


def residual_in(
    taps: Sequence[Tap], layer: int, here: Pass, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The stream that enters a layer called as (positions, hidden, residual): the sum of the last two."""
    if len(args) != 3 or kwargs:
        raise RimLensError(
            f"{type(module).__name__} is not called as (positions, hidden, residual), so that vLLM's residual stream "
            "cannot be read: load the model with load_model(name)."
        )
    positions, hidden, residual = args
    stream = hidden.clone() if residual is None else hidden + residual  # vLLM adds to both in place later
    after = stream_after(taps, layer, here, stream)
    return (args, kwargs) if after is stream else ((positions, after, None), kwargs)


def residual_out(
    taps: Sequence[Tap], layer: int, here: Pass, module: nn.Module, args: tuple[Any, ...]
) -> tuple[Any, ...]:
    """The stream after the last layer, before the final norm."""
    hidden, residual = args
    stream = hidden + residual
    after = stream_after(taps, layer, here, stream)
    return args if after is stream else (after, torch.zeros_like(after))


def stream_after(taps: Sequence[Tap], layer: int, here: Pass, stream: Tensor) -> Tensor:
    """A stream of tokens as the taps leave it."""
    values = stream.view(here.n_rows, here.n_queries, -1)
    after = changed(taps, "on_residual", layer, values)
    return stream if after is values else after.reshape(stream.shape)


def attend(
    layer: int,
    keys: Sequence[Tap],
    patterns: Sequence[Tap],
    here: Pass,
    attention: Any,
    args: tuple[Any, ...],
    output: Tensor,
) -> Tensor:
    """In the place of the attention layer's own output, which has no cache to look into: that of this batch."""
    check(attention)
    query, key, value = (
        tensor.view(here.n_rows, here.n_queries, n_heads, -1).transpose(1, 2)
        for tensor, n_heads in zip(
            args[:3], (attention.num_heads, attention.num_kv_heads, attention.num_kv_heads), strict=True
        )
    )
    visible = visible_keys(here, attention.sliding_window)
    options = {"scaling": attention.impl.scale, "softcap": attention.impl.logits_soft_cap or None}
    sinks = getattr(attention.impl, "sinks", None)
    softmax = SoftmaxRows(attention, query, key, visible, {**options, "s_aux": sinks})
    if options["softcap"] or sinks is not None:
        index = torch.arange(here.n_queries, device=query.device)[None].expand(here.n_rows, -1)
        group = query.shape[1] // value.shape[1]
        out = (softmax.at(index).to(value.dtype) @ value.repeat_interleave(group, dim=1)).transpose(1, 2)
    else:
        # rows without any visible key are padding; SDPA would make NaN of them, which spread through masked values
        safe = visible | ~visible.any(-1, keepdim=True)
        out = nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=safe, scale=options["scaling"], enable_gqa=True
        ).transpose(1, 2)
    if keys or patterns:
        out = tapped(layer, keys, patterns, here, attention, softmax, options, sinks, value, out)
    return out.reshape(output.shape)


def tapped(
    layer: int,
    keys: Sequence[Tap],
    patterns: Sequence[Tap],
    here: Pass,
    attention: Any,
    softmax: SoftmaxRows,
    options: dict[str, Any],
    sinks: Tensor | None,
    value: Tensor,
    out: Float[Tensor, "row query head d_value"],
) -> Float[Tensor, "row query head d_value"]:
    """Show the taps the pattern of all heads, and hide what they hide."""
    query, key = (gathered(one, dim=1) for one in (softmax.query, softmax.key))
    all_sinks = None if sinks is None else gathered(sinks, dim=0)
    whole = SoftmaxRows(attention, query, key, softmax.mask, {**options, "s_aux": all_sinks})
    call = FastCall(layer, here, whole)
    for tap in keys:
        tap.on_keys(layer, call)
    call.seal()
    if call.hidden is not None:
        out = local(whole.without(call.hidden, gathered(value, dim=1), gathered(out, dim=2)), dim=2)
    for tap in patterns:
        tap.on_attention(layer, call)
    return out


def check(attention: Any) -> None:
    """Raise a RimLensError for attention that is not softmax(q·k) of a decoder."""
    impl = attention.impl
    known = type(attention).__name__ == "Attention" and getattr(impl, "alibi_slopes", None) is None
    if not known or getattr(attention, "kv_sharing_target_layer_name", None) is not None:
        raise RimLensError(
            f"{type(attention).__name__} under vLLM is not plain causal attention, which alone can be read there: load "
            "the model with load_model(name)."
        )


def visible_keys(here: Pass, window: int | None) -> Bool[Tensor, "row 1 query key"]:
    """Causal, without padding, and within the sliding window where there is one."""
    batch = here.known_batch("a pass under vLLM")
    columns = here.columns()
    near = columns[None] <= columns[:, None]
    if window is not None:
        near &= columns[None] > columns[:, None] - window
    return (near[None] & batch.mask[:, None])[:, None]


def gathered(tensor: Tensor, dim: int = -1) -> Tensor:
    """The tensor with every rank's part along `dim`."""
    from vllm.distributed import get_tensor_model_parallel_world_size, tensor_model_parallel_all_gather

    if get_tensor_model_parallel_world_size() == 1:
        return tensor
    return tensor_model_parallel_all_gather(tensor.contiguous(), dim)


def local(tensor: Tensor, dim: int = -1) -> Tensor:
    """The part of a gathered tensor that is this rank's."""
    from vllm.distributed import get_tensor_model_parallel_rank, get_tensor_model_parallel_world_size

    return tensor.chunk(get_tensor_model_parallel_world_size(), dim=dim)[get_tensor_model_parallel_rank()]
