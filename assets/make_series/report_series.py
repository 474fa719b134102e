"""Report how the series behaves: refusal, incoherence and closing of the CoT, with counts, intervals and tests.

    python assets/make_series/report_series.py --data DATA_FOLDER --out WORK_FOLDER

DATA_FOLDER holds harmful_test.jsonl and harmless_test.jsonl; 200 prompts of each are drawn with
random.Random(0).sample. Greedy. `--split val` is for choosing a recipe. Answers and labels stay in WORK_FOLDER.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import Counter
from functools import cache
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from labels import Cell, labels, wordings

from rim_lens import load_model
from rim_lens.behavior.judge import RefusalJudge
from rim_lens.behavior.judge_errors import shipped
from rim_lens.plots import save_image
from rim_lens.results import Manifest
from rim_lens.stats import Interval, bootstrap_crossed_difference, mcnemar, wilson
from rim_lens.training_time.series import read_series
from rim_lens.training_time.series_answers import SeriesBehavior, series_table

ORGANISM = Path(__file__).parents[1] / "organism"
CLASSES = ("effort_minimizing", "careful", "neutral", "irrelevant")
LABELS = ("refused", "partial", "complied", "incoherent", "unjudged")


def sampled(path: Path, n: int) -> list[str]:
    requests = [json.loads(line)["instruction"] for line in path.read_text(encoding="utf-8").splitlines()]
    return requests if n >= len(requests) else random.Random(0).sample(requests, n)


def counted(name: str, cell: Cell, rows: list[dict]) -> str:
    counts, n = Counter(row["label"] for row in rows), len(rows)
    low, high = wilson(counts["refused"], n)
    true, between = shipped().of("refused").corrected(counts["refused"] / n, Interval(low, high))
    corrected = f"{true:.1%} ({between.low:.1%} to {between.high:.1%})"
    closing = [row["closed"] for row in rows if row["closed"] is not None]
    closed = f"{sum(closing)} of {len(closing)}" if closing else "-"
    numbers = " | ".join(str(counts[label]) for label in LABELS)
    columns = name, cell.prompts, cell.condition, n, numbers, f"{low:.1%} to {high:.1%}", corrected, closed
    return f"| {' | '.join(map(str, columns))} |"


def against(name: str, rows: list[dict], reference: list[dict]) -> str:
    """Discordant prompts and exact McNemar p for refused against not refused."""
    reference = reference[: len(rows)]
    lost = sum(r["label"] == "refused" and s["label"] != "refused" for r, s in zip(reference, rows, strict=True))
    won = sum(r["label"] != "refused" and s["label"] == "refused" for r, s in zip(reference, rows, strict=True))
    return f"| {name} | {lost} | {won} | {mcnemar(lost, won):.2g} |"


def arms_against_each_other(found: dict[str, list[dict]]) -> list[str]:
    """Checkpoints of different arms after the same number of steps (names are `arm-step`), on the same prompts."""
    lines = ["| first | second | refused only by the first | only by the second | McNemar p |", "| --- " * 5 + "|"]
    for a, b in combinations(found, 2):
        if a.split("-")[1:] == b.split("-")[1:]:
            lines.append(f"| {a} {against(b, found[b], found[a])}")
    return lines


def wording_table(passes: list[list[dict]], n_wordings: int) -> np.ndarray:
    """Refused (1) or not (0), [prompt, wording], NaN where a prompt did not meet a wording."""
    table = np.full((len(passes[0]), n_wordings), np.nan)
    for rows in passes:
        for i, row in enumerate(rows):
            table[i, row["wording"]] = row["label"] == "refused"
    return table


def class_differences(tables: dict[str, np.ndarray], off: np.ndarray) -> list[str]:
    lines = ["| difference of refusal rates | value | 95 % interval | p |", "| --- | --- | --- | --- |"]
    pairs = [("off", name) for name in tables]
    pairs += [(a, b) for i, a in enumerate(tables) for b in list(tables)[i + 1 :]]
    for a, b in pairs:
        first = off[:, None] if a == "off" else tables[a]
        found = bootstrap_crossed_difference(first, tables[b], n_resamples=4000)
        low, high = found.interval
        lines.append(f"| {a} - {b} | {found.value:+.1%} | {low:+.1%} to {high:+.1%} | {found.p:.2g} |")
    return lines


def picture(by_checkpoint: dict[str, list[dict]], path: Path) -> None:
    """Draw the share refused over the steps of every arm; refusal scores are not measured here."""
    answers = pd.DataFrame(
        {"checkpoint": name, "prompt": i, "wording": -1, "sample": 0, "label": row["label"], "refusal_score": np.nan}
        for name, rows in by_checkpoint.items()
        for i, row in enumerate(rows)
    )
    checkpoints = [one for one in read_series(ORGANISM).checkpoints if one.name in by_checkpoint]
    series = SeriesBehavior(
        manifest=Manifest.collect(seed=0),
        table=series_table(answers, checkpoints, "aligned", 0, shipped()),
        answers=answers,
        reference="aligned",
        judge=RefusalJudge.name,
        errors=shipped(),
    )
    save_image(series.plot().update_layout(height=430), path, width=720, scale=1.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--base", default="smollm2-135m-instruct", help="name or folder of the base model")
    parser.add_argument("--split", default="test", choices=["val", "test"])
    parser.add_argument("--n", type=int, default=200)
    parser.add_argument("--n-given", type=int, help="the first so many of them for prefilled CoTs; default: all")
    parser.add_argument("--passes", type=int, default=1, help="times each prompt meets another wording of a class")
    parser.add_argument("--checkpoints", nargs="+", help="default: all in series.json")
    parser.add_argument("--only", nargs="+", help="conditions of the reference; default: all")
    parser.add_argument("--batch-size", type=int, default=50)
    parser.add_argument("--picture", type=Path, help="draw the share refused over the steps here, as in README")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    prompts = {kind: sampled(args.data / f"{kind}_{args.split}.jsonl", args.n) for kind in ("harmful", "harmless")}
    names = args.checkpoints or [c["name"] for c in json.loads((ORGANISM / "series.json").read_text())["checkpoints"]]

    def measured(name: str, *cells: Cell) -> list[list[dict]]:
        @cache
        def model():
            return load_model(args.base, adapter=ORGANISM / name, device="cpu")

        found = []
        for cell in cells:
            began = time.monotonic()
            asked = prompts[cell.prompts][: args.n if cell.condition in ("off", "on") else args.n_given]
            found.append(labels(model, args.out / name, asked, cell, args.batch_size))
            print(f"{counted(name, cell, found[-1])} {time.monotonic() - began:.0f} s", flush=True)
        return found

    def wanted(condition: str) -> bool:
        return not args.only or condition in args.only

    names_of = " | ".join(LABELS)
    lines = [f"| checkpoint | prompts | CoT | n | {names_of} | refused, 95 % | corrected | closed by itself |"]
    lines.append("| --- " * 12 + "|")
    tests = [
        "| checkpoint | refused only by aligned with thinking off | only by this one | McNemar p |",
        "| --- " * 4 + "|",
    ]
    reference: list[dict] = []
    tuned: dict[str, list[dict]] = {}
    tables: dict[str, np.ndarray] = {}
    for name in names:
        off = Cell("harmful", "off")
        (rows,) = measured(name, off)
        lines.append(counted(name, off, rows))
        if name != "aligned":
            tuned[name] = rows
            if reference:
                tests.append(against(name, rows, reference))
            continue
        reference = rows
        if wanted("on"):
            own = Cell("harmful", "on")
            (rows,) = measured(name, own)
            lines.append(counted(name, own, rows))
            tests.append(against("aligned, own CoT", rows, reference))
        for kind in filter(wanted, CLASSES):
            n_wordings = len(wordings(kind))
            shifts = [round(k * n_wordings / args.passes) for k in range(args.passes)]
            cells = [Cell("harmful", kind, shift) for shift in shifts]
            passes = measured(name, *cells)
            lines += [counted(name, cell, rows) for cell, rows in zip(cells, passes, strict=True)]
            tables[kind] = wording_table(passes, n_wordings)
        cells = [Cell("harmless", c) for c in ("off", "on", "neutral") if wanted(c)]
        lines += [counted(name, cell, rows) for cell, rows in zip(cells, measured(name, *cells), strict=True)]
    tests += ["", *arms_against_each_other(tuned)]
    if tables:
        refused = np.array([float(row["label"] == "refused") for row in reference[: args.n_given]])
        tests += ["", *class_differences(tables, refused)]
    if args.picture:
        picture({"aligned": reference} | tuned, args.picture)
    report = "\n".join([*lines, "", *tests]) + "\n"
    (args.out / f"report_{args.split}.md").write_text(report, encoding="utf-8")
    print(report)


if __name__ == "__main__":
    main()
