"""Where a plain transformers tree has its decoder layers, attention, output and down projections.

Found by the names transformers' models share, checked by shape; a layer may lack attention (linear attention, state
space) or neurons (a mixture of experts), which is None here.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from torch import nn

from rim_lens.errors import RimLensError

if TYPE_CHECKING:
    from rim_lens.model.lens_model import LensModel

ATTENTION = ("self_attn", "attn", "attention", "self_attention")
OUTPUT = ("o_proj", "out_proj", "c_proj", "dense", "wo", "o")
MLP = ("mlp", "feed_forward", "ffn")
LINEAR_ATTENTION = ("linear_attn",)
# Norms on what a sublayer writes. "post_attention_layernorm" is one only beside a norm behind the MLP: elsewhere it
# stands in front of the MLP.
MLP_NORM = ("post_feedforward_layernorm", "post_mlp_layernorm")
ATTENTION_NORM = ("post_self_attn_layernorm", "post_attention_layernorm")
DOWN = ("down_proj", "c_proj", "dense_4h_to_h", "fc2", "w2", "wo", "proj_2", "fc_out", "out_proj")


@dataclass(frozen=True, eq=False)
class Layer:
    """The modules of one decoder layer that taps sit on."""

    block: nn.Module
    attention: nn.Module | None
    output: nn.Module | None  # its input is the heads' outputs, [row, pos, head * d_head]
    down: nn.Module | None  # its input is the neurons, [row, pos, d_mlp]
    attention_norm: nn.Module | None  # on the attention's output, in the architectures that have one
    mlp_norm: nn.Module | None
    attention_write: nn.Module | None  # its output is added to the residual stream
    mlp_write: nn.Module | None


@dataclass(frozen=True, eq=False)
class Sites:
    """The module that runs the decoder layers, and the layers."""

    trunk: nn.Module
    layers: tuple[Layer, ...]


_SITES: WeakKeyDictionary[Any, Sites] = WeakKeyDictionary()


def sites_of(model: "LensModel") -> Sites:
    """The tap sites of `model.hf`, found once."""
    if model.hf not in _SITES:
        _SITES[model.hf] = find_sites(model.hf, model.n_layers)
    return _SITES[model.hf]


def find_sites(hf: Any, n_layers: int) -> Sites:
    """The tap sites of a transformers model.

    Raises:
        RimLensError: no list of `n_layers` decoder layers is found.

    """
    decoder = hf.get_decoder() if hasattr(hf, "get_decoder") else hf.base_model
    for trunk in (decoder, hf):
        for owner in trunk.modules():
            for child in owner.children():
                if isinstance(child, nn.ModuleList) and len(child) == n_layers:
                    return Sites(owner, tuple(_layer(block) for block in child))
    raise RimLensError(
        f'no list of {n_layers} decoder layers found in {type(hf).__name__}: use backend="hooks" for this model.'
    )


def _layer(block: nn.Module) -> Layer:
    attention = _child(block, ATTENTION)
    mlp = _child(block, MLP) or block
    is_mixture = hasattr(mlp, "experts")
    mlp_norm = _child(block, MLP_NORM)
    attention_norm = None if mlp_norm is None else _child(block, ATTENTION_NORM)
    return Layer(
        block=block,
        attention=attention,
        output=None if attention is None else _child(attention, OUTPUT),
        down=None if is_mixture else find_down(mlp),
        attention_norm=attention_norm,
        mlp_norm=mlp_norm,
        attention_write=attention_norm or attention or _child(block, LINEAR_ATTENTION),
        mlp_write=mlp_norm or (None if mlp is block else mlp),
    )


def find_down(mlp: nn.Module) -> nn.Module | None:
    """The down projection of an MLP, by its name."""
    return _child(mlp, DOWN)


def _child(module: nn.Module, names: tuple[str, ...]) -> nn.Module | None:
    for name in names:
        child = getattr(module, name, None)
        if isinstance(child, nn.Module):
            return child
    return None
