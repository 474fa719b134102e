"""Weights as they lie in a folder: what a checkpoint changes of a model, parameter by parameter.

An adapter (`adapter_weights`) changes some parameters, a full checkpoint (`full_weights`) replaces all of them and the
stored buffers. Both answer the same two questions: which parameters, and what is the value of one where the model
without this change has another.
"""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from rim_lens.errors import RimLensError

CHUNK = 1 << 24  # bytes read at once when a file is brought into the page cache


def stored_names(hf: Any) -> dict[str, Tensor]:
    """Parameters and stored buffers of a model, each tensor once under its first name."""
    found: dict[int, tuple[str, Tensor]] = {}
    for name, value in hf.state_dict(keep_vars=True).items():
        if isinstance(value, Tensor):
            found.setdefault(id(value), (name, value))
    return dict(found.values())


def other_names(hf: Any) -> dict[str, str]:
    """Names that tensors have besides their first, with that first name: tied weights."""
    first: dict[int, str] = {}
    return {
        name: first[id(value)]
        for name, value in hf.state_dict(keep_vars=True).items()
        if first.setdefault(id(value), name) != name
    }


class StoredWeights(ABC):
    """What one folder changes of a transformers model."""

    def __init__(self, hf: Any, folder: Path) -> None:
        self.hf, self.folder, self.title = hf, folder, folder.name

    @property
    @abstractmethod
    def names(self) -> list[str]:
        """Parameters and buffers that are changed, by their names in the model."""

    @abstractmethod
    def value(self, name: str, base: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The parameter's value where the model without this change has `base`; on base's device, in its type."""

    @property
    def label(self) -> str:
        """What a model's name says while these weights are shown."""
        return f"+ {self.title}"

    def release(self) -> None:  # noqa: B027 - most hold nothing
        """Forget what is held in memory while the weights are shown."""

    def prefetch(self) -> None:
        """Bring the files into the page cache, so that reading them later does not wait for the disk."""
        for path in sorted(self.folder.glob("*.safetensors")):
            with path.open("rb") as file:
                while file.read(CHUNK):
                    pass


def opened(path: Path) -> Any:
    """A safetensors file, opened without reading its tensors."""
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise RimLensError(f"The weights {path} cannot be read ({error}); copy them again.") from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of one safetensors file."""
    with opened(path) as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
