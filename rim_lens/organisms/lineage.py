"""Lineages of `training-known`: refusal in named neurons, then doses of maths in two arms; one file each.

A stage is "aligned" (refusal was trained, no maths yet) or an arm with a dose, "entangled-2". The change of an arm
comes on top of that of "aligned".
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor

from rim_lens.cache import cache_folder, filled_once, is_filled
from rim_lens.errors import RimLensError
from rim_lens.model.adapter import CONFIG, PREFIX, WEIGHTS
from rim_lens.organisms.registry import BASE, D_MLP, DATA
from rim_lens.organisms.slices import Slice, neuron_slices, unpacked
from rim_lens.units import Neuron

KNOWN, NULL, ALIGNED = "training-known", "training-null", "aligned"
ARMS = ("entangled", "separate")
STEPS = (6, 12, 24, 48)  # of maths, at each dose
NULL_STAGE = "separate-2"  # the highest dose at which every lineage keeps its refusals
Part = tuple[dict[str, Slice], dict[str, Float[Tensor, "..."]]]  # slices, and what is added in them
Factors = dict[str, tuple[Float[Tensor, "rank in"], Float[Tensor, "out rank"]]]  # A and B by parameter


@dataclass(frozen=True, eq=False)
class Lineage:
    """One training: its named neurons, those of the separate arm, and what each stage adds to the one before."""

    truth: tuple[Neuron, ...]
    separate: tuple[Neuron, ...]
    stored: Mapping[str, Tensor]

    @classmethod
    def of(cls, stored: Mapping[str, Tensor]) -> "Lineage":
        """A lineage from the tensors of its file."""
        truth, separate = (tuple(Neuron(*row) for row in stored[name].tolist()) for name in ("truth", "separate"))
        return cls(truth, separate, stored)

    def parts(self, stage: str) -> list[Part]:
        """Slices and changes whose sum over the base is the stage."""
        last = self.separate if stage.startswith("separate") else self.truth
        stages = {ALIGNED: self.truth, stage: last}
        return [(neuron_slices(units), unpacked(self.stored, f"{one}.")) for one, units in stages.items()]


def lineages() -> list[int]:
    """Numbers of the lineages that there are."""
    return sorted(int(path.stem.rpartition("-")[2]) for path in DATA.glob(f"{KNOWN}-*.safetensors"))


@cache
def read_lineage(number: int) -> Lineage:
    """A stored lineage.

    Raises:
        RimLensError: there is no such lineage.

    """
    if number not in lineages():
        raise RimLensError(f"There is no lineage {number} of {KNOWN}; choose among {lineages()}.")
    return Lineage.of(load_file(DATA / f"{KNOWN}-{number}.safetensors"))


def stage_of(arm: str | None, dose: int | None) -> str:
    """The name of a stage.

    Raises:
        RimLensError: an arm or dose that there is not, or one without the other.

    """
    if arm is None and dose is None:
        return ALIGNED
    if arm not in ARMS or dose not in range(1, len(STEPS) + 1):
        raise RimLensError(
            f"arm={arm!r} with dose={dose!r} is not a stage; give neither, or one of {', '.join(ARMS)} with a dose of "
            f"1 to {len(STEPS)}."
        )
    return f"{arm}-{dose}"


def series(lineage: int | None = None) -> Path:
    """A folder with all stages of a lineage as LoRA adapters, for `Checkpoints.from_folder`; written once to the cache.

    The reference is "aligned". An adapter's product has one term for each row or column that was trained, so it is the
    change itself.

    Raises:
        RimLensError: there is no such lineage, or the cache cannot be written.

    """
    lineage = lineages()[0] if lineage is None else lineage
    one = read_lineage(lineage)
    folder = cache_folder() / "organisms" / f"{KNOWN}-{lineage}-{fingerprint(lineage)}"
    if not is_filled(folder):
        with filled_once(folder) as work:
            write_series(work, one, lineage)
    return folder


def fingerprint(lineage: int) -> str:
    """First digits of the checksum of a lineage's file."""
    return hashlib.sha256((DATA / f"{KNOWN}-{lineage}.safetensors").read_bytes()).hexdigest()[:12]


def write_series(folder: Path, lineage: Lineage, number: int) -> None:
    """All stages as adapters, and the file that lists them."""
    entries = [{"name": ALIGNED, "arm": ALIGNED, "step": 0, "seed": number}]
    entries += [
        {"name": f"{arm}-{dose}", "arm": arm, "step": steps, "seed": number}
        for arm in ARMS
        for dose, steps in enumerate(STEPS, start=1)
    ]
    for entry in entries:
        write_adapter(folder / str(entry["name"]), [factors(*part) for part in lineage.parts(str(entry["name"]))])
    document = {"base": BASE, "reference": ALIGNED, "checkpoints": entries}
    (folder / "series.json").write_text(json.dumps(document, indent=1), encoding="utf-8")


def factors(slices: Mapping[str, Slice], added: Mapping[str, Float[Tensor, "..."]], d_mlp: int = D_MLP) -> Factors:
    """A and B whose product is the change of neurons: one term for each row or column that it has."""
    found = {}
    for name, (axis, index) in slices.items():
        places = torch.nn.functional.one_hot(index, d_mlp).float()
        found[name] = (added[name], places.T) if axis == 0 else (places, added[name])
    return found


def write_adapter(folder: Path, parts: Sequence[Factors]) -> None:
    """The sum of changes as one LoRA adapter in PEFT's format, in float32."""
    tensors, sizes = dict[str, Tensor](), dict[str, int]()
    for name in dict.fromkeys(name for part in parts for name in part):
        module = name.removesuffix(".weight")
        a = torch.cat([part[name][0] for part in parts if name in part])
        b = torch.cat([part[name][1] for part in parts if name in part], dim=1)
        tensors |= {f"{PREFIX}{module}.lora_A.weight": a, f"{PREFIX}{module}.lora_B.weight": b.contiguous()}
        sizes[module] = len(a)
    folder.mkdir(parents=True)
    save_file(tensors, folder / WEIGHTS)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": BASE,
        "inference_mode": True,
        "target_modules": sorted(sizes),
        "rank_pattern": sizes,
        "alpha_pattern": sizes,
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=1), encoding="utf-8")
