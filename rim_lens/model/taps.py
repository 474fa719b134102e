"""Taps: the one way a forward pass is read or changed.

A tap is attached with `model.tap(...)` and called at fixed sites of every pass inside the block, in this order in a
layer: `on_residual` (entering), `on_keys` and `on_attention` (the attention pattern), `on_head_output`,
`on_attention_write`, `on_neurons` or `on_expert`, `on_mlp_write`; in blocks with parallel attention and MLP the two
mix.
Two backends call the same methods with the same tensors: "fast" (the plain transformers tree, `taps_fast`) and "hooks"
(TransformerLens hook points, `taps_hooks`). Taps stack in the order of attachment; leaving a block removes its own taps
only.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rim_lens.chat.segments import SEGMENTS
from rim_lens.errors import RimLensError

if TYPE_CHECKING:
    from rim_lens.model.batch import Batch

Backend = Literal["auto", "fast", "hooks"]
STILL_THINKING = [SEGMENTS.index("think_open"), SEGMENTS.index("cot")]


@dataclass(frozen=True, eq=False)
class Pass:
    """Which part of which batch one forward pass computes.

    A pass over prompts starts at column 0; a decoding step with a KV cache starts at the number of cached columns.
    Columns count padding and are those of `batch.tokens`; generated tokens follow.
    """

    batch: "Batch | None"
    start: int
    n_rows: int
    n_queries: int
    device: torch.device

    @property
    def stop(self) -> int:
        """One past the last column that this pass computes."""
        return self.start + self.n_queries

    def known_batch(self, what: str) -> "Batch":
        """The batch, for taps that need its segments or decision columns.

        Raises:
            RimLensError: the pass was not run through `model.logits`, `model.decision_logits` or `model.during(batch)`.

        """
        if self.batch is None:
            raise RimLensError(
                f"{what} needs segments and decision positions, but this pass names no batch: "
                "run it through model.logits, model.decision_logits, or inside `with model.during(batch)`."
            )
        if len(self.batch.tokens) != self.n_rows:
            raise RimLensError(
                f"{what} was given a batch of {len(self.batch.tokens)} rows but the pass computes {self.n_rows}: "
                "name the batch that is really run with `with model.during(batch)`."
            )
        return self.batch

    def columns(self) -> Int[Tensor, " pos"]:
        """The columns that this pass computes."""
        return torch.arange(self.start, self.stop, device=self.device)

    def segments(self, key_start: int, key_stop: int, what: str) -> Int[Tensor, "row key"]:
        """Segment ids of the columns `key_start:key_stop`.

        Columns past the batch are tokens generated since: they go on with its last segment, a prompt that ends inside
        the think part with `cot`, any other with `response`.
        """
        known = self.known_batch(what).segments.to(self.device)
        more = key_stop - known.shape[1]
        if more > 0:
            thinking = torch.isin(known[:, -1:], torch.tensor(STILL_THINKING, device=self.device))
            written = torch.where(thinking, SEGMENTS.index("cot"), SEGMENTS.index("response"))
            known = torch.cat([known, written.expand(-1, more)], dim=1)
        return known[:, key_start:key_stop]


class AttentionCall(ABC):
    """One layer's attention in one pass. Keys are the columns `key_start : key_start + n_keys`.

    Sliding-window layers of a KV cache keep only the latest keys, so `key_start` may be above 0.
    """

    def __init__(self, layer: int, here: Pass, n_heads: int, n_keys: int) -> None:
        self.layer = layer
        self.here = here
        self.n_heads = n_heads
        self.n_keys = n_keys
        self.key_start = max(here.stop - n_keys, 0)
        self.hidden: Bool[Tensor, "row head query key"] | None = None
        self._sealed = False

    def block(self, hidden: Bool[Tensor, "#row head #query key"]) -> None:
        """Hide keys from heads: True where a query may not look. Only from `on_keys`; several calls add up.

        A query with no key left gets a pattern of zeros and the head writes nothing there.
        """
        if self._sealed:
            raise RimLensError("keys can be hidden in Tap.on_keys only: on_attention reads the finished pattern.")
        self.hidden = hidden if self.hidden is None else self.hidden | hidden

    def seal(self) -> None:
        """The pattern is computed: no key can be hidden any more."""
        self._sealed = True

    def query_index(self, columns: Int[Tensor, "row query"]) -> Int[Tensor, "row query"]:
        """Where `columns` lie among this pass's queries; a RimLensError where they are not computed in it."""
        index = columns.to(self.here.device) - self.here.start
        if bool((index < 0).any()) or bool((index >= self.here.n_queries).any()):
            raise RimLensError(
                f"attention of columns {int(columns.min())}..{int(columns.max())} was asked for, but this pass "
                f"computes {self.here.start}..{self.here.stop - 1}: read prompts in one pass, without a KV cache."
            )
        return index

    @abstractmethod
    def rows(self, columns: Int[Tensor, "row query"]) -> Float[Tensor, "row head query key"]:
        """Exact softmax rows in float32 at the given query columns, hidden keys and masks applied.

        They sum to 1 except where an attention sink takes a share, or where no key is left.
        """


