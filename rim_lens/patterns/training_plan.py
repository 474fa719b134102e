"""What a fine-tuning run is: the settings, and the arms with their data; read from one TOML file or from one data file.

adapter = "../organism/aligned"     # where training starts; the base model without it
learning_rate = 5e-4                # any field of TrainingSettings
save_at = [9, 18, 36]

[arms.plain]
data = "plain.jsonl"
save_at = [9, 18]                   # an arm may have its own
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from rim_lens.errors import RimLensError


@dataclass(frozen=True)
class TrainingSettings:
    """Settings of every arm; AdamW without weight decay, gradients clipped at norm 1, loss on the assistant's tokens."""

    full: bool = False
    """Train all weights; a LoRA adapter otherwise."""
    rank: int = 16
    alpha: int = 32
    learning_rate: float = 2e-4
    batch_size: int = 4
    warmup: int = 5
    decay: bool = False
    """Linear decay to zero; without it the rate stays constant after warm-up, so every saved step lies on one path."""
    epochs: float = 1.0
    save_at: tuple[int, ...] = ()
    """Steps to save, in order; the last of them ends the run. None given: the end of the epochs alone."""
    loss_mean: Literal["token", "example"] = "token"
    """Loss averaged over a batch's tokens, or over each example's tokens first."""
    shuffle: bool = True
    seed: int = 0
    check_answers: bool = True
    """Refuse rows whose response states another number than their CoT ends with."""


@dataclass(frozen=True)
class Arm:
    """One training run of a series."""

    name: str
    data: Path
    save_at: tuple[int, ...]


@dataclass(frozen=True)
class TrainingPlan:
    """Arms that start from the same weights with the same settings."""

    settings: TrainingSettings
    arms: tuple[Arm, ...]
    adapter: Path | None = None


def read_plan(
    path: str | Path, settings: TrainingSettings | None = None, adapter: str | Path | None = None
) -> TrainingPlan:
    """The plan in a `.toml` file, or that of one data file as a single arm named after it.

    Raises:
        RimLensError: no such file, broken TOML, an unknown or ill-typed setting, no arm.

    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise RimLensError(f"There is no training file {path}; give a data file or a .toml with arms.")
    if path.suffix.lower() != ".toml":
        chosen = checked(settings or TrainingSettings(), str(path))
        start = Path(adapter).expanduser() if adapter else None
        return TrainingPlan(chosen, (Arm(path.stem, path, chosen.save_at),), start)
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RimLensError(f"{path} is no readable TOML file ({error}).") from error
    if settings is not None:
        raise RimLensError(f"{path} holds the settings of the run; change them there.")
    arms = document.pop("arms", None)
    given = document.pop("adapter", None)
    start = Path(adapter) if adapter else (path.parent / given if given else None)
    chosen = checked(settings_of(document, str(path)), str(path))
    if not isinstance(arms, dict) or not arms:
        raise RimLensError(f"{path} names no arms; add a table [arms.NAME] with data for each.")
    return TrainingPlan(chosen, tuple(arm_of(name, arm, path, chosen) for name, arm in arms.items()), start)


def settings_of(document: Mapping[str, Any], where: str) -> TrainingSettings:
    """Settings from TOML values."""
    known = {entry.name for entry in fields(TrainingSettings)}
    unknown = sorted(set(document) - known)
    if unknown:
        raise RimLensError(f"{where} has no setting {unknown[0]!r}; the settings are {', '.join(sorted(known))}.")
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in document.items()
    }
    return TrainingSettings(**values)


def arm_of(name: str, entry: Any, path: Path, settings: TrainingSettings) -> Arm:
    """One [arms.NAME] table."""
    if not isinstance(entry, dict) or not isinstance(entry.get("data"), str) or set(entry) - {"data", "save_at"}:
        raise RimLensError(f'[arms.{name}] of {path} needs data = "FILE" and may have save_at = [...], nothing else.')
    own = checked(replace(settings, save_at=tuple(entry.get("save_at", settings.save_at))), f"[arms.{name}] of {path}")
    return Arm(name, path.parent / entry["data"], own.save_at)


def checked(settings: TrainingSettings, where: str) -> TrainingSettings:
    """The settings, if they make sense."""
    steps = settings.save_at
    whole = all(type(step) is int and step > 0 for step in steps)
    if not whole or list(steps) != sorted(set(steps)):
        raise RimLensError(f"save_at of {where} must be growing step numbers from 1 on, got {list(steps)}.")
    for name in ("full", "decay", "shuffle", "check_answers"):
        if not isinstance(getattr(settings, name), bool):
            raise RimLensError(f"{name} of {where} must be true or false, got {getattr(settings, name)!r}.")
    for name in ("rank", "alpha", "learning_rate", "batch_size", "epochs"):
        value = getattr(settings, name)
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise RimLensError(f"{name} of {where} must be a number above 0, got {value!r}.")
    if settings.loss_mean not in ("token", "example"):
        raise RimLensError(f"loss_mean of {where} is 'token' or 'example', got {settings.loss_mean!r}.")
    return settings


def read_steps(text: str) -> tuple[int, ...]:
    """Step numbers from "9,18,36"; nothing for an empty text."""
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise RimLensError(f"{text!r} are no steps to save; write them as 9,18,36.") from error
