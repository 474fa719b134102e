"""Saving steps of training as checkpoints that `Checkpoints` reads: adapters or whole models, and series.json.

Every adapter stands alone on the base model. Where a run trained a second adapter on top of a merged first one, both
are written as one of the summed rank:  ΔW = s₀B₀A₀ + s₁B₁A₁ = [s₀B₀, s₁B₁] [A₀; A₁].
"""

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors.torch import load_file, save_file

from rim_lens.atomic import write_whole
from rim_lens.errors import RimLensError
from rim_lens.model.adapter import CONFIG, WEIGHTS
from rim_lens.patterns.training_plan import TrainingPlan
from rim_lens.patterns.training_runs import Run

START = "start"
FILE = "series.json"


@dataclass
class SavedSeries:
    """The checkpoints of a folder as they are written; series.json is renewed after each.

    `runs` keeps, by the name of each finished run, its minutes and its log.
    """

    folder: Path
    base: str
    plan: TrainingPlan
    recipe: dict[str, Any]
    training: dict[str, str]
    reference: str | None = None
    checkpoints: list[dict[str, Any]] = field(default_factory=list)
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)

    def folder_of(self, run: Run, step: int) -> Path:
        """Where a step of a run is saved."""
        return self.folder / f"{run.name}-{step}"

    def add(self, run: Run, step: int) -> None:
        """Enter a checkpoint whose files are there."""
        seed = f", seed {run.seed}" if run.name != run.arm else ""
        label = f"{run.arm}, {step} steps{seed}"
        self.enter(self.folder_of(run, step).name, run.arm, step, label, seed=run.seed)

    def enter(self, name: str, arm: str, step: int, label: str, **more: Any) -> None:
        """Enter a checkpoint and write series.json."""
        entry = {"name": name, "arm": arm, "step": step, "label": label, **more}
        files = [self.folder / name / file for file in (WEIGHTS, "model.safetensors")]
        stored = [path for path in files if path.is_file()]
        if stored:  # a model in several files has no single sum
            entry["sha256"] = hashlib.sha256(stored[0].read_bytes()).hexdigest()
        self.checkpoints = [checkpoint for checkpoint in self.checkpoints if checkpoint["name"] != name] + [entry]
        self.write()

    def finish(self, run: Run, log: list[dict[str, float]], minutes: float) -> None:
        """Mark a run as whole."""
        self.runs[run.name] = {"minutes": round(minutes, 3), "log": log}
        self.write()

    def is_whole(self, run: Run) -> bool:
        """Whether all steps of a run are saved."""
        return run.name in self.runs

    def minutes(self, run: Run) -> float:
        """What a finished run took."""
        return float(self.runs[run.name]["minutes"])

    def log_table(self, runs: Sequence[Run]) -> pd.DataFrame:
        """The log of all runs, one row per logged step."""
        frames = [pd.DataFrame(self.runs[run.name]["log"]).assign(arm=run.arm, seed=run.seed) for run in runs]
        return pd.concat(frames, ignore_index=True)

    def write(self) -> None:
        """series.json, replaced in one step."""
        document = {
            "base": self.base,
            **({"reference": self.reference} if self.reference else {}),
            "checkpoints": self.checkpoints,
            "training": self.training,
            "recipe": self.recipe,
            "runs": self.runs,
        }
        write_whole(self.folder / FILE, json.dumps(document, indent=2) + "\n")


def begin_series(
    folder: Path, base: str, plan: TrainingPlan, runs: Sequence[Run], notes: dict[str, Any]
) -> SavedSeries:
    """A folder with the training data and, where there is one, the start adapter as reference; or the series in it.

    Raises:
        RimLensError: the folder holds something else than this plan.

    """
    data = {run.name: run.sha256 for run in runs}
    save_at = {run.name: list(run.save_at) for run in runs}
    recipe = json.loads(json.dumps(asdict(plan.settings) | notes | {"save_at": save_at, "data_sha256": data}))
    # One sample per arm is enough for whoever predicts shifts from the data.
    training = {run.arm: f"training/{run.name}.jsonl" for run in reversed(runs)}
    series = SavedSeries(folder, base, plan, recipe, dict(reversed(training.items())))
    if folder.exists() and any(folder.iterdir()):
        return continued(series)
    (folder / "training").mkdir(parents=True)
    for run in runs:
        (folder / "training" / f"{run.name}.jsonl").write_text(run.lines, encoding="utf-8")
    if plan.adapter is not None:
        shutil.copytree(plan.adapter, folder / START)
        series.reference = START
        series.enter(START, START, 0, START)
    else:
        series.write()
    return series


