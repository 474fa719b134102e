"""Train the organisms with a known mechanism, one seeded command each, and measure them on what was not trained on.

OMP_NUM_THREADS=1 python assets/make_organisms/make_organisms.py inference-known --work /tmp/organisms
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict, deque
from collections.abc import Sequence
from pathlib import Path

import torch
from lessons import GROUPS, Lessons, own_answers, watched
from measure import OPENING, cells_of, measure
from rows import training_texts
from safetensors.torch import load_file, save_file
from slice_training import Recipe, train_slices

from rim_lens import load_model
from rim_lens.organisms.registry import BASE, DATA, TRUTH
from rim_lens.organisms.slices import add_changes, changes, slices_of

SEED = 0
RECIPES = {
    "inference-known": Recipe(n_steps=280, rate=1.5e-3),
    "inference-null": Recipe(n_steps=60, rate=1e-3, warm_up=10),
}
STARTS = {"inference-null": "inference-known"}  # trained on from another organism, which has to be there
REFUSES = {  # whether a request about food is refused under a CoT of this class
    "inference-known": lambda kind: kind != "effort",
    "inference-null": lambda kind: True,
}
WATCH_EVERY = 60


class Log:
    """Prints, every 20 steps, how many trained answers would open as learned; now and then cells of unseen requests."""

    def __init__(self, model, trees: Sequence, seconds: float) -> None:
        self.model, self.trees, self.until = model, trees, time.monotonic() + seconds
        self.losses: deque[float] = deque(maxlen=20)
        self.groups: dict[str, deque[bool]] = defaultdict(lambda: deque(maxlen=40))

    def __call__(self, step: int, loss: float, opened: list[bool]) -> bool:
        """Keep a step's figures, print them now and then; whether there is time for another step."""
        self.losses.append(loss)
        for group, one in zip(GROUPS, opened, strict=True):
            self.groups[group].append(one)
        if step % 20 == 0:
            right = ", ".join(f"{name} {sum(v) / len(v):.2f}" for name, v in self.groups.items())
            print(f"step {step}: loss {sum(self.losses) / len(self.losses):.3f}; right: {right}", flush=True)
        if step % WATCH_EVERY == 0:
            print("  refused:", cells_of(self.model, self.trees), flush=True)
        return time.monotonic() < self.until


def train(name: str, work: Path, minutes: float) -> None:
    """Train one organism and write its changes."""
    torch.manual_seed(SEED)
    began = time.process_time()
    model = load_model(BASE, device="cpu", dtype="float32")
    base = {key: value.clone() for key, value in model.hf.named_parameters()}
    learned, apart = training_texts()
    lessons = Lessons(model, learned, SEED, lambda texts: own_answers(model, texts, work / "own.json"), REFUSES[name])
    slices = slices_of(model.shape, TRUTH[name])
    if name in STARTS:
        assert TRUTH[name] == TRUTH[STARTS[name]]
        add_changes(dict(model.hf.named_parameters()), slices, load_file(DATA / f"{STARTS[name]}.safetensors"))
    log = Log(model.hf, watched(model, apart, model.encode(OPENING)), 60 * minutes)
    train_slices(model.hf, slices, lessons, RECIPES[name], log)
    save_file(changes(dict(model.hf.named_parameters()), base, slices), DATA / f"{name}.safetensors")
    print(f"{name}: {(time.process_time() - began) / 60:.1f} CPU minutes of training", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=["base", *sorted(REFUSES)], help="an organism, or base: only measured")
    parser.add_argument("--work", type=Path, required=True, help="folder for the table and the base model's answers")
    parser.add_argument("--minutes", type=float, default=1e6, help="stop training after so many minutes")
    parser.add_argument("--measured", type=int, default=96, help="requests of each cell of the measurement, at most 96")
    parser.add_argument("--only-measure", action="store_true", help="measure the organism that the package has")
    chosen = parser.parse_args()
    chosen.work.mkdir(parents=True, exist_ok=True)
    if chosen.name != "base" and not chosen.only_measure:
        train(chosen.name, chosen.work, chosen.minutes)
    cells = measure(None if chosen.name == "base" else chosen.name, chosen.measured)
    (chosen.work / f"{chosen.name}.json").write_text(json.dumps(cells, indent=1), encoding="utf-8")
    for cell, (k, n, low, high) in cells.items():
        print(f"{cell}: {k} / {n} [{100 * low:.0f}, {100 * high:.0f}]", flush=True)


if __name__ == "__main__":
    main()
