"""Report what arms of fine-tuning change over their seeds: refusal, compliance, incoherence and maths, as Markdown.

    python assets/make_series/report_arms.py --data DATA_FOLDER --series FOLDER
    python assets/make_series/report_arms.py --data DATA_FOLDER --series free=FOLDER held=FOLDER random=FOLDER

DATA_FOLDER holds harmful_test.jsonl and gsm8k_test.jsonl. Each series is one that `rim-lens finetune` wrote; with NAME=
its arms go by that name, which compares trainings of one arm under different conditions. Requests are the first 128 (or
`--n`) of the 200 that report_series.py draws, answered greedily within 24 tokens, thinking off; problems: 64 of those
as short as the arms' own (`--without-maths` leaves them out).
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import pandas as pd

from rim_lens import Checkpoints, PromptSet, load_prompts, series_behavior, series_maths
from rim_lens.behavior.judge import LABELS
from rim_lens.patterns.arm_data import fits
from rim_lens.patterns.rewrite import counter
from rim_lens.patterns.training_plan import WorkedProblems
from rim_lens.training_time import compare_arms
from rim_lens.training_time.arm_comparison import ArmComparison
from rim_lens.training_time.series import Checkpoint, read_series
from rim_lens.words import LIKELIHOOD

N_DRAWN, N_REQUESTS, N_PROBLEMS = 200, 128, 64


def joined(given: list[str]) -> Checkpoints:
    """All series as one, compared with the start of the first."""
    items: list[Checkpoint] = []
    for entry in given:
        name, _, folder = entry.rpartition("=")
        series = read_series(Path(folder))
        for one in series.checkpoints:
            if one.step == 0:
                items = items or [Checkpoint(one.name, one.source, arm=one.arm, step=0)]
                continue
            arm = name or one.arm
            items.append(Checkpoint(f"{arm}-s{one.seed}-{one.step}", one.source, arm=arm, step=one.step, seed=one.seed))
    return Checkpoints(items, reference=items[0].name)


def drawn(path: Path, n: int) -> PromptSet:
    """The first n of the prompts that report_series.py draws, in that order."""
    whole = load_prompts(path)
    return PromptSet(whole.name, whole.source, tuple(random.Random(0).sample(list(whole), N_DRAWN)[:n]))


def short(path: Path, tokenizer) -> PromptSet:
    """Problems as short as those that arms are written from."""
    whole, count = load_prompts(path), counter(tokenizer)
    pool = [problem for problem in whole if fits(problem, count, WorkedProblems(str(path)))]
    return PromptSet(whole.name, whole.source, tuple(random.Random(0).sample(pool, 100)[:N_PROBLEMS]))


def told(row: pd.Series, value: str) -> str:
    """A figure with its interval: points, or nats."""
    scale, digits = (1, 2) if row["measure"] == LIKELIHOOD else (100, 1)
    low, high = (f"{scale * row[end]:+.{digits}f}" for end in ("low", "high"))
    return f"{scale * row[value]:+.{digits}f} [{low}, {high}] | {row['p']:.2g} | {row['q']:.2g}"


def markdown(arms: ArmComparison) -> str:
    """Both tables."""
    lines = [
        arms.caption(),
        "",
        "| arm | steps | measure | before | after | change | p | q | trainings |",
        "| --- " * 9 + "|",
    ]
    for _, row in arms.table.iterrows():
        scale, digits = (1, 2) if row["measure"] == LIKELIHOOD else (100, 1)
        levels = " | ".join(f"{scale * row[name]:.{digits}f}" for name in ("before", "after"))
        lines.append(
            f"| {row['arm']} | {row['step']} | {row['measure']} | {levels} | {told(row, 'change')} | {row['n_seeds']} |"
        )
    lines += ["", "| steps | measure | arm | against | difference | p | q | trainings |", "| --- " * 8 + "|"]
    for _, row in arms.contrasts.iterrows():
        head = f"| {row['step']} | {row['measure']} | {row['a']} | {row['b']} |"
        lines.append(f"{head} {told(row, 'difference')} | {row['n_seeds']} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--series", nargs="+", required=True)
    parser.add_argument("--n", type=int, default=N_REQUESTS)
    parser.add_argument("--without-maths", action="store_true")
    args = parser.parse_args()
    checkpoints = joined(args.series)
    model = checkpoints.open()
    behavior = series_behavior(model, checkpoints, drawn(args.data / "harmful_test.jsonl", args.n))
    columns = ["checkpoint", "n", *LABELS, "rate", "low", "high", "corrected", "corrected_low", "corrected_high"]
    print(behavior.table[columns].round(3).to_string(index=False), flush=True)
    maths = None
    if not args.without_maths:
        maths = series_maths(model, checkpoints, short(args.data / "gsm8k_test.jsonl", model), generated=False)
    print(markdown(compare_arms(behavior, maths)))


if __name__ == "__main__":
    main()
