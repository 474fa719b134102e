"""A transformers model computed by itself, one chat at a time: no padding, no batch, no tap, only plain torch hooks.

The modules that write attention and MLP output into the residual stream are found by watching which linear layers a
pass calls last, not by their names.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import GenerationConfig
from transformers.pytorch_utils import Conv1D

from rim_lens.chat.chat import Chat
from rim_lens.check.expert_loop import MixturePart, is_experts, mixture_neurons, without_expert_unit
from rim_lens.errors import RimLensError
from rim_lens.model.lens_model import LensModel


class PlainLayer(NamedTuple):
    """The modules of one decoder layer, None where it has no such part."""

    attention: nn.Module | None
    output: nn.Module | None  # the last linear layer called inside the attention
    down: nn.Module | None  # the last linear layer called in the block, or in a shared expert beside experts
    experts: nn.Module | None


class PlainTree:
    """The reference for models of transformers."""

    kind = "transformers"

    def __init__(self, model: LensModel) -> None:
        self.model, self.hf = model, model.hf
        text = (
            self.hf.get_decoder() if hasattr(self.hf, "get_decoder") else self.hf
        )  # beside a vision tower of equal depth
        inside = (module for tree in (text, self.hf) for module in tree.modules())
        blocks = next((m for m in inside if isinstance(m, nn.ModuleList) and len(m) == model.n_layers), None)
        if blocks is None:
            raise RimLensError(f"{type(self.hf).__name__} has no list of {model.n_layers} decoder layers.")
        self.layers = self._watched(list(blocks))

    # ---- where things are -----------------------------------------------------------------------------------------
    def _watched(self, blocks: list[nn.Module]) -> list[PlainLayer]:
        called: list[nn.Module] = []
        with ExitStack() as undo:
            for block in blocks:
                for module in block.modules():
                    if isinstance(module, nn.Linear | Conv1D):
                        handle = module.register_forward_pre_hook(lambda module, args: called.append(module))
                        undo.callback(handle.remove)
            self._forward(torch.zeros(1, 2, dtype=torch.long, device=self.model.device))
        return [_plain_layer(block, called, self.model.d_model) for block in blocks]

    # ---- passes ---------------------------------------------------------------------------------------------------
    def _forward(self, tokens: Tensor) -> Float[Tensor, "row pos vocab"]:
        return self.hf(tokens, use_cache=False).logits

    def logits(self, chat: Chat) -> Float[Tensor, "pos vocab"]:
        """Logits of one chat alone."""
        return self._forward(self._tokens(chat))[0].float()

    def _tokens(self, chat: Chat) -> Tensor:
        return torch.from_numpy(chat.token_ids)[None].to(self.model.device)

    def greedy(self, chat: Chat, n_tokens: int) -> list[int]:
        """Tokens of transformers' own greedy `generate`, up to the end of the turn."""
        eos = list(self.model.chat_format.eos_ids)
        config = GenerationConfig(
            do_sample=False, max_new_tokens=n_tokens, eos_token_id=eos or None, pad_token_id=self.model.pad_id
        )
        tokens = self._tokens(chat)
        written = self.hf.generate(tokens, attention_mask=torch.ones_like(tokens), generation_config=config)
        return written[0, tokens.shape[1] :].tolist()

    def patterns(self, chat: Chat) -> dict[int, Float[Tensor, "head query key"]]:
        """Weights that the model's own eager attention returns, layer by layer."""
        rows: dict[int, Tensor] = {}

        def keep(layer: int) -> Callable[..., None]:
            return lambda module, args, output: rows.__setitem__(layer, output[1][0].float())

        before = self.hf.config._attn_implementation
        with ExitStack() as undo:
            for index, layer in enumerate(self.layers):
                if layer.attention is not None:
                    undo.callback(layer.attention.register_forward_hook(keep(index)).remove)
            undo.callback(self.hf.set_attn_implementation, before)
            self.hf.set_attn_implementation("eager")
            self._forward(self._tokens(chat))
        return rows

    # ---- heads and neurons ----------------------------------------------------------------------------------------
    @property
    def with_heads(self) -> list[int]:
        """Layers with attention heads."""
        return [index for index, layer in enumerate(self.layers) if layer.output is not None]

    @property
    def with_neurons(self) -> list[int]:
        """Layers with neurons, of a plain MLP or of experts."""
        return [i for i, layer in enumerate(self.layers) if layer.down is not None or layer.experts is not None]

    @contextmanager
    def without_head(self, layer: int, head: int) -> Iterator[None]:
        """Zero the head's slice of the output projection's input."""
        with self._changed_input(self.layers[layer].output, _zeroed_slice(head, self.model.n_heads)):
            yield

    @contextmanager
    def without_neuron(self, layer: int, *unit: int) -> Iterator[None]:
        """Zero one column of the down projection's input, `unit` or (expert, unit).

        Of a plain MLP in a mixture (block, unit).
        """
        experts = self.layers[layer].experts
        first = 0 if experts is None else len(experts.down_proj)
        if experts is None or unit[0] >= first:
            column = unit[-1] if len(unit) == 1 else (unit[0] - first) * self.model.d_mlp + unit[1]
            with self._changed_input(self.layers[layer].down, lambda flat: _zeroed(flat, column)):
                yield
            return
        handle = experts.register_forward_hook(without_expert_unit(*unit))
        try:
            yield
        finally:
            handle.remove()

    @contextmanager
    def _changed_input(self, module: nn.Module | None, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
        assert module is not None
        handle = module.register_forward_pre_hook(lambda module, args: (change(args[0]), *args[1:]))
        try:
            yield
        finally:
            handle.remove()

    def neurons(self, chat: Chat, last: int) -> Float[Tensor, "layer pos *unit"]:
        """Inputs of every layer's down projection at the last tokens.

        Of a mixture [layer, pos, expert, unit], see `expert_loop`.
        """
        if any(layer.experts is not None for layer in self.layers):
            parts = [MixturePart(layer.experts, layer.down) for layer in self.layers]
            return mixture_neurons(self.hf, parts, lambda: self.logits(chat), last, self.model.d_mlp)
        inputs: list[Tensor] = []
        with ExitStack() as undo:
            for index, layer in enumerate(self.layers):
                if layer.down is None:
                    raise RimLensError(f"layer {index} has no MLP, so there are no neurons of every layer to compare.")
                handle = layer.down.register_forward_pre_hook(lambda module, args: inputs.append(args[0][0].float()))
                undo.callback(handle.remove)
            self.logits(chat)
        return torch.stack([one[-last:].cpu() for one in inputs])


def _plain_layer(block: nn.Module, called: Sequence[nn.Module], d_model: int) -> PlainLayer:
    attention = next((child for child in block.children() if type(child).__name__.endswith("Attention")), None)
    experts = next((module for module in block.modules() if is_experts(module)), None)
    inside = set() if attention is None else set(attention.modules())
    mine = set(block.modules())
    projections = [module for module in called if module in inside]
    others = [module for module in called if module in mine and module not in inside]
    apart = set(block.children())  # projections of the block itself (Gemma's per-layer inputs) write beside the MLP
    others = [module for module in others if module not in apart] or others
    if experts is not None:
        owner = next(module for module in block.modules() if experts in module.children())
        others = [other for other in others if other in set(owner.modules()) and other.weight.shape[0] == d_model]
    return PlainLayer(
        attention=attention,
        output=projections[-1] if projections else None,
        down=others[-1] if others else None,
        experts=experts,
    )


def _zeroed_slice(head: int, n_heads: int) -> Callable[[Tensor], Tensor]:
    def change(flat: Float[Tensor, "row pos width"]) -> Tensor:
        width = flat.shape[-1] // n_heads
        return _zeroed(flat, slice(head * width, (head + 1) * width))

    return change


def _zeroed(values: Float[Tensor, "... width"], where: Any) -> Tensor:
    values = values.clone()
    values[..., where] = 0
    return values
