"""LensModel: a chat model with its template, its TransformerLens bridge and its plain transformers module tree.

Two module trees share one set of parameters. `hf` is the plain transformers model: fast, SDPA attention, read and
changed through transformers' own extension points. `bridge` is the TransformerBridge over a second tree, booted when
first asked for. A model that exists only as an object with TransformerLens' hook surface has no `hf` and works through
its hooks.
"""

import copy
import hashlib
import inspect
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rim_lens.chat.chat import Chat
from rim_lens.chat.format import ChatFormat
from rim_lens.chat.tags import ThinkTags
from rim_lens.errors import RimLensError
from rim_lens.model.batch import Batch, batches, make_batch
from rim_lens.model.finite import check_finite
from rim_lens.model.requests import Prompts, as_requests
from rim_lens.model.shape import ModelShape, shape_of
from rim_lens.processes import share

if TYPE_CHECKING:
    from rim_lens.engine.dialogue import Engine
    from rim_lens.model.taps import Tap


class LensModel:
    """A chat model as the analyzers see it: rendering, batches, forward passes, taps. Made by `load_model`."""

    engine: "Engine | None" = None  # of a model whose weights another program holds

    def __init__(
        self,
        name: str,
        tokenizer: Any,
        *,
        hf: Any = None,
        bridge: Any = None,
        tags: ThinkTags | None = None,
        template_variables: Mapping[str, object] | None = None,
    ) -> None:
        if hf is None and bridge is None:
            raise RimLensError("A LensModel needs a transformers model or an object with TransformerLens' hooks.")
        self.source_name = name
        self.shown: str | None = (
            None  # what was put into its weights: "+ adapter", or the checkpoint that replaced them
        )
        self.tokenizer = tokenizer
        self.hf: Any = hf.eval() if hf is not None else None  # torch's mode without dropout
        self._bridge = bridge
        generation = getattr(hf, "generation_config", None)
        eos = getattr(generation, "eos_token_id", None)
        self.chat_format = ChatFormat(tokenizer, tags, variables=template_variables, generation_eos=eos)
        self.shape: ModelShape = shape_of(hf if hf is not None else bridge)
        self.merged_adapter: str | None = None  # the one it was loaded with
        self.active_batch: Batch | None = None
        self.active_taps: list[Tap] = []
        self._digests: dict[str, bytes] = {}  # of parameters, until they are changed

    def __repr__(self) -> str:
        shape = self.shape
        return f"LensModel({self.name!r}, {shape.n_layers} layers × {shape.n_heads} heads, {self.device}, {self.dtype})"

    # ---- what it is -----------------------------------------------------------------------------------------------
    @property
    def name(self) -> str:
        """Where it came from, with the adapter or checkpoint whose weights are in it now."""
        return self.source_name if self.shown is None else f"{self.source_name} {self.shown}"

    @property
    def n_layers(self) -> int:
        """Number of transformer blocks."""
        return self.shape.n_layers

    @property
    def n_heads(self) -> int:
        """Query heads per layer."""
        return self.shape.n_heads

    @property
    def n_kv_heads(self) -> int:
        """Key/value heads per layer; fewer than `n_heads` in grouped-query models."""
        return self.shape.n_kv_heads

    @property
    def d_head(self) -> int:
        """Width of one head's output."""
        return self.shape.d_head

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.shape.d_model

    @property
    def d_mlp(self) -> int:
        """Hidden units of one MLP (of one expert in a mixture of experts)."""
        return self.shape.d_mlp

    @property
    def max_length(self) -> int:
        """Longest sequence in tokens that the model's positions allow."""
        return self.shape.max_length

    @property
    def is_moe(self) -> bool:
        """Whether its MLPs are mixtures of experts."""
        return self.shape.n_experts > 0

    @property
    def generation_config(self) -> Any:
        """What the model is published to be sampled with; None where nobody says."""
        return getattr(self.hf, "generation_config", None)

    @property
    def module(self) -> Any:
        """The tree whose parameters count: `hf` where there is one, else the hooked object."""
        return self.hf if self.hf is not None else self._bridge

    @property
    def device(self) -> torch.device:
        """Where inputs go: the device of the first parameter."""
        return next(self.module.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the weights."""
        return next(self.module.parameters()).dtype

    @property
    def bridge(self) -> Any:
        """The TransformerBridge (booted at the first call) or the hooked object that the model was made from."""
        if self._bridge is None:
            from transformer_lens.model_bridge import TransformerBridge

            from rim_lens.model.attached_taps import detached
            from rim_lens.model.bridges import without_processor

            with detached(self):  # until the bridge is there: what is attached may be waiting for it
                tree = shared_copy(self.hf)
                if not tree.config.architectures:  # made in memory; TransformerLens chooses its adapter by it
                    tree.config.architectures = [type(tree).__name__]
                name = getattr(self.hf.config, "_name_or_path", "") or self.name
                try:
                    with without_processor():
                        self._bridge = TransformerBridge.boot_transformers(
                            name, hf_model=tree, tokenizer=self.tokenizer
                        )
                except Exception as error:  # an architecture without an adapter raises ValueError, others what they hit
                    reason = (str(error).splitlines() or [type(error).__name__])[0].partition(". ")[0]
                    raise RimLensError(
                        f"TransformerLens cannot wrap {self.name}, a {type(self.hf).__name__} ({reason}): "
                        'use backend="fast" for this model.'
                    ) from error
        return self._bridge

    def weights_changed(self, names: Iterable[str] | None = None) -> None:
        """Tell the model that parameters (by default all) were changed in place.

        What was derived from them is dropped.
        """
        for name in list(self._digests) if names is None else names:
            self._digests.pop(name, None)
        if self.hf is not None and self._bridge is not None and not shares_storage(self._bridge, self.hf):
            self._bridge = None  # it holds split copies of joint projections

    @property
    def think_tags(self) -> str:
        """The think tags and where they come from, for manifests."""
        try:
            tags, tags_from = self.chat_format.tags, self.chat_format.tags_from
        except RimLensError as error:  # a model without a chat template can be measured on tokens
            return f"none: {error}"
        return f"{tags.open!r} … {tags.close!r} ({tags_from})"

    @property
    def template_variables(self) -> str | None:
        """Variables that every prompt's chat template gets, as JSON; None where there are none."""
        variables = self.chat_format.template.variables
        return json.dumps(variables, sort_keys=True, default=str) if variables else None

    @property
    def fingerprint(self) -> str:
        """sha256 over names and digests of all parameters and stored buffers.

        Only those that `weights_changed` named are read again.
        """
        whole = hashlib.sha256()
        for name, value in self._stored():
            if name not in self._digests:
                self._digests[name] = digest_of(value)
            whole.update(name.encode() + self._digests[name])
        return whole.hexdigest()

    def _stored(self) -> Iterator[tuple[str, Tensor]]:
        """Parameters, and the buffers that are stored with them (the routing bias of some mixtures)."""
        yield from self.module.named_parameters()
        if self.hf is not None:
            stored = set(self.hf.state_dict())
            yield from ((name, value) for name, value in self.hf.named_buffers() if name in stored)

    # ---- from prompts to batches ----------------------------------------------------------------------------------
    def render(self, requests: Prompts, **options: Any) -> list[Chat]:
        """Render texts, `Prompt`s or conversations with the model's chat template (options: `ChatFormat.render`).

        A single one is one request. `cot` and `response` may be given once for all or as a list, one per request.

        Raises:
            RimLensError: something else than requests, or a rendered chat that is longer than the model's context.

        """
        many = as_requests(requests)
        if any(isinstance(one, Chat) for one in many):
            raise RimLensError("A chat is rendered already; pass texts, Prompts or conversations.")
        per_row = [
            {key: value[i] if isinstance(value, list) else value for key, value in options.items()}
            for i in range(len(many))
        ]
        chats = [self.chat_format.render(one, **row) for one, row in zip(many, per_row, strict=True)]  # type: ignore[arg-type]
        for i, chat in enumerate(chats):
            self.check_length(len(chat), f"request {i} ({chat.request[:40]!r}…)")
        return chats

    def check_length(self, n_tokens: int, what: str) -> None:
        """Raise a RimLensError when `n_tokens` do not fit the context."""
        if n_tokens > self.max_length:
            raise RimLensError(
                f"{what} takes {n_tokens} tokens but {self.name} has a context of {self.max_length}; "
                "shorten it or the thinking budget."
            )

    def encode(self, text: str) -> list[int]:
        """Token ids of a whole text, without special tokens around it.

        What follows other text has other tokens there: `chat_format.write` and `chat_format.encode_after` give them.
        """
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def batch(self, chats: Sequence[Chat], side: Literal["left", "right"] = "left") -> Batch:
        """All chats in one padded batch on the model's device."""
        self.check_chats(chats)
        return make_batch(chats, self.pad_id, device=self.device, side=side)

    def batches(self, chats: Sequence[Chat], batch_size: int = 16) -> Iterator[tuple[list[int], Batch]]:
        """Batches of chats of similar length, longest first, with the indices of their chats."""
        self.check_chats(chats)
        return batches(chats, self.pad_id, batch_size=batch_size, device=self.device)

    def shared_batches(self, chats: Sequence[Chat], batch_size: int = 16) -> Iterator[tuple[list[int], Batch]]:
        """As `batches`, but only of the chats that fall to this process (`rim_lens.processes`).

        All where there is one.
        """
        mine = share(len(chats), [len(chat) for chat in chats])
        for rows, batch in self.batches([chats[i] for i in mine], batch_size):
            yield [mine[row] for row in rows], batch

    @property
    def pad_id(self) -> int:
        """Token id that fills padding; it is masked, so any id that the model embeds serves."""
        ids = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0)
        size = self.n_embedded or 1 << 62
        return next(int(one) for one in ids if one is not None and one < size)

    @cached_property
    def n_embedded(self) -> int:
        """Number of token ids that the model has an embedding for; 0 where unknown."""
        if self.hf is None:
            return int(getattr(self.bridge.cfg, "d_vocab", 0) or 0)
        return int(self.hf.get_input_embeddings().weight.shape[0])

    def check_chats(self, chats: Sequence[Chat]) -> None:
        """`check_ids` of every chat."""
        for chat in chats:
            self.check_ids(chat.token_ids.tolist())

    def check_ids(self, ids: Sequence[int]) -> None:
        """Raise a RimLensError where the model has no embedding for one of the token ids."""
        highest = max(ids, default=0)
        if self.n_embedded and highest >= self.n_embedded:
            raise RimLensError(
                f"The tokenizer of {self.name} gives token id {highest} "
                f"({self.tokenizer.convert_ids_to_tokens(highest)!r}), but the model embeds {self.n_embedded} "
                "tokens: it belongs to another model, or the embedding was not resized."
            )

    # ---- passes ---------------------------------------------------------------------------------------------------
    def tap(
        self, *taps: "Tap", backend: Literal["auto", "fast", "hooks"] = "auto"
    ) -> AbstractContextManager["LensModel"]:
        """Read or change every pass inside the block through `taps`; the model is as before afterwards."""
        from rim_lens.model.attached_taps import attached

        return attached(self, taps, backend)

    @contextmanager
    def during(self, batch: Batch) -> Iterator[None]:
        """Name the batch that passes belong to, so that taps have segments and decision positions."""
        before, self.active_batch = self.active_batch, batch
        try:
            yield
        finally:
            self.active_batch = before

    def decision_logits(self, batch: Batch) -> Float[Tensor, "row vocab"]:
        """One pass; float32 logits at each row's decision position."""
        return self.logits_at(batch, batch.decision[:, None])[:, 0]

    def logits_at(self, batch: Batch, columns: Int[Tensor, "row query"]) -> Float[Tensor, "row query vocab"]:
        """One pass; float32 logits at the given columns of each row. The unembedding is paid for these columns only."""
        kept, where = columns.unique(return_inverse=True)
        logits = self.raw_logits(batch, kept)
        rows = torch.arange(len(columns), device=logits.device)[:, None]
        chosen = logits[rows, where.view_as(columns).to(logits.device)].float()
        check_finite(self, batch, chosen)
        return chosen

    def logits(self, batch: Batch) -> Float[Tensor, "row pos vocab"]:
        """One pass; float32 logits everywhere."""
        logits = self.raw_logits(batch).float()
        check_finite(self, batch, logits, batch.mask)
        return logits

    def raw_logits(self, batch: Batch, kept: Int[Tensor, " kept"] | None = None) -> Float[Tensor, "row kept vocab"]:
        """One pass; logits as the model computes them, at all columns or at some, NaN among them unnoticed."""
        with self.during(batch):
            if self.hf is None or self.through_hooks:
                logits = self._hooked_pass(batch)
                return logits if kept is None else logits[:, kept.to(logits.device)]
            inputs = self.hf_inputs(batch.mask, batch.positions)
            if kept is not None and self._keeps_logits:
                return self.hf(batch.tokens, **inputs, use_cache=False, logits_to_keep=kept).logits
            logits = self.hf(batch.tokens, **inputs, use_cache=False).logits
            return logits if kept is None else logits[:, kept]

    @property
    def through_hooks(self) -> bool:
        """Whether an active tap reads or changes passes through TransformerLens' hooks."""
        return any(getattr(tap, "backend", "fast") == "hooks" for tap in self.active_taps)

    def _hooked_pass(self, batch: Batch) -> Float[Tensor, "row pos vocab"]:
        mask = batch.mask.long()
        inputs: dict[str, Any] = {"attention_mask": mask}
        if "position_ids" in self._hooked_arguments:
            inputs["position_ids"] = batch.positions
        return self.bridge(batch.tokens, return_type="logits", **inputs)

    @cached_property
    def _hooked_arguments(self) -> set[str]:
        """Names that the hooked object's forward takes; a bridge hands other names to transformers."""
        parameters = inspect.signature(self.bridge.forward).parameters
        takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
        return set(parameters) | ({"position_ids"} if takes_any and self._hooked_takes_positions() else set())

    def _hooked_takes_positions(self) -> bool:
        """Whether a bridge's transformers model takes position ids; bridges before 4.0 derive none from the mask."""
        accepts = getattr(self.bridge, "_accepts_derived_position_ids", None)
        if accepts is not None:
            return bool(accepts())
        inner = getattr(self.bridge, "original_model", None)
        return inner is not None and "position_ids" in inspect.signature(type(inner).forward).parameters

    def hf_inputs(self, mask: Tensor, positions: Tensor) -> dict[str, Tensor]:
        """Mask and, where the architecture takes them, position ids: left padding must not shift positions."""
        inputs = {"attention_mask": mask.long()}
        if "position_ids" in self._hf_arguments:
            inputs["position_ids"] = positions
        return inputs

    @cached_property
    def _hf_arguments(self) -> set[str]:
        return set(inspect.signature(type(self.hf).forward).parameters)

    @property
    def _keeps_logits(self) -> bool:
        return "logits_to_keep" in self._hf_arguments

    @property
    def last_logit_only(self) -> dict[str, int]:
        """Argument that spares the unembedding of all but the last column, where the architecture has it."""
        return {"logits_to_keep": 1} if self._keeps_logits else {}


def digest_of(parameter: Tensor) -> bytes:
    """sha256 of a parameter's values."""
    raw = parameter.detach().to("cpu").contiguous().flatten()
    return hashlib.sha256(raw.view(torch.uint8).numpy().data).digest()


def shares_storage(bridge: Any, model: Any) -> bool:
    """Whether every parameter of a bridge is one of the model's own, so that in-place changes reach both."""
    mine = {parameter.data_ptr() for parameter in model.parameters()}
    return all(parameter.data_ptr() in mine for parameter in bridge.parameters())


def shared_copy(model: Any) -> Any:
    """A second module tree over the same parameters and buffers: no weight is copied."""
    memo = {id(value): value for value in [*model.parameters(), *model.buffers()]}
    return copy.deepcopy(model, memo)
