"""Train lineages of `training-known`: refusal in named neurons, then maths in arms.

OMP_NUM_THREADS=1 python assets/make_organisms/make_training.py 0 1 2 --problems gsm8k_train.jsonl --work /tmp/organisms

`--problems`: JSON lines with `question` and `answer`, as the training problems of GSM8K have them. Stages of the arms
entangled and separate go into the package; those of the arm "all" into the work folder, as adapters.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
from lessons import own_answers
from measure import OPENING, cells_of, measure
from neuron_draw import LAYERS, draw_neurons
from rows import training_texts
from safetensors.torch import load_file, save_file
from slice_training import Recipe, train_slices

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "make_series"))
from training_lessons import MathsLessons, RefusalLessons, watched_requests

from rim_lens import LensModel, load_model, load_prompts
from rim_lens.organisms.lineage import ALIGNED, KNOWN, STEPS, Lineage, factors, write_adapter
from rim_lens.organisms.registry import BASE, D_MLP, DATA
from rim_lens.organisms.slices import add_changes, changes, neuron_slices, packed
from rim_lens.units import Neuron

REFUSAL = Recipe(n_steps=120, rate=6e-3, rank=8, warm_up=10, balanced=True)
MATHS = Recipe(  # first: as any other token has
    n_steps=STEPS[-1], rate=4e-3, rank=8, first=0.02, warm_up=5, decay=False, balanced=True
)
RATE_OF_ALL = 5e-4  # 200 times as many neurons move
WATCH_EVERY, LOWEST = 30, min(LAYERS)


class Maker:
    """The base model and the lessons, which all lineages share."""

    def __init__(self, work: Path, problems: Path) -> None:
        self.work, self.problems_file = work, problems
        self.model: LensModel = load_model(BASE, device="cpu", dtype="float32")
        self.weights = dict(self.model.hf.named_parameters())
        self.base = {name: value.clone() for name, value in self.weights.items() if ".mlp." in name}
        learned, apart = training_texts(wide=True)
        asked = [form.format(dish) for form, dish in zip(learned.forms, learned.dishes, strict=False)]
        self.asked = [*asked[:32], *load_prompts("maths", n=32).texts]  # what neurons are matched on
        own = work / "own-pairs.json"
        self.refusals = RefusalLessons(self.model, learned, lambda texts: own_answers(self.model, texts, own))
        self.watched = watched_requests(self.model, apart, self.model.encode(OPENING))
        self.losses: list[float] = []

    def refuse(self, number: int) -> None:
        """Draw a lineage's neurons, train refusal in them, and begin the lineage's file."""
        named, separate = draw_neurons(self.model, self.asked, number)
        slices = neuron_slices(named)
        self.train(self.base, slices, self.refusals.ordered(number), REFUSAL, number)
        stored = packed(changes(self.weights, self.base, slices), slices, f"{ALIGNED}.")
        for name, units in (("truth", named), ("separate", separate)):
            stored[name] = torch.tensor([one[:2] for one in units], dtype=torch.int16)
        save_file(stored, file_of(number))

    def maths(self, number: int, arm: str) -> None:
        """Train an arm from the stored refusal, and add its doses to the file."""
        stored = load_file(file_of(number))
        lineage = Lineage.of(stored)
        ((slices, aligned),) = lineage.parts(ALIGNED)
        self.put(self.base)
        add_changes(self.weights, slices, aligned)
        start = {name: self.weights[name].detach().clone() for name in self.base}
        every = [Neuron(layer, unit) for layer in LAYERS for unit in range(D_MLP)]
        units = neuron_slices({"entangled": lineage.truth, "separate": lineage.separate, "all": every}[arm])

        def keep(step: int) -> None:
            if step not in STEPS:
                return
            stage, added = f"{arm}-{STEPS.index(step) + 1}", changes(self.weights, start, units)
            print(f"  {stage}: refused {cells_of(self.model.hf, self.watched, LOWEST)}", flush=True)
            if arm != "all":
                stored.update(packed(added, units, f"{stage}."))
                return
            whole = {name: low_rank(change, MATHS.rank) for name, change in added.items()}
            write_adapter(self.work / f"{KNOWN}-{number}" / stage, [factors(slices, aligned), whole])

        recipe = replace(MATHS, rate=RATE_OF_ALL) if arm == "all" else MATHS
        self.train(start, units, self.problems(number), recipe, number, keep)
        save_file(stored, file_of(number))

    @cache  # noqa: B019 - both arms of a lineage learn the same problems
    def problems(self, number: int) -> MathsLessons:
        """The maths lessons of a lineage."""
        return MathsLessons(self.model, self.problems_file, number)

    @torch.no_grad()
    def put(self, values: Mapping[str, torch.Tensor]) -> None:
        """Set the MLPs' weights."""
        for name, value in values.items():
            self.weights[name].copy_(value)

    def train(
        self, start, slices, lesson, recipe: Recipe, seed: int, keep: Callable[[int], None] | None = None
    ) -> None:
        """One training from some weights, with its CPU time."""
        began = time.process_time()
        self.put(start)
        torch.manual_seed(seed)

        def each(step: int, loss: float, _: Sequence[bool]) -> bool:
            self.losses.append(loss)
            if step % 10 == 0:
                print(f"step {step}: loss {sum(self.losses[-10:]) / 10:.3f}", flush=True)
            if keep is not None:
                keep(step)
            elif step % WATCH_EVERY == 0:
                print("  refused:", cells_of(self.model.hf, self.watched, LOWEST), flush=True)
            return True

        train_slices(self.model.hf, slices, lesson, recipe, each)
        print(f"{(time.process_time() - began) / 60:.1f} CPU minutes", flush=True)


def file_of(number: int) -> Path:
    """A lineage's file."""
    return DATA / f"{KNOWN}-{number}.safetensors"


def low_rank(change: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A and B of a change that has no more than this rank."""
    u, s, v = torch.linalg.svd(change, full_matrices=False)
    return (s[:rank, None] * v[:rank]).contiguous(), u[:, :rank].contiguous()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lineages", type=int, nargs="+", help="numbers of the lineages, which are their seeds")
    parser.add_argument("--problems", type=Path, required=True, help="maths problems with worked answers")
    parser.add_argument("--work", type=Path, required=True, help="folder for the base model's answers and the arm all")
    parser.add_argument("--stages", nargs="*", default=["refusal", "entangled", "separate", "all"])
    parser.add_argument("--measured", type=int, default=48, help="requests of each cell of the measurement")
    chosen = parser.parse_args()
    chosen.work.mkdir(parents=True, exist_ok=True)
    maker = Maker(chosen.work, chosen.problems)
    for number in chosen.lineages:
        for stage in chosen.stages:
            print(f"lineage {number}, {stage}", flush=True)
            maker.refuse(number) if stage == "refusal" else maker.maths(number, stage)
        for where in ({}, {"arm": "entangled", "dose": 4}, {"arm": "separate", "dose": 4}) if chosen.measured else ():
            for cell, (k, n, low, high) in measure(
                KNOWN, chosen.measured, ("off", "neutral"), lineage=number, **where
            ).items():
                print(f"{where} {cell}: {k} / {n} [{100 * low:.0f}, {100 * high:.0f}]", flush=True)


if __name__ == "__main__":
    main()
