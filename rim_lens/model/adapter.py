"""LoRA adapters: checked against the base model before anything is changed, then merged into its weights."""

import json
from pathlib import Path
from typing import Any

from rim_lens.errors import RimLensError

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds a PEFT adapter."""
    return (folder / CONFIG).is_file()


def adapter_base(folder: Path) -> str:
    """The base model that an adapter names in its config."""
    try:
        base = json.loads((folder / CONFIG).read_text())["base_model_name_or_path"]
    except (OSError, ValueError, KeyError) as error:
        raise RimLensError(f"The adapter config {folder / CONFIG} cannot be read ({error}); save it again.") from error
    if not base:
        raise RimLensError(f"The adapter {folder} names no base model; load the base model with adapter={folder}.")
    return str(base)


def base_and_adapter(model: str) -> tuple[str, Path | None]:
    """What a model's name stands for: itself, or the base and folder of an adapter."""
    folder = Path(model).expanduser()
    if folder.is_dir() and is_adapter(folder):
        return adapter_base(folder), folder
    return model, None


def check_adapter(model: Any, folder: Path) -> None:
    """Compare every LoRA matrix with the linear layer it belongs to.

    Raises:
        RimLensError: the adapter was made for another base model, or its weights are missing or damaged.

    """
    from safetensors import SafetensorError, safe_open

    path = folder / WEIGHTS
    if not path.is_file():
        raise RimLensError(f"The adapter {folder} has no {WEIGHTS}; save it in the safetensors format.")
    modules = dict(model.named_modules())
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError) as error:
        raise RimLensError(f"The adapter weights {path} cannot be read ({error}); copy them again.") from error
    for key, shape in shapes.items():
        name, _, matrix = key.removeprefix(PREFIX).partition(".lora_")
        if not matrix:
            continue
        weight = getattr(modules.get(name), "weight", None)
        if weight is None:
            raise RimLensError(
                f"The adapter {folder} was made for another base model: it changes {name}, which this one does not have."
            )
        if matrix.startswith(("A", "B")) and weight.dim() == 2:
            mine = {weight.shape[1]} if matrix.startswith("A") else {weight.shape[0]}
            if type(modules[name]).__name__ == "Conv1D":
                mine = set(weight.shape)
            theirs = shape[1] if matrix.startswith("A") else shape[0]
            if theirs not in mine:
                raise RimLensError(
                    f"The adapter {folder} was made for another base model: {name} has width {theirs} there "
                    f"and {min(mine)} here."
                )


def merge_adapter(model: Any, folder: Path) -> Any:
    """The model with the adapter's update added to its weights; the adapter wrappers are gone afterwards."""
    from peft import PeftModel

    check_adapter(model, folder)
    return PeftModel.from_pretrained(model, folder).merge_and_unload()
