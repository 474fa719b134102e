"""Adapters as they lie in a folder: their base model, their options, their matrices, and what reads them.

Plain LoRA (W + scale · B A, every option of its config known here) is read parameter by parameter (`stored_weights`).
Every other kind is merged by PEFT itself and compared with PEFT's unmerged model (`peft_merge`).
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from rim_lens.errors import RimLensError

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")

# options of LoRA that change W by nothing but scale · B A, or nothing at all; any other that is set is read by PEFT
PLAIN = frozenset(
    {
        "alpha_pattern", "auto_mapping", "base_model_name_or_path", "exclude_modules", "fan_in_fan_out",
        "inference_mode", "layers_pattern", "layers_to_transform", "lora_alpha", "lora_dropout", "megatron_core",
        "modules_to_save", "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern", "revision",
        "runtime_config", "target_modules", "task_type", "use_rslora", "eva_config",
    }
)  # fmt: skip
PLAIN_INITS = (True, False, None, "gaussian", "eva", "orthogonal", "mica")  # start from W itself


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds a PEFT adapter."""
    return (folder / CONFIG).is_file()


def adapter_config(folder: Path) -> dict[str, Any]:
    """The adapter's options as they are stored.

    Raises:
        RimLensError: the file cannot be read.

    """
    try:
        return dict(json.loads((folder / CONFIG).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise RimLensError(f"The adapter config {folder / CONFIG} cannot be read ({error}); save it again.") from error


def adapter_base(folder: Path) -> str:
    """The base model that an adapter names in its config."""
    base = adapter_config(folder).get("base_model_name_or_path")
    if not base:
        raise RimLensError(f"The adapter {folder} names no base model; load the base model with adapter={folder}.")
    return str(base)


def adapter_revision(folder: Path) -> str | None:
    """The revision of the base that an adapter was trained on, where its config names one."""
    revision = adapter_config(folder).get("revision")
    return None if revision is None else str(revision)


def base_and_adapter(model: str) -> tuple[str, Path | None]:
    """What a model's name stands for: itself, or the base and folder of an adapter."""
    folder = Path(model).expanduser()
    if folder.is_dir() and is_adapter(folder):
        return adapter_base(folder), folder
    return model, None


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder brings a tokenizer of its own."""
    return any((folder / name).is_file() for name in TOKENIZER_FILES)


def is_plain_lora(config: Mapping[str, Any]) -> bool:
    """Whether an adapter changes W to W + scale · B A and does nothing else, as far as its options say."""
    known = PLAIN | ({"bias"} if config.get("bias") in (None, "none") else set())
    known |= {"init_lora_weights"} if is_plain_init(config) else set()
    return config.get("peft_type") == "LORA" and not [
        key for key, value in config.items() if value and key not in known
    ]


def is_plain_init(config: Mapping[str, Any]) -> bool:
    """Whether the matrices started from W itself, not from W without a part that they hold."""
    return any(
        config.get("init_lora_weights", True) is known or config.get("init_lora_weights") == known
        for known in PLAIN_INITS
    )


def stored_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor in the adapter's file.

    Raises:
        RimLensError: the file is missing or damaged.

    """
    path = folder / WEIGHTS
    if not path.is_file():
        raise RimLensError(f"The adapter {folder} has no {WEIGHTS}; save it in the safetensors format.")
    try:
        with safe_open(path, framework="pt") as file:
            return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError) as error:
        raise RimLensError(f"The adapter weights {path} cannot be read ({error}); copy them again.") from error


def check_adapter(model: Any, folder: Path) -> None:
    """Compare every LoRA matrix with the linear layer it belongs to.

    Raises:
        RimLensError: the adapter was made for another base model, one of its matrices is missing, or its files are
            damaged.

    """
    shapes, config = stored_shapes(folder), adapter_config(folder)
    modules = dict(model.named_modules())
    reached = set()
    for key, shape in shapes.items():
        name, _, matrix = key.removeprefix(PREFIX).partition(".lora_")
        if not matrix:
            continue
        reached.add(name)
        weight = getattr(modules.get(name), "weight", None)
        if config.get("layer_replication") or config.get("target_parameters"):
            continue  # modules that only PEFT makes
        if weight is None:
            raise RimLensError(
                f"The adapter {folder} was made for another base model: it changes {name}, which this one does not "
                "have."
            )
        if matrix in ("A.weight", "B.weight") and weight.dim() == 2:
            first = matrix.startswith("A")
            partner = f"{key.removesuffix(matrix)}{'B' if first else 'A'}.weight"
            if partner not in shapes or shape[0 if first else 1] != shapes[partner][1 if first else 0]:
                raise RimLensError(
                    f"The adapter {folder} has {key} but no {partner} that fits it; copy the file again."
                )
            if is_plain_lora(config) and first and shape[0] != rank_of(config, name):
                raise RimLensError(
                    f"The adapter {folder} has matrices of rank {shape[0]} for {name} where its config says "
                    f"{rank_of(config, name)}; copy config and weights again."
                )
            mine = {weight.shape[1]} if first else {weight.shape[0]}
            if type(modules[name]).__name__ == "Conv1D":
                mine = set(weight.shape)
            theirs = shape[1] if first else shape[0]
            if theirs not in mine:
                raise RimLensError(
                    f"The adapter {folder} was made for another base model: {name} has width {theirs} there "
                    f"and {min(mine)} here."
                )
    if is_plain_lora(config):
        lost = [name for name in targets(model, config) if name not in reached]
        if lost:
            raise RimLensError(
                f"The adapter {folder} holds no matrices for {lost[0]}, which its config names among its targets "
                f"({len(lost)} such modules); copy the file again."
            )


def targets(model: Any, config: Mapping[str, Any]) -> list[str]:
    """Modules that PEFT would give matrices to under a plain LoRA config."""
    from peft import LoraConfig
    from peft.tuners.tuners_utils import check_target_module_exists

    names = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
    chosen = LoraConfig(**{name: config[name] for name in names if config.get(name)})
    if not chosen.target_modules or chosen.target_modules == "all-linear":
        return []
    saved = tuple(config.get("modules_to_save") or ())
    return [
        name
        for name, module in model.named_modules()
        if getattr(module, "weight", None) is not None
        and not name.endswith(saved)
        and check_target_module_exists(chosen, name)
    ]


def rank_of(config: Mapping[str, Any], module: str) -> int:
    """Rank that the config gives one module's matrices."""
    return int(_by_pattern(config, "rank_pattern", module, config.get("r", 8)))


def scale_of(config: Mapping[str, Any], module: str) -> float:
    """Alpha / r of one module; alpha / √r with rank-stabilised scaling."""
    rank, alpha = rank_of(config, module), _by_pattern(config, "alpha_pattern", module, config.get("lora_alpha", 8))
    return float(alpha / (rank**0.5 if config.get("use_rslora") else rank))


def _by_pattern(config: Mapping[str, Any], option: str, module: str, default: Any) -> Any:
    """The first pattern that fits a module's name decides, as in PEFT."""
    patterns = config.get(option) or {}
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module)), default)
