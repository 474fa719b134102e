"""A model whose weights another program holds: its chats are rendered here, an engine writes."""

from collections.abc import Mapping
from typing import Any

import torch

from rim_lens.chat.format import ChatFormat
from rim_lens.chat.tags import ThinkTags
from rim_lens.model.lens_model import LensModel


class EngineModel(LensModel):
    """Base of models without a module tree in this process."""

    hf = None
    merged_adapter = None
    active_batch = None

    def __init__(
        self,
        name: str,
        tokenizer: Any,
        generation_config: Any = None,
        tags: ThinkTags | None = None,
        template_variables: Mapping[str, object] | None = None,
    ) -> None:
        self.source_name, self.shown, self.tokenizer = name, None, tokenizer
        self.active_taps = []
        self._generation_config = generation_config
        eos = getattr(generation_config, "eos_token_id", None)
        self.chat_format = ChatFormat(tokenizer, tags, variables=template_variables, generation_eos=eos)

    def close(self) -> None:
        """Give back what the engine holds of this machine: of a server nothing."""

    @property
    def generation_config(self) -> Any:
        """The one beside the tokenizer; None where there is none."""
        return self._generation_config

    @property
    def device(self) -> torch.device:
        """Where batches are made."""
        return torch.device("cpu")


def own_generation_config(where: str) -> Any:
    """The generation config in a folder or on the hub; None where there is none."""
    from transformers import GenerationConfig

    try:
        return GenerationConfig.from_pretrained(where)
    except OSError:
        return None
