"""A model in vLLM: its passes are read and changed in the engine's workers, its answers come from the dynamic batch."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from types import SimpleNamespace
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rim_lens.chat.tags import ThinkTags
from rim_lens.engine.vllm_engine import VLLMEngine
from rim_lens.errors import RimLensError
from rim_lens.model.batch import Batch
from rim_lens.model.engine_model import EngineModel, own_generation_config
from rim_lens.model.hub import translated_hub_errors
from rim_lens.model.lens_model import LensModel
from rim_lens.model.shape import ModelShape, shape_of
from rim_lens.model.taps import Tap


class VLLMModel(EngineModel):
    """A LensModel in vLLM; made by `load_model(name, engine="vllm")`."""

    engine: VLLMEngine

    def __init__(
        self,
        name: str,
        tokenizer: Any,
        engine: VLLMEngine,
        generation_config: Any = None,
        tags: ThinkTags | None = None,
        template_variables: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(name, tokenizer, generation_config, tags, template_variables)
        self.engine = engine
        self.shape: ModelShape = shape_of(SimpleNamespace(config=engine.config.model_config.hf_config))

    def __repr__(self) -> str:
        shape = self.shape
        return f"LensModel({self.name!r}, {shape.n_layers} layers × {shape.n_heads} heads, {self.engine.name})"

    @property
    def max_length(self) -> int:
        """Longest sequence in tokens that the engine was made for."""
        return int(self.engine.config.model_config.max_model_len)

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the weights."""
        return self.engine.config.model_config.dtype

    @cached_property
    def n_embedded(self) -> int:
        """Number of token ids that the model has an embedding for."""
        return int(self.engine.call("lens_embedded")[0])

    @cached_property
    def fingerprint(self) -> str:  # type: ignore[override]
        """sha256 over names and digests of every rank's parameters, which vLLM has joined and split."""
        whole = hashlib.sha256()
        for rank in self.engine.call("lens_digests"):
            for name, digest in rank:
                whole.update(name.encode() + digest)
        return whole.hexdigest()

    @property
    def module(self) -> Any:
        """Not in this process. Raises RimLensError."""
        raise self._elsewhere("its weights are vLLM's own modules")

    @property
    def bridge(self) -> Any:
        """TransformerLens has no view of vLLM's modules. Raises RimLensError."""
        raise self._elsewhere("TransformerLens cannot wrap it")

    def close(self) -> None:
        """End the engine and give its memory back; the model cannot be used after it."""
        self.engine.close()

    def weights_changed(self, names: Any = None) -> None:
        """Weights in the engine stay as they were loaded. Raises RimLensError."""
        raise self._elsewhere("its weights stay as they were loaded")

    @contextmanager
    def tap(self, *taps: Tap, backend: Literal["auto", "fast", "hooks"] = "auto") -> Iterator["VLLMModel"]:  # type: ignore[override]
        """Read or change every pass inside the block; nothing is installed in the engine between passes."""
        if backend == "hooks":
            raise self._elsewhere("it has none of TransformerLens' hooks")
        if any(tap in self.active_taps for tap in taps):
            raise RimLensError("this tap is attached already: make a second one for a nested block.")
        for tap in taps:
            tap.backend = "fast"
        self.active_taps = [*self.active_taps, *taps]
        try:
            yield self
        finally:
            self.active_taps = [tap for tap in self.active_taps if all(tap is not mine for mine in taps)]

    def raw_logits(self, batch: Batch, kept: Int[Tensor, " kept"] | None = None) -> Float[Tensor, "row kept vocab"]:
        """One pass in the workers; their taps' state comes back with the logits."""
        if self.engine.tensor_parallel > 1:  # what travels to other processes needs no tokenizer
            batch = replace(batch, chats=tuple(replace(chat, decode=None) for chat in batch.chats))
        logits, states = self.engine.call("lens_pass", batch, self.active_taps, kept)[0]
        for tap, state in zip(self.active_taps, states, strict=True):
            vars(tap).update({name: value for name, value in state.items() if not isinstance(value, LensModel)})
        return logits

    def __getstate__(self) -> dict[str, Any]:
        """What a tap that names its model takes to a worker: what the model is, without the engine."""
        return {name: vars(self)[name] for name in ("source_name", "shown", "shape")}

    def _elsewhere(self, why: str) -> RimLensError:
        return RimLensError(f"{self.name} is in vLLM ({why}): use load_model(name) without engine= for this.")


def vllm_model(
    location: str,
    name: str,
    *,
    tensor_parallel: int = 1,
    dtype: Any = None,
    tags: ThinkTags | None = None,
    chat_template: str | None = None,
    template_variables: Mapping[str, object] | None = None,
    tokenizer: Any = None,
    **options: Any,
) -> VLLMModel:
    """Load the model at `location`, a folder or hub id, into vLLM; `options` are `vllm.LLM`'s."""
    from transformers import AutoTokenizer

    with translated_hub_errors(location):
        tokenizer = tokenizer or AutoTokenizer.from_pretrained(location)
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    kind = "auto" if dtype is None else str(dtype).removeprefix("torch.")
    if dtype is None and not torch.cuda.is_available():
        kind = "float32"
    engine = VLLMEngine(location, tensor_parallel=tensor_parallel, dtype=kind, **options)
    return VLLMModel(name, tokenizer, engine, own_generation_config(location), tags, template_variables)
