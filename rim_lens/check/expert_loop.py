"""Neurons of mixture-of-experts layers by a plain loop over tokens and their experts.

    a[expert, unit] = routing probability · act(gate(x)) · up(x)          0 for experts a token was not sent to

The same loop's sum over experts of down(a) must be what the layer itself wrote, else the formula is not this layer's. A
plain MLP beside the experts (a shared expert) or in their place (a dense layer) stands behind them in blocks as wide as
an expert; how much of a shared expert's output the layer takes is read off what the layer wrote beyond its experts.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rim_lens.errors import RimLensError

ROOM = {torch.float32: 1e-3, torch.float64: 1e-3}


def is_experts(module: nn.Module) -> bool:
    """Whether a module holds the down projections of several experts as one tensor."""
    return isinstance(getattr(module, "down_proj", None), nn.Parameter) and module.down_proj.ndim == 3


class MixturePart(NamedTuple):
    """A layer's experts, and the down projection of a plain MLP beside them or in their place."""

    experts: nn.Module | None
    down: nn.Module | None


def mixture_neurons(
    hf: nn.Module, layers: Sequence[MixturePart], run: Callable[[], Any], last: int, d_mlp: int
) -> Float[Tensor, "layer pos expert unit"]:
    """Neurons of every layer in the pass that `run` makes, at its last tokens; NaN where a layer has none.

    Raises:
        RimLensError: experts that compute something else.

    """
    owners = {child: module for module in hf.modules() for child in module.children()}
    calls: dict[nn.Module, tuple[tuple[Any, ...], Any]] = {}
    watched = [module for layer in layers for module in (*layer, owners.get(layer.experts)) if module is not None]
    with ExitStack() as undo:
        for module in watched:
            keep = lambda module, args, output: calls.__setitem__(module, (args, output))  # noqa: E731
            undo.callback(module.register_forward_hook(keep).remove)
        run()
    neurons = []
    for experts, down in layers:
        parts = [] if experts is None else [_of_layer(experts, *calls[experts], last)]
        if down is not None:
            values = calls[down][0][0].reshape(-1, calls[down][0][0].shape[-1])[-last:].float().cpu()
            if experts is not None:
                whole, routed, shared = (calls[one][1] for one in (owners[experts], experts, down))
                values = _share(whole, routed, shared, last)[:, None] * values
            parts.append(
                nn.functional.pad(values, (0, -values.shape[1] % d_mlp), value=torch.nan).unflatten(1, (-1, d_mlp))
            )
        neurons.append(torch.cat(parts, dim=1))
    places = max(layer.shape[1] for layer in neurons)
    return torch.stack(
        [nn.functional.pad(layer, (0, 0, 0, places - layer.shape[1]), value=torch.nan) for layer in neurons]
    )


def _share(whole: Any, routed: Tensor, shared: Tensor, last: int) -> Float[Tensor, " pos"]:
    """How much of the shared expert's output each token's layer took: (whole − routed) over shared."""
    whole = whole[0] if isinstance(whole, tuple) else whole
    flat = [one.reshape(-1, one.shape[-1])[-last:].float().cpu() for one in (whole, routed, shared)]
    rest = flat[0] - flat[1]
    share = (rest * flat[2]).sum(dim=1) / flat[2].square().sum(dim=1)
    room = ROOM.get(shared.dtype, 5e-2)
    if float((rest - share[:, None] * flat[2]).abs().max()) > room * float(rest.abs().max()):
        raise RimLensError("a layer takes something else than its experts and a share of its shared expert.")
    return share


def without_expert_unit(expert: int, unit: int) -> Callable[[Any, tuple[Any, ...], Tensor], Tensor]:
    """A forward hook that takes what one unit of one expert wrote out of the layer's output, token by token."""

    def hook(experts: Any, args: tuple[Any, ...], output: Tensor) -> Tensor:
        hidden = args[0].reshape(-1, args[0].shape[-1])
        index, weights = args[1], args[2]
        written = output.reshape(hidden.shape).clone()
        down = experts.down_proj[expert]
        column = down[unit] if _transposed(experts) else down[:, unit]
        for token, choice in (index == expert).nonzero().tolist():
            written[token] -= weights[token, choice] * _post(experts, expert, hidden[token])[unit] * column
        return written.reshape(output.shape)

    return hook


def _of_layer(experts: Any, args: tuple[Any, ...], output: Tensor, last: int) -> Float[Tensor, "pos expert unit"]:
    hidden = args[0].reshape(-1, args[0].shape[-1])[-last:]
    index, weights = args[1][-last:], args[2][-last:]
    n_experts, *shape = experts.down_proj.shape
    neurons = torch.zeros(len(hidden), n_experts, shape[0] if _transposed(experts) else shape[1])
    written = torch.zeros(hidden.shape, dtype=torch.float32)
    for token in range(len(hidden)):
        for choice, expert in enumerate(index[token].tolist()):
            weight = float(weights[token, choice])
            post = _post(experts, expert, hidden[token])
            neurons[token, expert] = weight * post.float().cpu()
            written[token] += weight * _linear(experts, "down_proj", expert, post).float().cpu()
    expected = output.reshape(-1, hidden.shape[-1])[-last:].float().cpu()
    room = ROOM.get(output.dtype, 5e-2)
    if float((written - expected).abs().max()) > room * float(expected.abs().max()):
        raise RimLensError(f"the experts of {type(experts).__name__} compute something else than gated experts.")
    return neurons


def _post(experts: Any, expert: int, x: Float[Tensor, " d_model"]) -> Float[Tensor, " unit"]:
    if not hasattr(experts, "gate_up_proj"):
        return experts.act_fn(_linear(experts, "up_proj", expert, x))
    both = _linear(experts, "gate_up_proj", expert, x)
    if hasattr(experts, "gate_up_proj_bias"):  # GPT-OSS: gate and up interleaved, clamped
        gate, up = both[::2].clamp(max=experts.limit), both[1::2].clamp(-experts.limit, experts.limit)
        return (up + 1) * gate * torch.sigmoid(experts.alpha * gate)
    gate, up = both.chunk(2)
    return experts.act_fn(gate) * up


def _transposed(experts: Any) -> bool:
    """Whether weights are stored [expert, in, out]."""
    return bool(getattr(experts, "is_transposed", False))


def _linear(experts: Any, name: str, expert: int, x: Float[Tensor, " width"]) -> Tensor:
    weight = getattr(experts, name)[expert]
    weight = weight.T if _transposed(experts) else weight
    bias = getattr(experts, f"{name}_bias", None)
    return weight @ x + (0 if bias is None else bias[expert])
