"""rim_lens: mechanistic interpretability of Reasoning-Induced Misalignment, on TransformerLens.

The names of the top level stand in `__init__.pyi` and are imported when first used, so that `import rim_lens` is
instant.
Further names stand in the rooms: `rim_lens.capture`, `.intervene`, `.behavior`, `.inference_time`, `.training_time`,
`.patterns`, `.data`, `.chat`, `.model`, `.stats` and `.plots`.
"""

from importlib import import_module
from typing import Any

from rim_lens.lazy import attach

__version__ = "0.1.0"

_offered, _, _names = attach(__name__, __file__)
__all__ = ["__version__", *_names]

# Rooms whose names could once be imported from the top level and still can, with names that have become others.
_ROOMS = ("behavior", "capture", "chat", "data", "inference_time", "intervene", "model", "patterns", "training_time")
_RENAMED = {"test_heads": "ablation_test", "test_neurons": "ablation_test"}


def __getattr__(name: str) -> Any:
    if name in _names or name in _RENAMED:
        globals()[name] = value = _offered(_RENAMED.get(name, name))
        return value
    if name == "organisms":  # a room of its own, reached as rim_lens.organisms.load
        return import_module(f"{__name__}.{name}")
    if not name.startswith("_"):
        for room in map(import_module, (f"{__name__}.{room}" for room in _ROOMS)):
            if name in room.__all__:
                return getattr(room, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