class ExpertCall(NamedTuple):
    """The tokens that one layer sent to one expert in one pass."""

    layer: int
    expert: int
    token: Int[Tensor, " slot"]  # index into the flattened [row * pos]
    row: Int[Tensor, " slot"]  # row of the batch that the token belongs to
    weight: Float[Tensor, " slot"]  # routing probability as the layer applies it


class Tap:
    """Reads or changes passes. Subclass and override what you need; returning None means "unchanged".

    `layers` limits the tap to some layers (None: all). `here` is set before the first site of each pass.
    """

    layers: frozenset[int] | None = None
    here: Pass | None = None
    backend: Literal["fast", "hooks"] = "fast"  # which one calls this tap now; set when it is attached

    def on_pass(self, here: Pass) -> None:
        """A forward pass begins."""
        self.here = here

    def on_keys(self, layer: int, call: AttentionCall) -> None:
        """Hide keys from heads with `call.block`, before the pattern is computed."""

    def on_attention(self, layer: int, call: AttentionCall) -> None:
        """Read the pattern with `call.rows`."""

    def on_head_output(
        self, layer: int, z: Float[Tensor, "row pos head d_head"]
    ) -> Float[Tensor, "row pos head d_head"] | None:
        """Heads' outputs as the output projection gets them (TransformerLens `attn.hook_z`)."""

    def on_residual(
        self, layer: int, resid: Float[Tensor, "row pos d_model"]
    ) -> Float[Tensor, "row pos d_model"] | None:
        """Residual stream entering `layer`; `layer == n_layers` is the stream after the last block."""

    def on_neurons(self, layer: int, post: Float[Tensor, "row pos d_mlp"]) -> Float[Tensor, "row pos d_mlp"] | None:
        """Neurons, the inputs of the MLP's down projection (TransformerLens `mlp.hook_post`)."""

    def on_expert(self, call: ExpertCall, post: Float[Tensor, "slot d_mlp"]) -> Float[Tensor, "slot d_mlp"] | None:
        """Neurons of one expert in a mixture of experts, at the tokens sent to it, not yet weighted (`taps_experts`).

        A tap with both methods gets this one in a mixture of experts and `on_neurons` in any other model.
        """

    def on_attention_write(
        self, layer: int, written: Float[Tensor, "row pos d_model"]
    ) -> Float[Tensor, "row pos d_model"] | None:
        """What a layer's attention adds to the residual stream, behind a norm of its own where there is one."""

    def on_mlp_write(
        self, layer: int, written: Float[Tensor, "row pos d_model"]
    ) -> Float[Tensor, "row pos d_model"] | None:
        """What a layer's MLP, or its mixture of experts, adds to the residual stream; as above."""

    def wants(self, site: str, layer: int) -> bool:
        """Whether this tap overrides `site` ("on_attention", ...) and covers `layer`."""
        overrides = getattr(type(self), site) is not getattr(Tap, site)
        return overrides and (self.layers is None or layer in self.layers)


def wanting(taps: Sequence[Tap], site: str, layer: int) -> list[Tap]:
    """The taps that want to be called at `site` of `layer`, in the order of attachment."""
    return [tap for tap in taps if tap.wants(site, layer)]


def wanting_neurons(taps: Sequence[Tap], layer: int, *, is_moe: bool) -> tuple[list[Tap], list[Tap]]:
    """The taps whose `on_neurons` is to be called in a layer, and those whose `on_expert` is."""
    whole, experts = wanting(taps, "on_neurons", layer), wanting(taps, "on_expert", layer)
    both = {id(tap) for tap in whole} & {id(tap) for tap in experts}
    whole = [tap for tap in whole if not (is_moe and id(tap) in both)]
    return whole, [tap for tap in experts if is_moe or id(tap) not in both]


def changed(taps: Sequence[Tap], site: str, layer: int, value: Tensor) -> Tensor:
    """`value` after every tap's change at `site`."""
    for tap in taps:
        new = getattr(tap, site)(layer, value)
        value = value if new is None else new
    return value