def continued(series: SavedSeries) -> SavedSeries:
    """The series with what its folder holds; steps of runs that were not finished are taken away."""
    path = series.folder / FILE
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        differing = [key for key in series.recipe if document["recipe"].get(key) != series.recipe[key]]
        differing += ["base"] if document["base"] != series.base else []
        series.checkpoints, series.runs = document["checkpoints"], document["runs"]
        series.reference = document.get("reference")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RimLensError(
            f"{series.folder} is not empty and holds no series of this command; give a new folder."
        ) from error
    if (series.reference is not None) != (series.plan.adapter is not None):
        differing.append("adapter")
    if differing:
        raise RimLensError(
            f"{series.folder} holds another series (it differs in {', '.join(differing)}); give a new folder or "
            "remove it."
        )
    whole = [
        checkpoint
        for checkpoint in series.checkpoints
        if checkpoint["step"] == 0 or run_name(checkpoint["name"]) in series.runs
    ]
    for one in series.checkpoints:
        if one not in whole:
            shutil.rmtree(series.folder / one["name"], ignore_errors=True)
    series.checkpoints = whole
    return series


def run_name(checkpoint: str) -> str:
    """The run that a checkpoint is of: its name without the step."""
    return checkpoint.rpartition("-")[0]


def save_adapter(model: Any, folder: Path, base: str, before: Path | None = None) -> None:
    """A PEFT model's adapter, joined with the one at `before` that was merged into its base."""
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    if before is not None:
        config = join_adapters(folder, config, before)
    config["base_model_name_or_path"], config["inference_mode"] = base, True
    if isinstance(config.get("target_modules"), list):
        config["target_modules"] = sorted(config["target_modules"])
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def join_adapters(folder: Path, config: dict[str, Any], before: Path) -> dict[str, Any]:
    """Write the sum of the adapter in `folder` and the earlier one as a single adapter; returns its config."""
    earlier = plain_lora_config(before)
    first, second = load_file(before / WEIGHTS), load_file(folder / WEIGHTS)
    ranks, scales = (earlier["r"], config["r"]), (scale_of(earlier), scale_of(config))
    joined = {}
    for key in sorted(first.keys() | second.keys()):
        is_a = ".lora_A." in key
        pair = first.get(key), second.get(key)
        like = next(one for one in pair if one is not None)
        parts = []
        for one, rank, scale in zip(pair, ranks, scales, strict=True):
            shape = (rank, like.shape[1]) if is_a else (like.shape[0], rank)
            part = torch.zeros(shape) if one is None else one.float()
            parts.append(part if is_a else scale * part)
        joined[key] = torch.cat(parts, dim=0 if is_a else 1).contiguous()
    save_file(joined, folder / WEIGHTS)
    modules = sorted({*config["target_modules"], *earlier["target_modules"]})
    return config | {"r": sum(ranks), "lora_alpha": sum(ranks), "use_rslora": False, "target_modules": modules}


def plain_lora_config(folder: Path) -> dict[str, Any]:
    """An adapter's config, if it is LoRA of one rank with named modules."""
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    special = [name for name in ("use_dora", "rank_pattern", "alpha_pattern", "modules_to_save") if config.get(name)]
    if config.get("peft_type") != "LORA" or special or not isinstance(config.get("target_modules"), list):
        raise RimLensError(
            f"The adapter {folder} is not a plain LoRA of one rank ({', '.join(special) or config.get('peft_type')}); "
            "merge it into its base and train from there to hold neurons."
        )
    return config


def scale_of(config: dict[str, Any]) -> float:
    """What BA is multiplied with."""
    rank = config["r"]
    return config["lora_alpha"] / (rank**0.5 if config.get("use_rslora") else rank)
