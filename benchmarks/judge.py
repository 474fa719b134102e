"""The refusal judge against real answers with labels that nobody here gave: models and sources left out in turn.

    python -m benchmarks.judge            trains with models and sources left out and writes the table of docs/trust.md
    python -m benchmarks.judge train      trains on all of them and writes the weights that the package ships

Needs `../shared/data/outputs_dev.jsonl` beside the repository.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks import topic
from benchmarks.judge_data import group, labelled_answers, rate_in_words
from benchmarks.judge_training import english, rows_of, trained
from rim_lens.behavior.judge import RefusalJudge


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


def table(answers: Sequence[Mapping[str, Any]], judged: Sequence[str], by: str) -> list[str]:
    """One row per model or source, and one of all."""
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
        lines.append(
            f"| {name} | {rate_in_words(found['sensitivity'])} | {rate_in_words(found['specificity'])} | {shown} |"
        )
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
    print("\n".join(topic.report()))


if __name__ == "__main__":
    main()
