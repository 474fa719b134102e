"""What a layer's parts write at the decision position, read along one direction in front of the final norm."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rim_lens.model.direct_path import FrozenNorm, bias_of, head_matrix, layer_norms, multiplier, neuron_matrix
from rim_lens.model.lens_model import LensModel
from rim_lens.model.sites import sites_of
from rim_lens.model.taps import Pass, Tap

Effect = Float[Tensor, " row"]


class DecisionTap(Tap):
    """Residual stream, heads' outputs, neurons and sublayers' writes at the decision position of the latest pass."""

    def __init__(self, model: LensModel) -> None:
        self.model = model
        self.stream: dict[int, Float[Tensor, "row d_model"]] = {}
        self.z: dict[int, Float[Tensor, "row head d_head"]] = {}
        self.attention: dict[int, Float[Tensor, "row d_model"]] = {}
        self.mlp: dict[int, Float[Tensor, "row d_model"]] = {}
        self.neurons = NeuronTap(model)

    def attached(self) -> AbstractContextManager[LensModel]:
        """The taps on the model."""
        return self.model.tap(self, self.neurons, backend="fast")

    def on_pass(self, here: Pass) -> None:
        """Find the decision column of every row."""
        super().on_pass(here)
        self.columns = here.known_batch("direct attribution").decision.to(here.device)

    def _there(self, values: Float[Tensor, "row pos *rest"]) -> Float[Tensor, "row *rest"]:
        columns = self.columns.to(values.device)
        return values[torch.arange(len(values), device=values.device), columns]

    def on_residual(self, layer: int, resid: Float[Tensor, "row pos d_model"]) -> None:
        """Keep the decision position."""
        self.stream[layer] = self._there(resid)

    def on_head_output(self, layer: int, z: Float[Tensor, "row pos head d_head"]) -> None:
        """Keep the decision position."""
        self.z[layer] = self._there(z)

    def on_attention_write(self, layer: int, written: Float[Tensor, "row pos d_model"]) -> None:
        """Keep the decision position."""
        self.attention[layer] = self._there(written)

    def on_mlp_write(self, layer: int, written: Float[Tensor, "row pos d_model"]) -> None:
        """Keep the decision position."""
        self.mlp[layer] = self._there(written)


class NeuronTap(Tap):
    """Neurons of the dense layers at the decision position."""

    def __init__(self, model: LensModel) -> None:
        self.layers = frozenset(i for i, layer in enumerate(sites_of(model).layers) if layer.down is not None)
        self.post: dict[int, Float[Tensor, "row d_mlp"]] = {}

    def on_neurons(self, layer: int, post: Float[Tensor, "row pos d_mlp"]) -> None:
        """Keep the decision position."""
        assert self.here is not None
        columns = self.here.known_batch("direct attribution").decision.to(post.device)
        self.post[layer] = post[torch.arange(len(post), device=post.device), columns]


class Sublayer:
    """One sublayer whose units are known: units · matrix + bias, times a factor, through a norm where there is one."""

    def __init__(
        self,
        matrix: Float[Tensor, "unit d_model"],
        bias: Float[Tensor, "d_model"] | None,
        factor: float,
        norm: FrozenNorm | None,
        along: Float[Tensor, "d_model"],
    ) -> None:
        self.norm, self.matrix = norm, matrix
        self.own = matrix.new_zeros(matrix.shape[1]) if bias is None else bias
        front = along if norm is None else norm.back(along)
        self.read = factor * (matrix.double() @ front)
        self.of_bias = factor * float(self.own.double() @ front)
        self.of_norm = 0.0 if norm is None else factor * float(norm.bias @ along)

    def effects(self, units: Float[Tensor, "row unit"]) -> tuple[Float[Tensor, "row unit"], Effect]:
        """The effect of every unit, and of the biases."""
        values = units.double() * self.read
        bias = torch.full_like(values[:, 0], self.of_bias)
        if self.norm is not None:
            length = self.norm.length(units.double() @ self.matrix.double() + self.own.double())
            values, bias = values / length[:, None], bias / length
        return values, bias + self.of_norm


class LayerPaths:
    """The effects of one layer's components before the division by the final norm's length; `names` in their order."""

    @torch.no_grad()
    def __init__(self, model: LensModel, layer: int, along: Float[Tensor, "d_model"]) -> None:
        self.layer, self.n_heads, self.d_mlp = layer, model.n_heads, model.d_mlp
        site = sites_of(model).layers[layer]
        matrix, norms, factor = head_matrix(model, layer), layer_norms(model, layer), multiplier(site)
        self.along, self.attention, self.mlp = along, None, None
        if matrix is not None:
            self.attention = Sublayer(matrix, bias_of(site.output), factor, norms[0], along.to(matrix.device))
        if site.down is not None:
            matrix = neuron_matrix(model, layer)
            self.mlp = Sublayer(matrix, bias_of(site.down), factor, norms[1], along.to(matrix.device))
        self.factor = factor
        heads = [("head", layer, head) for head in range(model.n_heads)] if self.attention else []
        self.names = [*heads, ("attention bias" if self.attention else "attention", layer, -1)]
        self.names += [("MLP", layer, -1), ("MLP bias", layer, -1)] if self.mlp else [("experts", layer, -1)]

    def effects(self, tap: DecisionTap) -> tuple[list[Effect], Float[Tensor, "row neuron"]]:
        """Effects in the order of `names`, and those of the neurons (NaN where there are only experts)."""
        parts: list[Effect] = []
        if self.attention is not None:
            z = tap.z[self.layer]
            values, bias = self.attention.effects(z.flatten(1))
            parts += [*values.view(len(z), self.n_heads, -1).sum(-1).unbind(1), bias]
        else:
            parts.append(self._whole(tap.attention[self.layer]))
        if self.mlp is not None:
            values, bias = self.mlp.effects(tap.neurons.post[self.layer])
            return [*parts, values.sum(-1), bias], values
        written = tap.mlp[self.layer]
        return [*parts, self._whole(written)], written.new_full((len(written), self.d_mlp), torch.nan).double()

    def _whole(self, written: Float[Tensor, "row d_model"]) -> Effect:
        """A sublayer whose units are not known: what it writes, as it is added."""
        return self.factor * (written.double() @ self.along.to(written.device))


def added_bias(row: Callable[[Tensor], Tensor], unembedding: nn.Linear) -> float:
    """The difference that the unembedding's own bias makes."""
    bias = bias_of(unembedding)
    return 0.0 if bias is None else float(row(bias))
