"""Field values of a result as JSON, with the tables and tensors found among them set aside.

Values become JSON with single-key tags for what JSON lacks: ``{"$float": "nan"}``, ``{"$tuple": [...]}``, ``{"$unit":
"L12H3"}``, ``{"$dict": [[key, value], ...]}`` (keys that are not plain strings), ``{"$table": file}``, ``{"$array":
name}`` and ``{"$tensor": name}`` (entries of the safetensors file), ``{"$strings": {...}}`` (arrays of text),
``{"$data": {...}}`` (a nested dataclass). Nothing is pickled, and loading imports no code but rim_lens' own.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
import re
import sys
from collections.abc import Callable, Collection, Mapping
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from rim_lens.errors import RimLensError
from rim_lens.units import Head, Neuron

registered: dict[str, type] = {}  # result classes by type name, filled as they are defined


class Encoder:
    """Turns field values into JSON and collects the tables and tensors met on the way."""

    def __init__(self) -> None:
        self.tables: dict[str, pd.DataFrame] = {}
        self.tensors: dict[str, Any] = {}

    def encode(self, value: Any, where: str) -> Any:
        """JSON for ``value``; ``where`` is the path of field names, used in file names and errors."""
        if value is None or isinstance(value, bool | str):
            return value
        if isinstance(value, np.bool_ | np.integer | np.floating):
            value = value.item()
        if isinstance(value, bool | int):
            return value
        if isinstance(value, float):
            return value if math.isfinite(value) else {"$float": repr(value)}
        if isinstance(value, list):
            return [self.encode(item, f"{where}.{i}") for i, item in enumerate(value)]
        if isinstance(value, Head | Neuron):
            return {"$unit": str(value)}
        if isinstance(value, tuple) and not hasattr(value, "_fields"):
            return {"$tuple": [self.encode(item, f"{where}.{i}") for i, item in enumerate(value)]}
        if isinstance(value, Mapping):
            return self._mapping(value, where)
        if isinstance(value, pd.DataFrame):
            name = _unused(where, self.tables)
            self.tables[name] = value
            return {"$table": name}
        if isinstance(value, np.ndarray):
            return self._array(value, where)
        if _is_tensor(value):
            name = _unused(where, self.tensors)
            self.tensors[name] = value.detach().cpu().contiguous().clone()
            return {"$tensor": name}
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {"$data": {"type": type_name(type(value)), "fields": self.fields(value, where)}}
        raise RimLensError(f"The field {where} holds a {type(value).__name__}, which a saved result cannot hold.")

    def fields(self, value: Any, where: str = "") -> dict[str, Any]:
        """JSON of every field of a dataclass that its constructor takes."""
        prefix = f"{where}." if where else ""
        return {
            field.name: self.encode(getattr(value, field.name), prefix + field.name)
            for field in dataclasses.fields(value)
            if field.init
        }

    def _mapping(self, value: Mapping[Any, Any], where: str) -> Any:
        plain = all(isinstance(key, str) and not key.startswith("$") for key in value)
        if plain:
            return {key: self.encode(item, f"{where}.{key}") for key, item in value.items()}
        pairs = enumerate(value.items())
        return {"$dict": [[self.encode(k, f"{where}.{i}.key"), self.encode(v, f"{where}.{i}")] for i, (k, v) in pairs]}

    def _array(self, value: np.ndarray, where: str) -> Any:
        if value.dtype.kind in "OU":
            flat = value.ravel().tolist()
            if not all(item is None or isinstance(item, str) for item in flat):
                raise RimLensError(f"The array {where} holds objects that are not text; store numbers or a table.")
            return {"$strings": {"shape": list(value.shape), "object": value.dtype.kind == "O", "values": flat}}
        if value.dtype.kind not in "biuf" or value.dtype.itemsize > 8:
            raise RimLensError(f"The array {where} has dtype {value.dtype}, which safetensors cannot hold.")
        name = _unused(where, self.tensors)
        self.tensors[name] = value
        return {"$array": name}


class Decoder:
    """Rebuilds field values from JSON and the files beside it."""

    def __init__(self, tables: Mapping[str, pd.DataFrame], tensors: Mapping[str, Any]) -> None:
        self.tables, self.tensors = tables, tensors

    def decode(self, value: Any) -> Any:
        """The value that :meth:`Encoder.encode` was given."""
        if isinstance(value, list):
            return [self.decode(item) for item in value]
        if not isinstance(value, dict):
            return value
        if len(value) == 1:
            (tag, content), *_ = value.items()
            if tag in self._tags:
                return self._tags[tag](self, content)
        return {key: self.decode(item) for key, item in value.items()}

    def _strings(self, content: Mapping[str, Any]) -> np.ndarray:
        dtype = object if content["object"] else np.str_
        return np.array(content["values"], dtype=dtype).reshape(content["shape"])

    def _data(self, content: Mapping[str, Any]) -> Any:
        return build(resolve(content["type"]), {key: self.decode(item) for key, item in content["fields"].items()})

    _tags: ClassVar[dict[str, Callable[[Decoder, Any], Any]]] = {
        "$float": lambda self, text: float(text),
        "$unit": lambda self, name: Head.parse(name) if "H" in name else Neuron.parse(name),
        "$tuple": lambda self, items: tuple(self.decode(item) for item in items),
        "$dict": lambda self, pairs: {self.decode(key): self.decode(item) for key, item in pairs},
        "$table": lambda self, name: self.tables[name],
        "$array": lambda self, name: self.tensors[name].numpy(),
        "$tensor": lambda self, name: self.tensors[name],
        "$strings": _strings,
        "$data": _data,
    }


def type_name(cls: type) -> str:
    """How a dataclass is named on disk: ``module:qualified name``."""
    return f"{cls.__module__}:{cls.__qualname__}"


def resolve(name: str) -> type:
    """The dataclass of that name. Only rim_lens' own modules are imported for it, others must be imported already."""
    if name in registered:
        return registered[name]
    module_name, _, path = name.partition(":")
    module: Any = sys.modules.get(module_name)
    if module is None and re.fullmatch(r"rim_lens(\.\w+)*", module_name):
        try:
            module = importlib.import_module(module_name)
        except ImportError:
            module = None
    target = module
    for part in path.split("."):
        target = getattr(target, part, None)
    if not (isinstance(target, type) and dataclasses.is_dataclass(target)):
        raise RimLensError(
            f"The saved result has the unknown type {name!r}; import the module that defines it, "
            "or use the rim_lens version that wrote it."
        )
    return target


def build(cls: type, fields: Mapping[str, Any]) -> Any:
    """An instance of a dataclass from its fields; RimLensError when they are not the class's."""
    try:
        return cls(**fields)
    except TypeError as error:
        raise RimLensError(f"The saved {cls.__name__} was written by another version of rim_lens: {error}.") from error


def _is_tensor(value: Any) -> bool:
    """Whether it is a torch tensor, without importing torch for results that have none."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _unused(where: str, taken: Collection[str]) -> str:
    """A name for ``where`` that is safe as a file name and not taken, upper and lower case alike."""
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", where).lstrip(".")[:80]
    lowered = {other.lower() for other in taken}
    candidate, number = name, 2
    while candidate.lower() in lowered:
        candidate, number = f"{name}-{number}", number + 1
    return candidate
