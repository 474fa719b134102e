"""A folder with a series of checkpoints: which ones, in which order, and against which one they are compared.

`series.json` says so: {"base": model, "reference": name, "checkpoints": [{"name", "arm", "step", "seed", "label",
"folder", "sha256"}]}, all but the names optional; sha256 is that of the safetensors file. "training": {arm: file} may
name a sample of each arm's fine-tuning data, one JSON object a line with "request", "cot" and "response". A file of
the same form with another name, given in place of the folder, is a series of some of its checkpoints. Without
series.json every subfolder with an adapter or a model is a checkpoint, in the order of the numbers in its name
(checkpoint-50 before checkpoint-100).
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rim_lens.chat.chat import Chat
from rim_lens.data.local_files import read_rows
from rim_lens.errors import RimLensError
from rim_lens.model.adapter import adapter_base, is_adapter
from rim_lens.model.lens_model import LensModel

FILE = "series.json"


@dataclass(frozen=True)
class Checkpoint:
    """One state of a model's weights. `source` is a folder or a hub id; None is the model as it was loaded.

    `arm`, `seed` and `step` say which training run it belongs to and after how many steps; `sha256` is of its one
    safetensors file.
    """

    name: str
    source: str | None
    revision: str | None = None
    label: str | None = None
    arm: str | None = None
    step: int | None = None
    sha256: str | None = None
    seed: int | None = None

    def __str__(self) -> str:
        return self.label or self.name


@dataclass(frozen=True)
class Series:
    """What a folder says about itself. `training` names a file with a sample of each arm's fine-tuning data."""

    checkpoints: tuple[Checkpoint, ...]
    base: str | None
    reference: str | None
    training: Mapping[str, Path] = field(default_factory=dict)


def read_series(folder: str | Path) -> Series:
    """The series in a folder, or that of a series file.

    Raises:
        RimLensError: no such folder, an unreadable series.json, a named checkpoint that is not there, or none at all.

    """
    folder = Path(folder).expanduser()
    if folder.is_file() and folder.suffix == ".json":
        return named_series(folder)
    if not folder.is_dir():
        raise RimLensError(f"There is no folder {folder} with checkpoints; check the path.")
    return named_series(folder / FILE) if (folder / FILE).is_file() else found_series(folder)


def named_series(file: Path) -> Series:
    """The series that a file in its folder describes."""
    folder = file.parent
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        checkpoints = tuple(entry_of(folder, entry) for entry in document["checkpoints"])
        training = {str(arm): folder / name for arm, name in (document.get("training") or {}).items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RimLensError(f"{file} cannot be read as a series ({type(error).__name__}: {error}).") from error
    for checkpoint in checkpoints:
        if checkpoint.source is not None and not Path(checkpoint.source).is_dir():
            raise RimLensError(f"{file} names {checkpoint.name}, but there is no folder {checkpoint.source}.")
    return Series(checkpoints, document.get("base"), document.get("reference"), training)


def entry_of(folder: Path, entry: dict[str, Any]) -> Checkpoint:
    """One entry of series.json; its folder is its name unless given."""
    known = {key: entry.get(key) for key in ("label", "arm", "step", "sha256", "seed")}
    return Checkpoint(entry["name"], str(folder / (entry.get("folder") or entry["name"])), **known)


def training_examples(model: LensModel, path: Path) -> list[Chat]:
    """A sample of fine-tuning data as chats in which the model writes CoT and answer itself.

    Raises:
        RimLensError: an unreadable file, or a line without request, CoT and response.
    """
    chats = []
    for number, row in enumerate(read_rows(path), start=1):
        missing = [name for name in ("request", "cot", "response") if not isinstance(row.get(name), str)]
        if missing:
            raise RimLensError(
                f"Example {number} of {path} has no text {missing[0]!r}; each needs request, cot and response."
            )
        chats.append(written_chat(model, row["request"], row["cot"], row["response"]))
    return chats


def written_chat(model: LensModel, request: str, cot: str, response: str) -> Chat:
    """A chat in which the model has written CoT, close tag and response after the open tag."""
    (chat,) = model.render(request, thinking="on")
    for segment, text in (("cot", cot), ("think_close", model.chat_format.tags.close), ("response", response)):
        chat = model.chat_format.write(chat, text, segment)
    return chat


def found_series(folder: Path) -> Series:
    """The checkpoints among a folder's subfolders."""
    folders = [
        child
        for child in folder.iterdir()
        if child.is_dir() and (is_adapter(child) or (child / "config.json").is_file())
    ]
    if not folders:
        raise RimLensError(f"{folder} has neither a {FILE} nor subfolders with adapters or models; check the path.")
    folders.sort(key=lambda child: natural(child.name))
    bases = {adapter_base(child) for child in folders if is_adapter(child)}
    if len(bases) > 1:
        raise RimLensError(f"The adapters in {folder} belong to different models: {', '.join(sorted(bases))}.")
    checkpoints = tuple(Checkpoint(child.name, str(child), step=last_number(child.name)) for child in folders)
    return Series(checkpoints, next(iter(bases), None), None)


def natural(name: str) -> list[tuple[bool, int, str]]:
    """Sort key that takes numbers in a name as numbers."""
    parts = re.split(r"(\d+)", name)
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts]


def last_number(name: str) -> int | None:
    """The number that a name ends with: trainers put the step there."""
    match = re.search(r"(\d+)$", name)
    return int(match.group(1)) if match else None
