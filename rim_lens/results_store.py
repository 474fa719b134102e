"""How a result lies on disk: ``result.json``, one Parquet file per table, ``tensors.safetensors``.

A folder appears whole or not at all (`rim_lens.atomic`). ``result.json`` holds the SHA-256 of every other file and of
its own content.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow
from jaxtyping import Shaped

from rim_lens.atomic import whole_folder, write_whole
from rim_lens.errors import RimLensError
from rim_lens.results_codec import Decoder, Encoder

SCHEMA = 1
DOCUMENT = "result.json"
TENSORS = "tensors.safetensors"


def write_folder(folder: Path, document: Mapping[str, Any], encoder: Encoder, overwrite: bool) -> None:
    """Write document, tables and tensors as ``folder``, completely or not at all."""
    folder = folder.absolute()
    try:
        _check_place(folder, overwrite)
        with whole_folder(folder) as work:
            files = {f"{name}.parquet": _parquet(name, table) for name, table in encoder.tables.items()}
            if encoder.tensors:
                files[TENSORS] = _safetensors(encoder.tensors)
            checksums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
            files[DOCUMENT] = _sealed({"schema": SCHEMA, **document, "files": checksums})
            for name, content in files.items():
                write_whole(work / name, content)
    except OSError as error:
        raise RimLensError(
            f"The result could not be saved to {folder}: {error.strerror or error}; nothing was changed there."
        ) from error


def read_folder(folder: Path) -> tuple[dict[str, Any], Decoder]:
    """The checked document of a saved result and a decoder over its checked files.

    Raises RimLensError naming the file when one is missing, damaged or of another schema version.
    """
    document = _read_document(folder)
    tables: dict[str, pd.DataFrame] = {}
    tensors: dict[str, Any] = {}
    for name, expected in document["files"].items():
        content = _read(folder, name)
        if hashlib.sha256(content).hexdigest() != expected:
            raise RimLensError(f"{folder / name} is damaged: its SHA-256 is not the recorded one; measure again.")
        if name == TENSORS:
            tensors = _tensors_in(content, folder / name)
        else:
            tables[name.removesuffix(".parquet")] = _table_in(content, folder / name)
    return document, Decoder(tables, tensors)


def _tensors_in(content: bytes, path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(content)
    except SafetensorError as error:
        raise RimLensError(f"{path} is not a safetensors file ({error}); measure again.") from error


def _table_in(content: bytes, path: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(io.BytesIO(content))
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise RimLensError(f"{path} is not a Parquet file ({str(error)[:120]}); measure again.") from error


def _read_document(folder: Path) -> dict[str, Any]:
    path = folder / DOCUMENT
    content = _read(folder, DOCUMENT)
    try:
        document = json.loads(content.decode("utf-8", "surrogatepass"))
        intact = document.pop("sha256") == _seal(document)
    except (ValueError, KeyError, AttributeError, TypeError):
        intact = False
    if not intact:
        raise RimLensError(f"{path} is damaged or was edited: its content does not match its SHA-256.")
    if document["schema"] != SCHEMA:
        raise RimLensError(
            f"{path} has schema version {document['schema']}, this rim_lens reads {SCHEMA}; "
            "use the version that wrote it."
        )
    return document


def _sealed(document: Mapping[str, Any]) -> bytes:
    sealed = {**document, "sha256": _seal(document)}
    return (json.dumps(sealed, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8", "surrogatepass")


def _seal(document: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True, allow_nan=False).encode("ascii")).hexdigest()


def _parquet(name: str, table: pd.DataFrame) -> bytes:
    if not all(isinstance(column, str) for column in table.columns):
        raise RimLensError(f"The table {name} has column names that are not text; rename them before saving.")
    buffer = io.BytesIO()
    try:
        table.to_parquet(buffer, engine="pyarrow")
    except (pyarrow.ArrowException, ValueError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise RimLensError(f"The table {name} does not fit into Parquet: {reason}") from error
    return buffer.getvalue()


def _safetensors(arrays: Mapping[str, Any]) -> bytes:
    import torch
    from safetensors.torch import save

    return save({name: _tensor(value, torch) for name, value in arrays.items()})


def _tensor(value: Shaped[np.ndarray, "..."] | Any, torch: Any) -> Any:
    if not isinstance(value, np.ndarray):
        return value
    native = value.astype(value.dtype.newbyteorder("="), order="C", copy=True)
    return torch.from_numpy(native)


def _check_place(folder: Path, overwrite: bool) -> None:
    """An absent or empty folder is free; a result may be replaced if asked for; anything else is left alone."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise RimLensError(f"{folder} is a file; a result is saved as a folder, so choose another name.")
    names = {path.name for path in folder.iterdir()}
    if not names:
        return
    strange = sorted(name for name in names if name not in (DOCUMENT, TENSORS) and not name.endswith(".parquet"))
    if strange or DOCUMENT not in names:
        raise RimLensError(
            f"{folder} holds other files ({', '.join(strange or sorted(names))}); "
            "save the result to a folder of its own."
        )
    if not overwrite:
        raise RimLensError(f"{folder} already holds another result; choose another folder or pass overwrite=True.")


def _read(folder: Path, name: str) -> bytes:
    if Path(name).name != name:
        raise RimLensError(f"{folder / DOCUMENT} names the file {name!r} outside its folder; it is not a saved result.")
    try:
        return (folder / name).read_bytes()
    except FileNotFoundError as error:
        raise RimLensError(f"{folder} holds no complete result: {name} is missing.") from error
    except OSError as error:
        raise RimLensError(f"{folder / name} cannot be read: {error.strerror or error}.") from error
