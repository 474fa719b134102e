"""The tokens that all rows of a batch begin with (a system prompt) are computed once and shared through the KV cache.

The rows' own tokens stay where they are; the padding moves from the left to between the shared prefix and them.
Position ids and mask are explicit, so every token attends to what it would attend to, at the same distance.
"""

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from rim_lens.model.attached_taps import detached
from rim_lens.model.batch import Batch
from rim_lens.model.lens_model import LensModel

WORTH = 256  # tokens saved below which one more pass costs more than it saves


def shared_length(model: LensModel, batch: Batch) -> int:
    """How many leading tokens to share; 0 where it is not worth it, or where taps or the architecture forbid it.

    Taps count columns from the left, and windows or recurrent layers count padding, so neither may be moved about.
    """
    length = common_length(model, batch)
    return length if length * (len(batch) - 1) >= WORTH else 0


def common_length(model: LensModel, batch: Batch) -> int:
    """How many leading tokens all rows have in common and could share; 0 where taps or the architecture forbid it."""
    if model.active_taps or not attends_everywhere(model):
        return 0
    rows = [chat_tokens(batch, row) for row in range(len(batch))]
    shortest = min(map(len, rows)) - 1  # at least one token of its own, whose logits are wanted
    heads = torch.stack([row[:shortest] for row in rows])
    same = (heads == heads[:1]).all(0)
    return int(same.cumprod(0).sum())


def attends_everywhere(model: LensModel) -> bool:
    """Whether every layer is full attention over explicit position ids."""
    config = model.hf.config.get_text_config()
    kinds = getattr(config, "layer_types", None) or ["full_attention"]
    return (
        all(kind == "full_attention" for kind in kinds)
        and not getattr(config, "sliding_window", None)
        and "position_ids" in model.hf_inputs(torch.ones(1, 1), torch.zeros(1, 1))
    )


def chat_tokens(batch: Batch, row: int) -> Tensor:
    """A row's tokens without padding."""
    return batch.tokens[row][batch.mask[row]]


def prefix_first(batch: Batch, length: int) -> Batch:
    """The batch with its shared prefix in the first columns of every row and the padding after it."""
    columns = torch.arange(batch.tokens.shape[1], device=batch.tokens.device)[None]
    padding = batch.first[:, None]
    inside = columns < length
    own = columns >= length + padding

    def moved(values: Tensor, fill: Any) -> Tensor:
        rolled = values.gather(1, (columns + padding).clamp(max=values.shape[1] - 1))  # without its left padding
        return torch.where(inside, rolled, torch.where(own, values, torch.full_like(values, fill)))

    return replace(
        batch,
        tokens=moved(batch.tokens, int(batch.tokens[0, 0])),
        mask=inside | own,
        segments=moved(batch.segments, -1),
        positions=moved(batch.positions, 0),
    )


@torch.no_grad()
def columns_cache(
    model: LensModel, batch: Batch, n_columns: int, *, once: bool = False, shared: int = 0, tapped: bool = False
) -> DynamicCache:
    """Keys and values of a batch's first columns; with `once` of the first row, repeated for all rows.

    Only with `tapped` do the active taps see this pass.

    The first `shared` of the columns are computed once; the batch must then be `prefix_first(batch, shared)`.
    """
    cache = columns_cache(model, batch, shared, once=True) if shared else DynamicCache(config=model.hf.config)
    rows, columns = slice(0, 1) if once else slice(None), slice(shared, n_columns)
    inputs = model.hf_inputs(batch.mask[rows, :n_columns], batch.positions[rows, columns])
    with nullcontext() if tapped else detached(model):
        model.hf.base_model(batch.tokens[rows, columns], **inputs, past_key_values=cache, use_cache=True)
    if once:
        cache.batch_repeat_interleave(len(batch))
    return cache
