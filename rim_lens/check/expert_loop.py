"""Neurons of mixture-of-experts layers by a plain loop over tokens and their experts.

    a[expert, unit] = routing probability · act(gate(x)) · up(x)          0 for experts a token was not sent to

The same loop's sum over experts of down(a) must be what the layer itself wrote, else the formula is not this layer's.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rim_lens.errors import RimLensError

ROOM = {torch.float32: 1e-3, torch.float64: 1e-3}


def is_experts(module: nn.Module) -> bool:
    """Whether a module holds the down projections of several experts as one tensor."""
    return isinstance(getattr(module, "down_proj", None), nn.Parameter) and module.down_proj.ndim == 3


def expert_neurons(
    layers: Sequence[nn.Module], run: Callable[[], Any], last: int
) -> Float[Tensor, "layer pos expert unit"]:
    """Neurons of every layer in the pass that `run` makes, at its last tokens.

    Raises:
        RimLensError: experts that compute something else.

    """
    calls: dict[nn.Module, tuple[tuple[Any, ...], Tensor]] = {}
    with ExitStack() as undo:
        for layer in layers:
            handle = layer.register_forward_hook(lambda module, args, output: calls.__setitem__(module, (args, output)))
            undo.callback(handle.remove)
        run()
    return torch.stack([_of_layer(layer, *calls[layer], last) for layer in layers])


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
