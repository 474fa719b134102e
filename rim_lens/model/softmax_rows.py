"""Exact rows of an attention pattern from q, k and the mask.

scores = q · k^T * scaling;  soft-capping: c tanh(scores / c);  mask;  softmax over keys (and the sink, if there is one)
"""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from rim_lens.errors import RimLensError

CHUNK = 256  # query positions at a time where all of them are computed: memory grows linearly with length


class SoftmaxRows:
    """The pattern of one attention call; only the rows that are asked for are computed.

    Raises:
        RimLensError: the call carries something that changes the pattern and is not understood (a position bias, a mask
            of another kind): never silently wrong.

    """

    def __init__(
        self,
        module: nn.Module,
        query: Float[Tensor, "row head query d_head"],
        key: Float[Tensor, "row kv_head key d_head"],
        mask: Tensor | None,
        options: dict[str, Any],
    ) -> None:
        self.name = type(module).__name__
        self.query, self.key = query, key
        scaling = options.get("scaling")
        self.scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        self.cap: float | None = options.get("softcap")
        sinks = options.get("s_aux")
        self.sinks: Tensor | None = getattr(module, "sinks", None) if sinks is None else sinks
        self.mask = mask
        if options.get("position_bias") is not None:
            self._refuse("adds a position bias to its scores")
        if mask is not None and (not isinstance(mask, Tensor) or mask.ndim != 4):
            self._refuse("has a mask that is not [row, head, query, key]")
        causal = options.get("is_causal")
        self.causal = getattr(module, "is_causal", True) if causal is None else causal

    def _refuse(self, why: str) -> None:
        raise RimLensError(f'{self.name} {why}, which backend="fast" cannot read: use backend="hooks".')

    def at(
        self, index: Int[Tensor, "row query"], hidden: Bool[Tensor, "row head #query key"] | None = None
    ) -> Float[Tensor, "row head query key"]:
        """Rows at each row's query indices, in float32."""
        first = index[0]
        if len(index) == 1 or bool((index == first).all()):
            query = self.query[:, :, first]
            visible = self._mask_at(first)
        else:
            row = torch.arange(len(index), device=index.device)[:, None]
            query = self.query[row, :, index].transpose(1, 2)
            visible = self._mask_of_rows(row, index)
        if hidden is not None and hidden.shape[2] > 1:
            row = torch.arange(len(index), device=index.device)[:, None]
            hidden = hidden.expand(len(index), -1, -1, -1)[row, :, index].transpose(1, 2)
        return self._softmax(query, self.key, visible, hidden, slice(None))

    def without(
        self, hidden: Bool[Tensor, "#row head #query key"], value: Tensor, out: Float[Tensor, "row query head d_value"]
    ) -> Float[Tensor, "row query head d_value"]:
        """`out` with the outputs of the heads that have hidden keys recomputed; the others are left bit for bit."""
        heads = hidden.any(dim=-1).any(dim=2).any(dim=0).nonzero()[:, 0]
        if not len(heads):
            return out
        group = self.query.shape[1] // self.key.shape[1]
        out = out.clone()
        query, key, chosen = self.query[:, heads], self.key[:, heads // group], value[:, heads // group]
        for start in range(0, query.shape[2], CHUNK):
            part = torch.arange(start, min(start + CHUNK, query.shape[2]), device=query.device)
            visible = self._mask_at(part, heads)
            hide = hidden[:, heads] if hidden.shape[2] == 1 else hidden[:, heads][:, :, part]
            rows = self._softmax(query[:, :, part], key, visible, hide, heads).to(value.dtype)
            out[:, part[:, None], heads] = (rows @ chosen).transpose(1, 2)
        return out

    def check(self, value: Tensor, out: Float[Tensor, "row query head d_value"]) -> None:
        """Compare this formula with the module's own output at the last query.

        Raises:
            RimLensError: they differ, so the architecture does something to its scores that is not known here.

        """
        with torch.no_grad():
            last = torch.full((len(out), 1), out.shape[1] - 1, device=out.device)
            group = self.query.shape[1] // value.shape[1]
            z = self.at(last) @ value.repeat_interleave(group, dim=1).float()
            z, own = z[:, :, 0], out[:, -1].float()
            nan = z.isnan() & own.isnan()  # of the pass itself: its logits will show it
            z, own = z.masked_fill(nan, 0.0), own.masked_fill(nan, 0.0)
            largest = z.abs().amax()  # not of rows without any visible key, where implementations differ
            error = ((z - own).abs() * (z != 0)).amax()
        tolerance = 1e-3 if out.dtype in (torch.float32, torch.float64) else 3e-2
        if not bool(error <= tolerance * largest.clamp(min=1e-6)):
            self._refuse(f"computes something else than softmax(q·k) (off by {float(error):.2g})")

    def _mask_at(self, index: Int[Tensor, " query"], heads: Tensor | None = None) -> Tensor | None:
        """Mask of query indices shared by all rows, broadcastable to [row, head, query, key]; None: everything seen."""
        if self.mask is not None:
            mask = self.mask if heads is None or self.mask.shape[1] == 1 else self.mask[:, heads]
            return mask[:, :, index, : self.key.shape[2]]
        return self._causal(index[None])

    def _mask_of_rows(self, row: Tensor, index: Int[Tensor, "row query"]) -> Tensor | None:
        if self.mask is None:
            return self._causal(index)
        mask = self.mask.expand(len(index), -1, -1, -1)[..., : self.key.shape[2]]
        return mask[row, :, index].transpose(1, 2)

    def _causal(self, index: Int[Tensor, "#row query"]) -> Tensor | None:
        """Without a mask, SDPA is causal over more than one query; a single query attends to every key."""
        if not self.causal or self.query.shape[2] == 1:
            return None
        keys = torch.arange(self.key.shape[2], device=index.device)
        return (keys <= index[..., None])[:, None]

    def _softmax(
        self, query: Tensor, key: Tensor, visible: Tensor | None, hidden: Tensor | None, heads: Any
    ) -> Float[Tensor, "row head query key"]:
        rows, n_heads, n_queries, width = query.shape
        group = n_heads // key.shape[1]
        grouped = query.reshape(rows, key.shape[1], group * n_queries, width)
        scores = (grouped @ key.transpose(-1, -2)).view(rows, n_heads, n_queries, -1).float() * self.scaling
        if self.cap is not None:
            scores = self.cap * torch.tanh(scores / self.cap)
        if visible is not None and visible.dtype == torch.bool:
            scores = scores.masked_fill(~visible, -torch.inf)
        elif visible is not None:
            lowest = torch.finfo(visible.dtype).min
            scores = (scores + visible).masked_fill(visible <= lowest, -torch.inf)
        if hidden is not None:
            scores = scores.masked_fill(hidden, -torch.inf)
        if self.sinks is not None:
            sink = self.sinks[heads].float().reshape(1, -1, 1, 1).expand(rows, n_heads, n_queries, 1)
            return torch.cat([scores, sink], dim=-1).softmax(-1)[..., :-1]
        if visible is None and hidden is None:
            return scores.softmax(-1)
        return scores.softmax(-1).nan_to_num(0.0)  # a query without a key writes nothing
