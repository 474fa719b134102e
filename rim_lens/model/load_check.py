"""What is checked of every model when it is loaded: one pass over a few tokens, read at every site.

Found here: token ids that the model has no embedding for, NaN in its output, head outputs, neurons and attention rows
that are not where they were expected. The whole comparison is `rim_lens.check`.
"""

import warnings
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from rim_lens.errors import RimLensError
from rim_lens.model.batch import Batch
from rim_lens.model.taps import AttentionCall, Tap
from rim_lens.model.taps_fast import serves

if TYPE_CHECKING:
    from rim_lens.model.lens_model import LensModel

TEXT, N_TOKENS = "Is this model as expected?", 6
ROOM = 1e-2  # over 1 in the sum of a row, for half precision


class LoadTap(Tap):
    """Notes what is wrong at the sites of one pass."""

    def __init__(self, model: "LensModel") -> None:
        self.model = model
        self.wrong: list[str] = []

    def on_attention(self, layer: int, call: AttentionCall) -> None:
        """The last query's row is a distribution, or less where there is an attention sink."""
        row = call.rows(call.here.columns()[-1:].expand(call.here.n_rows, 1))
        if not bool((row >= 0).all()) or not bool((row.sum(-1) <= 1 + ROOM).all()):
            self.wrong.append(f"attention rows of layer {layer} are not a distribution")

    def on_head_output(self, layer: int, z: Float[Tensor, "row pos head d_head"]) -> None:
        """As wide as the config says."""
        self._width(f"head outputs of layer {layer}", z.shape[-2:], (self.model.n_heads, self.model.d_head))

    def _width(self, what: str, found: torch.Size, expected: tuple[int, ...]) -> None:
        if tuple(found) != expected:
            self.wrong.append(f"{what} have shape {list(found)} where the config says {list(expected)}")


class DenseLoadTap(LoadTap):
    """The same for a model whose MLPs have plain neurons."""

    def on_neurons(self, layer: int, post: Float[Tensor, "row pos d_mlp"]) -> None:
        """As wide as the config says."""
        self._width(f"neurons of layer {layer}", post.shape[-1:], (self.model.d_mlp,))


def checked_at_load(model: "LensModel") -> "LensModel":
    """The model, after one short pass; warns of what cannot be read or is not as its config says.

    Raises:
        RimLensError: the tokenizer's ids lie outside the model's embedding, or the model computes NaN.

    """
    tokens = first_tokens(model)
    tap = (LoadTap if model.is_moe else DenseLoadTap)(model)
    taps = [tap] if model.hf is None or serves(model) else []  # else a bridge would have to be booted for it
    try:
        with torch.no_grad(), model.tap(*taps):
            logits = plain_logits(model, tokens)
        wrong = tap.wrong
    except RimLensError as error:
        wrong = [str(error).rstrip(".")]
        with torch.no_grad():
            logits = plain_logits(model, tokens)
    if not bool(torch.isfinite(logits[:, -1]).all()):
        raise RimLensError(
            f"{model.name} computes NaN or infinite logits in {str(model.dtype).removeprefix('torch.')}: "
            "its weights are damaged, or another dtype is needed."
        )
    if wrong:
        warnings.warn(
            f"{model.name}: {'; '.join(wrong[:3])}. `rim-lens check` says what else holds of this model.", stacklevel=3
        )
    return model


def first_tokens(model: "LensModel") -> Tensor:
    """A few tokens of a plain text; a RimLensError where the model has no embedding for one of the tokenizer's ids."""
    ids = model.encode(TEXT)[:N_TOKENS] or [0]
    model.check_ids(ids)
    return torch.tensor([ids], device=model.device)


def plain_logits(model: "LensModel", tokens: Tensor) -> Float[Tensor, "row pos vocab"]:
    """One pass over tokens without padding, through the way that is in use."""
    if model.engine is not None:
        row = torch.zeros_like(tokens)
        last = torch.full((len(tokens),), tokens.shape[1] - 1)
        return model.raw_logits(Batch(tokens, row == 0, row - 1, torch.arange(tokens.shape[1]) + row, last, ()))
    if model.hf is None or model.through_hooks:
        return model.bridge(tokens, return_type="logits")
    return model.hf(tokens, use_cache=False).logits
