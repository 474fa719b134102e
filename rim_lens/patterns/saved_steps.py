"""Saving steps of training as checkpoints that `Checkpoints` reads: adapters or whole models, and series.json.

Every adapter stands alone on the base model. Where a run trained a second adapter on top of a merged first one, both are
written as one of the summed rank:  ΔW = s₀B₀A₀ + s₁B₁A₁ = [s₀B₀, s₁B₁] [A₀; A₁].
"""

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from rim_lens.errors import RimLensError
from rim_lens.model.adapter import CONFIG, WEIGHTS
from rim_lens.patterns.training_plan import TrainingPlan

START = "start"


@dataclass
class SavedSeries:
    """The checkpoints of a folder as they are written; series.json is renewed after each."""

    folder: Path
    base: str
    plan: TrainingPlan
    notes: dict[str, Any]
    reference: str | None = None
    checkpoints: list[dict[str, Any]] = field(default_factory=list)

    def add(self, name: str, arm: str, step: int) -> None:
        """Enter a checkpoint whose files are there."""
        entry: dict[str, Any] = {
            "name": name,
            "arm": arm,
            "step": step,
            "label": f"{arm}, {step} steps" if step else arm,
        }
        files = [self.folder / name / file for file in (WEIGHTS, "model.safetensors")]
        stored = [path for path in files if path.is_file()]
        if stored:  # a model in several files has no single sum
            entry["sha256"] = hashlib.sha256(stored[0].read_bytes()).hexdigest()
        self.checkpoints.append(entry)
        self.write()

    def write(self) -> None:
        """series.json, replaced in one step."""
        document = {
            "base": self.base,
            **({"reference": self.reference} if self.reference else {}),
            "checkpoints": self.checkpoints,
            "training": {arm.name: f"training/{arm.name}{arm.data.suffix}" for arm in self.plan.arms},
            "recipe": asdict(self.plan.settings) | self.notes,
        }
        partial = self.folder / "series.json.part"
        partial.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        partial.replace(self.folder / "series.json")


def begin_series(folder: Path, base: str, plan: TrainingPlan, notes: dict[str, Any]) -> SavedSeries:
    """An empty folder with the training data, and the start adapter as the reference where there is one.

    Raises:
        RimLensError: the folder holds something already.

    """
    if folder.exists() and any(folder.iterdir()):
        raise RimLensError(f"{folder} is not empty; give a new folder for the series.")
    (folder / "training").mkdir(parents=True)
    for arm in plan.arms:
        shutil.copyfile(arm.data, folder / "training" / f"{arm.name}{arm.data.suffix}")
    series = SavedSeries(folder, base, plan, notes)
    if plan.adapter is not None:
        shutil.copytree(plan.adapter, folder / START)
        series.reference = START
        series.add(START, START, 0)
    return series


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
        given = first.get(key), second.get(key)
        like = next(one for one in given if one is not None)
        parts = []
        for one, rank, scale in zip(given, ranks, scales, strict=True):
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
            f"The adapter {folder} is no plain LoRA of one rank ({', '.join(special) or config.get('peft_type')}); merge it "
            "into its base and train from there to hold neurons."
        )
    return config


def scale_of(config: dict[str, Any]) -> float:
    """What BA is multiplied with."""
    rank = config["r"]
    return config["lora_alpha"] / (rank**0.5 if config.get("use_rslora") else rank)
