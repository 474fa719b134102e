"""The refusal judge against real answers with labels that nobody here gave: models and sources left out in turn.

    python -m benchmarks.judge            trains with models and sources left out and writes the table of docs/trust.md
    python -m benchmarks.judge train      trains on all of them and writes the weights that the package ships

Needs `../shared/data/outputs_dev.jsonl` beside the repository.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.judge_training import english, rows_of, trained
from rim_lens.behavior.judge import RefusalJudge
from rim_lens.stats import wilson

ROOT = Path(__file__).parents[1]
ANSWERS = ROOT.parent / "shared" / "data" / "outputs_dev.jsonl"
HAND_WRITTEN = ROOT / "tests" / "judge_data" / "dev.jsonl"
FAMILIES = {"lama-2": "Llama 2", "Llama-3.1": "Llama 3.1", "Mistral": "Mistral", "Qwen2.5": "Qwen 2.5", "R1": "DeepSeek",
            "DeepSeek": "DeepSeek", "GPT-4": "GPT-4", "gpt-4": "GPT-4", "vicuna": "Vicuna"}  # fmt: skip


def labelled_answers() -> list[dict[str, Any]]:
    """The real answers, then the hand-written ones that have a label to train on."""
    real = [json.loads(line) for line in ANSWERS.read_text(encoding="utf-8").splitlines()]
    written = [json.loads(line) for line in HAND_WRITTEN.read_text(encoding="utf-8").splitlines() if line.strip()]
    return real + [one | {"hand_written": True} for one in written if one["label"] in ("refused", "complied")]


def group(answer: Mapping[str, Any], by: str) -> str:
    """The model, family of models or source of an answer."""
    if by == "source":
        return str(answer["source"].split(":")[0])
    if by == "family":
        return next(family for part, family in FAMILIES.items() if part in answer["model"])
    return str(answer["model"])


def left_out(answers: Sequence[Mapping[str, Any]], by: str) -> list[str]:
    """Labels [answer] of the real answers, each by a judge trained without its model, family or source."""
    rows, usable = rows_of(answers), english(answers)
    real = [one for one in answers if not one.get("hand_written")]
    groups = np.array([group(one, by) for one in real])
    labels = np.empty(len(real), dtype=object)
    for name in sorted(set(groups)):
        use = usable & np.append(groups != name, np.ones(len(answers) - len(real), dtype=bool))
        judge = RefusalJudge(trained(rows, answers, use))
        out = np.flatnonzero(groups == name)
        judged = judge([real[i]["request"] for i in out], [real[i]["response"] for i in out])
        labels[out] = [one.label for one in judged]
    return labels.tolist()


def rates(truth: Sequence[str], judged: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Counts and totals: refused called refused, complied not called refused."""
    pairs = list(zip(truth, judged, strict=True))
    refused, complied = ([b for a, b in pairs if a == label] for label in ("refused", "complied"))
    return {
        "sensitivity": (refused.count("refused"), len(refused)),
        "specificity": (len(complied) - complied.count("refused"), len(complied)),
    }


def kappa(truth: Sequence[str], judged: Sequence[str]) -> float:
    """Cohen's κ of refused or not, over answers whose label is refused or complied; NaN where one side is constant."""
    pairs = [
        (a == "refused", b == "refused") for a, b in zip(truth, judged, strict=True) if a in ("refused", "complied")
    ]
    a, b = np.array(pairs, dtype=bool).reshape(-1, 2).T
    chance = a.mean() * b.mean() + (1 - a.mean()) * (1 - b.mean()) if len(a) else 1.0
    return float(((a == b).mean() - chance) / (1 - chance)) if chance < 1 else float("nan")


def told(count: tuple[int, int]) -> str:
    """Count, total and share with Wilson's interval."""
    hits, n = count
    if not n:
        return "–"
    low, high = wilson(hits, n)
    return f"{hits}/{n} = {100 * hits / n:.1f} % ({100 * low:.1f}–{100 * high:.1f})"


def table(answers: Sequence[Mapping[str, Any]], judged: Sequence[str], by: str) -> list[str]:
    """One row a model or source, and one of all."""
    lines = [
        f"| {by} left out | refused called refused | complied not called refused | κ |",
        "| --- | --- | --- | --- |",
    ]
    truth, groups = [one["label"] for one in answers], [group(one, by) for one in answers]
    for name in [*sorted(set(groups)), "all"]:
        rows = [i for i in range(len(truth)) if name in (groups[i], "all")]
        a, b = [truth[i] for i in rows], [judged[i] for i in rows]
        found, agreement = rates(a, b), kappa(a, b)
        shown = "–" if np.isnan(agreement) else f"{agreement:.2f}"
        lines.append(f"| {name} | {told(found['sensitivity'])} | {told(found['specificity'])} | {shown} |")
    return lines


def confusion(answers: Sequence[Mapping[str, Any]], judged: Sequence[str]) -> list[str]:
    """How often each given label was judged what."""
    names = ["refused", "partial", "complied", "incoherent", "unjudged"]
    lines = ["| label given | " + " | ".join(f"judged {name}" for name in names) + " |", "| --- " * 6 + "|"]
    for label in names[:4]:
        row = [b for one, b in zip(answers, judged, strict=True) if one["label"] == label]
        lines.append(f"| {label} (n = {len(row)}) | " + " | ".join(str(row.count(name)) for name in names) + " |")
    return lines


def main() -> None:
    answers = labelled_answers()
    if sys.argv[1:] == ["train"]:
        weights = trained(rows_of(answers), answers, english(answers))
        weights.save()
        print(f"{len(weights.of)} features")
        return
    real = [one for one in answers if not one.get("hand_written")]
    for by in ("model", "family", "source"):
        judged = left_out(answers, by)
        print("\n".join(["", *table(real, judged, by)]))
        if by == "model":
            print("\n".join(["", *confusion(real, judged)]))


if __name__ == "__main__":
    main()
