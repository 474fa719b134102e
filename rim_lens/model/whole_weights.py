"""Weights that are read from a folder are all there, fit, and are all used.

Transformers' own account of what it loaded.
"""

import warnings
from collections.abc import Collection, Mapping
from typing import Any

from rim_lens.errors import RimLensError

# what savers put before the names of a model's parameters: torch.compile, DDP and DeepSpeed, trl's value heads, PEFT,
# FSDP
WRAPPERS = (
    "_orig_mod.",
    "module.",
    "pretrained_model.",
    "base_model.model.",
    "_fsdp_wrapped_module.",
    "_forward_module.",
)


def check_loaded(hf: Any, info: Mapping[str, Any], where: str) -> None:
    """Raise for weights that are missing, of another shape or without a place in the model; warn of other heads.

    Args:
        hf: the loaded model.
        info: transformers' `output_loading_info`.
        where: the model's name or folder.

    Raises:
        RimLensError: missing weights (transformers fills them with random numbers), weights of another shape, or
            weights that stand inside the model and are not used.

    """
    missing, extra = sorted(info.get("missing_keys", ())), sorted(info.get("unexpected_keys", ()))
    wrong = [one if isinstance(one, str) else one[0] for one in info.get("mismatched_keys", ())]
    if missing:
        raise RimLensError(f"The weights of {where} lack {listed(missing)}{prefix_note(extra)}.")
    if wrong:
        raise RimLensError(f"The weights of {where} have another shape than its config says: {listed(wrong)}.")
    if info.get("error_msgs"):
        raise RimLensError(f"The weights of {where} could not be loaded: {str(next(iter(info['error_msgs'])))[:200]}.")
    check_extra(hf, extra, where)


def check_extra(hf: Any, extra: Collection[str], where: str) -> None:
    """Raise for stored weights that stand inside the model and are not used, warn of those that stand beside it."""
    parts = {name for name, _ in hf.named_children()}
    inside = [key for key in extra if key.partition(".")[0] in parts]
    if inside:
        raise RimLensError(
            f"The weights of {where} hold {listed(inside)}, for which {type(hf).__name__} has no place under its "
            "config: numbers would be those of another model."
        )
    if extra:
        warnings.warn(
            f"{where}: the weights {listed(sorted(extra))} belong to no part of {type(hf).__name__} and are not used.",
            stacklevel=3,
        )


def prefix_note(extra: Collection[str]) -> str:
    """What to do where the names carry the prefix of a wrapper."""
    for prefix in WRAPPERS:
        if any(key.startswith(prefix) or f".{prefix}" in key for key in extra):
            return f"; they are stored under names with {prefix!r}: save the inner model"
    return "; transformers would fill them with random numbers: save or copy the model again"


def listed(names: Collection[str]) -> str:
    """The first names, and how many there are."""
    first = ", ".join(list(names)[:2])
    return first if len(names) <= 2 else f"{first} and {len(names) - 2} more"
