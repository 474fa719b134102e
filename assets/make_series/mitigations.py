"""Keep refusal while maths is learned: penalties and freezing side by side, each with its random control, as Markdown.

    python assets/make_series/mitigations.py --data DATA_FOLDER --work WORK_FOLDER

DATA_FOLDER holds harmful_test.jsonl, gsm8k_train_2000.jsonl and gsm8k_test.jsonl. Every condition trains the plain arm
of seeds.toml for 9 steps with three seeds, a new adapter on the merged `aligned`; anchors are the built-in harmful
requests. Neurons and direction are found on `aligned` with the built-in sets. Random neurons are as many in each layer
and decile of activation, random directions are drawn evenly, new ones for each seed. Trainings that are there already
are kept; `--only` names the conditions that are trained and compared.
"""

from __future__ import annotations

import argparse
import json
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from report_arms import drawn, joined, markdown, short

from rim_lens import (
    find_safety_neurons,
    finetune,
    load_model,
    load_prompts,
    refusal_direction,
    refusal_forcing_pairs,
)
from rim_lens.capture.neuron_sets import matched_controls
from rim_lens.patterns import TrainingSettings
from rim_lens.patterns.arm_data import written_arms
from rim_lens.patterns.training_plan import Arm, TrainingPlan, WorkedProblems
from rim_lens.training_time import compare_arms, series_behavior, series_maths

HERE = Path(__file__).parent
ALIGNED = HERE.parent / "organism" / "aligned"
BASE, STEPS, SEEDS = "smollm2-135m-instruct", 9, (1, 2, 3)
# what is held: None, the neurons or the direction found on `aligned`, or random ones; and the weight of the penalty
CONDITIONS: dict[str, tuple[str | None, float]] = {
    "nothing": (None, 0.0),
    "direction, γ = 1": ("direction", 1.0),
    "random direction, γ = 1": ("random direction", 1.0),
    "neurons' activation, λ = 1": ("neurons", 1.0),
    "random neurons' activation, λ = 1": ("random neurons", 1.0),
    "direction, γ = 10": ("direction", 10.0),
    "random direction, γ = 10": ("random direction", 10.0),
    "neurons' weights": ("neurons", 0.0),
    "random neurons' weights": ("random neurons", 0.0),
}


def plan_of(data: Path, work: Path, tokenizer: Any) -> TrainingPlan:
    """The plain arm of seeds.toml, its rows written to the work folder."""
    recipe = tomllib.loads((HERE / "seeds.toml").read_text(encoding="utf-8"))
    problems = WorkedProblems(str(data / "gsm8k_train_2000.jsonl"), n_problems=recipe["n_problems"])
    for (arm, seed), rows in written_arms(problems, tokenizer, SEEDS).items():
        if arm == "plain":
            (work / str(seed)).mkdir(parents=True, exist_ok=True)
            lines = [json.dumps(row, ensure_ascii=False) for row in rows]
            (work / str(seed) / "plain.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    names = ("rank", "alpha", "learning_rate", "batch_size", "warmup", "decay", "loss_mean")
    settings = TrainingSettings(
        **{name: recipe[name] for name in names}, merge_start=True, save_at=(STEPS,), seeds=SEEDS, check_answers=False
    )
    return TrainingPlan(settings, (Arm("plain", work / "{seed}" / "plain.jsonl", (STEPS,)),), ALIGNED)


def held(work: Path) -> dict[str, Any]:
    """Neurons and direction of `aligned`, and random ones for each seed."""
    path = work / "held.npz"
    if not path.is_file():
        model = load_model(BASE, adapter=str(ALIGNED))
        harmful = load_prompts("harmful")
        neurons = find_safety_neurons(model, refusal_forcing_pairs(model, harmful), n_resamples=20)
        direction = refusal_direction(
            model, harmful, load_prompts("harmless"), shares=(0.7, 0.1, 0.2), n_controls=19, seed=0
        )
        print(neurons.caption(), direction.caption(), sep="\n", flush=True)
        random = np.random.default_rng(0).normal(size=(len(SEEDS), model.d_model))
        controls = matched_controls(neurons, len(SEEDS))
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, neurons=neurons.rows, controls=controls, direction=direction.vector, random=random)
    return dict(np.load(path))


def options_of(what: str | None, weight: float, of: dict[str, Any], place: int) -> dict[str, Any]:
    """Arguments of `finetune` for one condition and the seed at this place."""
    if what is None:
        return {}
    if what.endswith("direction"):
        vector = of["direction"] if what == "direction" else of["random"][place]
        return {"direction": vector, "penalize_direction": weight}
    return {"freeze_neurons": of["neurons"] if what == "neurons" else of["controls"][place], "penalize_shift": weight}


def main() -> None:
    """Train what is missing, measure all, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--only", nargs="+", default=list(CONDITIONS), choices=list(CONDITIONS), metavar="CONDITION")
    parser.add_argument("--n", type=int, default=64, help="harmful requests")
    args = parser.parse_args()
    of, start = held(args.work), load_model(BASE)
    plan, series = plan_of(args.data, args.work, start.tokenizer), []
    del start
    for name in args.only:
        for place, seed in enumerate(SEEDS):
            one = replace(plan, settings=replace(plan.settings, seeds=(seed,)))
            folder = args.work / name.replace(" ", "-") / str(seed)
            done = finetune(BASE, one, folder, **options_of(*CONDITIONS[name], of, place))
            print(name, seed, done.minutes, flush=True)
            series.append(f"{name}={folder}")
    checkpoints = joined(series)
    model = checkpoints.open()
    behavior = series_behavior(model, checkpoints, drawn(args.data / "harmful_test.jsonl", args.n))
    maths = series_maths(model, checkpoints, short(args.data / "gsm8k_test.jsonl", model), generated=False)
    columns = ["checkpoint", "n", "refused", "rate", "low", "high"]
    print(behavior.table[columns].round(3).to_string(index=False), flush=True)
    print(markdown(compare_arms(behavior, maths)))


if __name__ == "__main__":
    main()
