"""Taps on the neurons of mixture-of-experts layers, inside the experts: the part of the fast backend for `on_expert`.

transformers computes experts as batched tensors, not modules; its `ExpertsInterface` is where a registered function
sees tokens, expert indices and routing weights. The function here computes, expert by expert, over the tokens sent to
it,

    h = act(gate(x)) · up(x)          y = Σ_experts p_expert(x) · down_expert(h)

and hands every tap h (one row per token) with the tokens and their routing probabilities p. Shared experts and dense
layers, which see every token, hand their neurons over block by block, as `mixture_layers` cuts them. The first pass
through each layer checks y against the layer's own implementation, and what a shared expert adds to it.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol
from weakref import WeakKeyDictionary, WeakSet

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from rim_lens.errors import RimLensError
from rim_lens.model.mixture_layers import DensePart, mixture_layers
from rim_lens.model.taps import ExpertCall, Pass, Tap

if TYPE_CHECKING:
    from rim_lens.model.lens_model import LensModel

NAME = "rim_lens_experts"
TOLERANCE = 1e-3  # of the check, relative to the largest output; a wrong formula is off by far more


class Running(Protocol):
    """Holds the running pass; rows of a batch are counted by its number of columns."""

    here: Pass | None


class _Tapped(NamedTuple):
    layer: int
    taps: Sequence[Tap]
    before: str | None  # implementation the layer had
    running: Running

    def row_of(self, token: Int[Tensor, " slot"]) -> Int[Tensor, " slot"]:
        """Row of the batch that each token belongs to."""
        assert self.running.here is not None
        return torch.div(token, self.running.here.n_queries, rounding_mode="floor")


_TAPPED: WeakKeyDictionary[nn.Module, _Tapped] = WeakKeyDictionary()
_CHECKED: WeakSet[nn.Module] = WeakSet()


def install(model: "LensModel", taps: Sequence[Sequence[Tap]], running: Running, undo: ExitStack) -> None:
    """Call `on_expert` of each layer's taps in every pass; closing `undo` takes everything off again.

    Raises:
        RimLensError: the model has no experts, a layer has none, or transformers runs them in another way.

    """
    layers = mixture_layers(model)
    # Layers may share one config, which the first of them switches.
    own = {
        one.experts: getattr(one.experts.config, "_experts_implementation", None)
        for one in layers
        if one.experts is not None
    }
    for layer, (experts, dense) in enumerate(layers):
        tapped = _Tapped(layer, taps[layer], own.get(experts), running)
        if dense is not None and tapped.taps:
            blocks = _DenseBlocks(dense, model.d_mlp, tapped)
            undo.callback(dense.block.register_forward_pre_hook(blocks.begin, with_kwargs=True).remove)
            undo.callback(dense.down.register_forward_pre_hook(blocks.tapped).remove)
        if experts is None:
            continue
        if dense is not None and tapped.taps and dense.down not in _CHECKED:
            undo.enter_context(_checked_share(layer, dense, experts, blocks))
        _TAPPED[experts] = tapped
        undo.callback(_restore, experts, tapped.before)
        config: Any = experts.config
        config._experts_implementation = NAME


def _restore(experts: nn.Module, before: str | None) -> None:
    _TAPPED.pop(experts, None)
    experts.config._experts_implementation = before  # type: ignore[union-attr, assignment]


class _DenseBlocks:
    """Hands the neurons of a shared expert or a dense layer to expert taps, block by block."""

    def __init__(self, part: DensePart, d_mlp: int, tapped: _Tapped) -> None:
        self.part, self.d_mlp, self.tapped_layer = part, d_mlp, tapped
        self.weight: Float[Tensor, " token"] | None = None

    def begin(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward pre-hook of the module that the gate stands in."""
        if self.part.gate is not None:
            hidden = args[0] if args else kwargs["hidden_states"]
            self.weight = torch.sigmoid(self.part.gate(hidden)).flatten()

    def tapped(self, down: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """Forward pre-hook of the down projection."""
        flat = args[0].flatten(0, -2)
        token = torch.arange(len(flat), device=flat.device)
        layer, row = self.tapped_layer.layer, self.tapped_layer.row_of(token)
        weight, changed = flat.new_ones(len(flat)) if self.weight is None else self.weight, False
        parts = list(flat.split(self.d_mlp, dim=1))
        for block, part in enumerate(parts):
            call = ExpertCall(layer, self.part.first + block, token, row, weight)
            post = nn.functional.pad(part, (0, self.d_mlp - part.shape[1]))
            for tap in self.tapped_layer.taps:
                new = tap.on_expert(call, post)
                if new is not None:
                    post, changed = new, True
            parts[block] = post[:, : part.shape[1]]
        return (torch.cat(parts, dim=1).view_as(args[0]), *args[1:]) if changed else None


@contextmanager
def _checked_share(layer: int, part: DensePart, experts: nn.Module, blocks: _DenseBlocks) -> Iterator[None]:
    """Raise in a pass where a layer does not write its routed experts plus the weighted shared one."""
    shares: dict[nn.Module, Tensor] = {}

    def keep(module: nn.Module, args: Any, output: Tensor) -> None:
        shares[module] = output.detach().reshape(-1, output.shape[-1])

    def compare(block: nn.Module, args: Any, output: Any) -> None:
        whole = (output[0] if isinstance(output, tuple) else output).detach()
        weight = 1 if blocks.weight is None else blocks.weight.detach()[:, None]
        rest = whole.reshape(-1, whole.shape[-1]) - shares[experts] - weight * shares[part.down]
        if rest.abs().max() > room_of(whole) * whole.abs().max():
            raise RimLensError(
                f"Layer {layer} weighs its shared expert ({type(block).__name__}) otherwise than by a sigmoid gate "
                "or by 1; this family is not supported."
            )
        _CHECKED.add(part.down)

    hooks = ((experts, keep), (part.down, keep), (part.block, compare))
    handles = [module.register_forward_hook(hook) for module, hook in hooks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _experts(
    module: nn.Module,
    hidden_states: Float[Tensor, "token d_model"],
    top_k_index: Int[Tensor, "token choice"],
    top_k_weights: Float[Tensor, "token choice"],
) -> Float[Tensor, "token d_model"]:
    """The registered function: experts computed one after the other, read and changed by the module's taps."""
    tapped = _TAPPED.get(module)
    if tapped is None:
        raise RimLensError(f"{type(module).__name__} still runs through rim_lens after its taps were removed.")
    if not tapped.taps:
        return _own(module, hidden_states, top_k_index, top_k_weights, tapped)
    if module not in _CHECKED:
        _check(module, hidden_states, top_k_index, top_k_weights, tapped)
        _CHECKED.add(module)
    return _computed(module, hidden_states, top_k_index, top_k_weights, tapped)


def _computed(module: Any, hidden: Tensor, index: Tensor, weights: Tensor, tapped: _Tapped) -> Tensor:
    out = torch.zeros_like(hidden)
    for expert in index.unique().tolist():
        if expert >= module.num_experts:  # a token without an expert on this device
            continue
        token, choice = (index == expert).nonzero(as_tuple=True)
        weight = weights[token, choice]
        post = _neurons(module, expert, hidden[token])
        for tap in tapped.taps:
            new = tap.on_expert(ExpertCall(tapped.layer, expert, token, tapped.row_of(token), weight), post)
            post = post if new is None else new
        written = _linear(module, "down_proj", expert, post)
        if module.has_post_expert_norm:
            written = module.post_expert_norm(written)
        out.index_add_(0, token, (written * weight[:, None]).to(out.dtype))
    return out


def _neurons(module: Any, expert: int, hidden: Float[Tensor, "slot d_model"]) -> Float[Tensor, "slot d_mlp"]:
    if module.has_gate:
        return module._apply_gate(_linear(module, "gate_up_proj", expert, hidden))
    return module.act_fn(_linear(module, "up_proj", expert, hidden))


def _linear(module: Any, name: str, expert: int, x: Tensor) -> Tensor:
    weight = getattr(module, name)[expert]
    bias = getattr(module, f"{name}_bias")[expert] if module.has_bias else None
    return nn.functional.linear(x, weight.T if module.is_transposed else weight, bias)


def _own(module: Any, hidden: Tensor, index: Tensor, weights: Tensor, tapped: _Tapped) -> Tensor:
    """What the layer computes by itself."""
    forward: Callable[..., Tensor] = type(module).forward
    module.config._experts_implementation = tapped.before
    try:
        return forward(module, hidden, index, weights)
    finally:
        module.config._experts_implementation = NAME


@torch.no_grad()
def _check(module: Any, hidden: Tensor, index: Tensor, weights: Tensor, tapped: _Tapped) -> None:
    """Raise unless the formula gives what the layer computes by itself."""
    expected = _own(module, hidden, index, weights, tapped)
    mine = _computed(module, hidden, index, weights, tapped._replace(taps=()))
    if (mine - expected).abs().max() > room_of(mine) * expected.abs().max():
        raise RimLensError(
            f"The experts of layer {tapped.layer} ({type(module).__name__}) compute something else than gated or plain "
            "experts weighted by their routing probability; this family is not supported."
        )


def room_of(values: Tensor) -> float:
    """How far two computations may lie apart, relative to the largest output."""
    return TOLERANCE if values.dtype == torch.float32 else 0.05


ALL_EXPERTS_FUNCTIONS.register(NAME, _experts)
