"""A model behind a server: its chats are rendered here, another program writes, and its inside is out of reach."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from rim_lens.chat.tags import ThinkTags
from rim_lens.engine.server import CompletionsServer
from rim_lens.errors import RimLensError
from rim_lens.model.engine_model import EngineModel, own_generation_config
from rim_lens.model.hub import check_reachable, translated_hub_errors

UNKNOWN_LENGTH = 1 << 20


class ServedModel(EngineModel):
    """A LensModel that answers and cannot be looked into; made by `load_model("http://…")`."""

    engine: CompletionsServer

    def __init__(
        self,
        base_url: str,
        model: str,
        tokenizer: Any,
        generation_config: Any = None,
        *,
        tags: ThinkTags | None = None,
        template_variables: Mapping[str, object] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(model, tokenizer, generation_config, tags, template_variables)
        self.engine = CompletionsServer(base_url, model, self.chat_format, **options)
        self._max_length = self.engine.context() or int(min(tokenizer.model_max_length, UNKNOWN_LENGTH))

    def __repr__(self) -> str:
        return f"LensModel({self.engine.name!r})"

    @property
    def max_length(self) -> int:
        """Longest sequence in tokens: what the server says, else what the tokenizer says."""
        return self._max_length

    @property
    def is_moe(self) -> bool:
        """Not known from outside; nothing that depends on it can be asked of a server."""
        return False

    @property
    def n_embedded(self) -> int:  # type: ignore[override]
        """Unknown."""
        return 0

    @property
    def dtype(self) -> Any:
        """Unknown."""
        return None

    @property
    def fingerprint(self) -> str:
        """The address: a server shows no weights."""
        return f"unknown, at {self.engine.base_url}"

    @property
    def shape(self) -> Any:  # type: ignore[override]
        """Layers, heads and widths. Raises RimLensError."""
        self._no_inside()

    @property
    def module(self) -> Any:
        """The weights. Raises RimLensError."""
        self._no_inside()

    @property
    def bridge(self) -> Any:
        """TransformerLens' view. Raises RimLensError."""
        self._no_inside()

    def tap(self, *taps: Any, backend: str = "auto") -> Any:
        """Read or change passes. Raises RimLensError."""
        self._no_inside()

    def weights_changed(self, names: Any = None) -> None:
        """Change the weights. Raises RimLensError."""
        self._no_inside()

    def raw_logits(self, batch: Any, kept: Any = None) -> Any:
        """One pass. Raises RimLensError."""
        self._no_inside()

    def _no_inside(self) -> NoReturn:
        raise RimLensError(
            f"{self.name} is behind the server {self.engine.base_url}, which shows answers only: load the weights with "
            'load_model(name), or with load_model(name, engine="vllm"), for what needs passes, heads or neurons.'
        )


def served_model(
    url: str,
    model: str | None,
    tokenizer: Any,
    chat_template: str | None = None,
    **options: Any,
) -> ServedModel:
    """The model of this name at `url`; `tokenizer` is one, or the name or folder that transformers loads it from.

    Raises:
        RimLensError: no model or tokenizer was named, or transformers finds no tokenizer there.
    """
    from transformers import AutoTokenizer

    if model is None or tokenizer is None:
        raise RimLensError(
            f"A model at {url} needs model=, its name there, and tokenizer=, the name or folder of its tokenizer: "
            "prompts are rendered here."
        )
    config = None
    if isinstance(tokenizer, str | Path):
        where = str(tokenizer)
        if not Path(where).is_dir():
            check_reachable(where, None)
        with translated_hub_errors(where):
            tokenizer = AutoTokenizer.from_pretrained(where)
        config = own_generation_config(where)
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    return ServedModel(url, model, tokenizer, config, **options)
