"""Runs that differ in the last column only, laid side by side: the runs of a prompt are the columns of one row.

Keys and values of the columns before are the clean pass's and the same for all runs of a prompt. A mask lets each run's
column see them and itself, at the same position, so that nothing is copied or computed per run but that column.
"""

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rim_lens.causal.head_runs import Branches, HeadRuns
from rim_lens.causal.layer_calls import Prefix, entering

if TYPE_CHECKING:
    from rim_lens.causal.resume import ResumablePass


def fits(clean: "ResumablePass") -> bool:
    """Whether runs can lie side by side: one column after a prefix, and masks that hold the keys of each query."""
    if clean.template or not clean.start or clean.calls[0].entering.shape[1] != 1:
        return False
    way = getattr(clean.model.hf.config, "_attn_implementation", None)
    return way in ("sdpa", "eager") and all(
        prefix is not None
        and "attention_mask" in call.kwargs
        and (way == "sdpa" if mask is None else mask.ndim == 4 and mask.shape[-1] == prefix.get_seq_length() + 1)
        for call, prefix in zip(clean.calls, clean.prefixes, strict=True)
        for mask in [call.kwargs.get("attention_mask")]
    )


def is_grid(clean: "ResumablePass", runs: HeadRuns, group: Int[Tensor, " run"]) -> bool:
    """Whether the runs are whole changes: each of them in every prompt, prompt after prompt."""
    n = len(clean.batch)
    if len(group) % n:
        return False
    numbers, prompts = runs.number[group].view(-1, n), runs.prompt[group].view(-1, n)
    return bool((numbers == numbers[:, :1]).all() and (prompts == torch.arange(n)).all())


def climb(clean: "ResumablePass", runs: HeadRuns, group: Int[Tensor, " run"]) -> Float[Tensor, "run one d_model"]:
    """Residual stream of a grid of runs after the last layer."""
    n_prompts = len(clean.batch)
    grid, prompts = group.view(-1, n_prompts), torch.arange(n_prompts)
    branches = Branches(runs.heads[grid[:, 0]], torch.zeros(len(grid), dtype=torch.long))
    stream: Tensor | None = None  # [state, prompt, d_model]
    for index in range(branches.first, len(clean.layers)):
        parent, example = branches.at(index)
        call, cache, after = clean.calls[index], clean.prefixes[index], list[Tensor]()
        assert cache is not None  # `fits`
        column = replace(call, entering=call.entering.transpose(0, 1))
        for columns in torch.arange(len(parent)).split(max(1, clean.tokens_at_once // n_prompts)):
            rows = grid[example[columns]]
            change = partial(changed_columns, runs, index, rows) if bool(runs.changed[rows, index].any()) else None
            mask = mask_of(call.kwargs.get("attention_mask"), cache, n_prompts, len(rows))
            begin = entering(column, stream, parent[columns]).transpose(0, 1).contiguous()
            after.append(clean.layer(index, begin, prompts, change, cache, attention_mask=mask).transpose(0, 1))
        stream = torch.cat(after)
    assert stream is not None  # there is at least the last layer
    return stream[branches.state].reshape(len(group), 1, -1)


def changed_columns(
    runs: HeadRuns, layer: int, rows: Int[Tensor, "column prompt"], z: Float[Tensor, "prompt column head d_head"]
) -> Float[Tensor, "prompt column head d_head"]:
    """Head outputs after each column's change."""
    alone = z.transpose(0, 1).reshape(-1, 1, *z.shape[2:])
    return runs.change(layer, rows.reshape(-1), alone).view(*rows.shape, *z.shape[2:]).transpose(0, 1)


def mask_of(clean: Any, cache: Prefix, n_prompts: int, n: int) -> Tensor:
    """What each of n columns sees: the keys before as in the clean pass, and itself."""
    if clean is None:
        clean = torch.ones(1, 1, 1, cache.get_seq_length() + 1, dtype=torch.bool, device=cache.keys.device)
    itself = torch.eye(n, dtype=torch.bool, device=clean.device)
    if clean.dtype != torch.bool:
        itself = torch.zeros(n, n, dtype=clean.dtype, device=clean.device).masked_fill(
            ~itself, torch.finfo(clean.dtype).min
        )
    before = clean[..., :-1].expand(n_prompts, -1, n, -1)
    return torch.cat([before, itself.expand(n_prompts, before.shape[1], n, n)], dim=-1)
