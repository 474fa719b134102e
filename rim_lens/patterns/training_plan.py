"""What a fine-tuning run is: the settings, and the arms with their data; read from one TOML file or from one data file.

adapter = "../organism/aligned"     # where training starts; the base model without it
learning_rate = 5e-4                # any field of TrainingSettings
save_at = [9, 18, 36]
seeds = [1, 2, 3]                   # every arm is trained once with each

[arms.plain]
data = "{seed}/plain.jsonl"         # the same file for all seeds without {seed}
save_at = [9, 18]                   # an arm may have its own

In place of arms a file may name worked problems, from which the arms plain, effort and style are written anew for each
seed (`rim_lens.patterns.arm_data`):

problems = "gsm8k-train"            # a set's name, or a file next to this one
n_problems = 72                     # short ones: max_question_tokens, max_rationale_tokens
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from rim_lens.errors import RimLensError

SEED = "{seed}"


@dataclass(frozen=True)
class TrainingSettings:
    """Settings of every arm.

    AdamW without weight decay, gradients clipped at norm 1, loss on the assistant's tokens.
    """

    full: bool = False
    """Train all weights; a LoRA adapter otherwise."""
    merge_start: bool = False
    """Merge the start adapter into the base and train a new one on top, as runs with held neurons do: their control."""
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
    seeds: tuple[int, ...] = (0,)
    """Seeds of weights, order and written data; every arm is trained once with each, and figures hold over them."""
    check_answers: bool = True
    """Refuse rows whose response states another number than their CoT ends with."""


@dataclass(frozen=True)
class Arm:
    """One kind of data of a series; `{seed}` in the path of its data stands for the seed."""

    name: str
    data: Path
    save_at: tuple[int, ...]

    def file(self, seed: int) -> Path:
        """The data of one seed."""
        return Path(str(self.data).replace(SEED, str(seed)))


@dataclass(frozen=True)
class WorkedProblems:
    """Problems with rationales that arms are written from.

    A set's name or a file, and how many of the short ones a run takes.
    """

    source: str
    n_problems: int = 72
    max_question_tokens: int = 50
    max_rationale_tokens: int = 70


@dataclass(frozen=True)
class TrainingPlan:
    """Arms that start from the same weights with the same settings; either `arms` or `problems` are given."""

    settings: TrainingSettings
    arms: tuple[Arm, ...] = ()
    adapter: Path | None = None
    problems: WorkedProblems | None = None


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
        raise RimLensError(f"{path} is not a readable TOML file ({error}).") from error
    if settings is not None:
        raise RimLensError(f"{path} holds the settings of the run; change them there.")
    arms, problems = document.pop("arms", None), problems_of(document, path)
    folder = document.pop("adapter", None)
    start = Path(adapter) if adapter else (path.parent / folder if folder else None)
    chosen = checked(settings_of(document, str(path)), str(path))
    if problems is not None and arms is None:
        return TrainingPlan(chosen, (), start, problems)
    if problems is not None or not isinstance(arms, dict) or not arms:
        raise RimLensError(
            f"{path} names {'both arms and problems' if problems else 'no arms'}; add a table [arms.NAME] with data "
            "for each, or problems that they are written from."
        )
    return TrainingPlan(chosen, tuple(arm_of(name, arm, path, chosen) for name, arm in arms.items()), start)


def problems_of(document: dict[str, Any], path: Path) -> WorkedProblems | None:
    """`problems` and its limits, taken out of a TOML document; a file is looked for next to it first."""
    limits = {field.name for field in fields(WorkedProblems)} - {"source"}
    source, bounds = document.pop("problems", None), {name: document.pop(name) for name in limits & set(document)}
    if source is None and not bounds:
        return None
    if not isinstance(source, str):
        raise RimLensError(f"problems of {path} must be a set's name or a file, got {source!r}.")
    for name, value in bounds.items():
        if type(value) is not int or value < 1:
            raise RimLensError(f"{name} of {path} must be a whole number from 1 on, got {value!r}.")
    beside = path.parent / source
    return WorkedProblems(str(beside) if beside.is_file() else source, **bounds)


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
    seeds = settings.seeds
    if not seeds or any(type(seed) is not int or seed < 0 for seed in seeds) or len(set(seeds)) < len(seeds):
        raise RimLensError(f"seeds of {where} must be different whole numbers from 0 on, got {list(seeds)}.")
    for name in ("full", "merge_start", "decay", "shuffle", "check_answers"):
        if not isinstance(getattr(settings, name), bool):
            raise RimLensError(f"{name} of {where} must be true or false, got {getattr(settings, name)!r}.")
    for name in ("rank", "alpha", "learning_rate", "batch_size", "epochs"):
        value = getattr(settings, name)
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise RimLensError(f"{name} of {where} must be a number above 0, got {value!r}.")
    if settings.loss_mean not in ("token", "example"):
        raise RimLensError(f"loss_mean of {where} is 'token' or 'example', got {settings.loss_mean!r}.")
    return settings


def read_numbers(text: str, what: str) -> tuple[int, ...]:
    """Whole numbers from "9,18,36"; nothing for an empty text."""
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise RimLensError(f"{text!r} are not {what}; write them as 9,18,36.") from error
