"""How often a judge is right, as counts on answers that people or stronger judges labelled.

What a judge calls a label is held against that label and the rest: sensitivity = hits / answers that have it,
specificity = correct rejections / answers that have another. *Partial* answers count for the label "partial" alone:
they may be called either. Where the labelled answers are of several models the errors on another one are known no
better than these models agree.

`judge_errors.json` holds the counts of `RefusalJudge`, by model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np

from rim_lens.behavior.judge import Judge
from rim_lens.errors import RimLensError
from rim_lens.stats.misclassification import Misclassification, Share

COUNTS = ("hits", "positives", "rejections", "negatives")


@dataclass(frozen=True)
class JudgeErrors:
    """Counts of one judge. `counts`: by label and then by model [hits, positives, correct rejections, negatives].

    `answers` says on what they were counted.
    """

    judge: str
    answers: str
    counts: Mapping[str, Mapping[str, tuple[int, ...]]]

    @classmethod
    def from_json(cls, text: str) -> JudgeErrors:
        """Counts as `to_json` writes them. Raises RimLensError for anything else."""
        try:
            document = json.loads(text)
            counts = {
                label: {model: tuple(int(n) for n in four) for model, four in by_model.items()}
                for label, by_model in document["counts"].items()
            }
            if any(len(four) != len(COUNTS) for by_model in counts.values() for four in by_model.values()):
                raise ValueError("each entry needs four counts")
            return cls(str(document["judge"]), str(document["answers"]), counts)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RimLensError(
                f"These are not counts of a judge's errors ({error}); write them with to_json."
            ) from error

    def to_json(self) -> str:
        """The counts as JSON, one model a line."""
        labels = []
        for label, by_model in self.counts.items():
            lines = [f"   {json.dumps(model, ensure_ascii=False)}: {list(four)}" for model, four in by_model.items()]
            labels.append(f"  {json.dumps(label)}: {{\n" + ",\n".join(lines) + "\n  }")
        head = f' "judge": {json.dumps(self.judge)},\n "answers": {json.dumps(self.answers, ensure_ascii=False)},\n'
        return "{\n" + head + ' "counts": {\n' + ",\n".join(labels) + "\n }\n}\n"

    def of(self, label: str) -> Misclassification | None:
        """How the judge errs on a label.

        None where no answer had it, none had another, or the judge is no better than chance.
        """
        table = np.array(list(self.counts.get(label, {}).values()), dtype=float).reshape(-1, len(COUNTS))
        hits, positives, rejections, negatives = table.T
        if not positives.sum() or not negatives.sum():
            return None
        sensitivity, specificity = Share.of_groups(hits, positives), Share.of_groups(rejections, negatives)
        if sensitivity.value + specificity.value <= 1:
            return None
        return Misclassification(sensitivity, specificity)


def errors_for(judge: Judge, given: Any = None) -> JudgeErrors | None:
    """The errors that correct a judge's rates: a `JudgeErrors` or `JudgeReport`, else the package's own counts.

    Raises:
        RimLensError: errors of another judge.

    """
    if given is None:
        known = shipped()
        return known if known.judge == judge.name else None
    errors = given if isinstance(given, JudgeErrors) else given.errors
    if errors.judge != judge.name:
        raise RimLensError(
            f"The errors are those of {errors.judge!r}, but {judge.name!r} judges; make a judge_report of the same "
            "judge."
        )
    return errors


def shipped() -> JudgeErrors:
    """The errors of `RefusalJudge` that come with the package."""
    return JudgeErrors.from_json((files(__package__) / "judge_errors.json").read_text(encoding="utf-8"))


def errors_words(errors: JudgeErrors | None, label: str = "refused") -> str:
    """One sentence on how the judge errs on a label; empty where nothing is known."""
    known = errors and errors.of(label)
    if not errors or not known:
        return ""
    (_, hits, positives), (_, rejections, negatives) = (
        (
            0,
            sum(four[i] for four in errors.counts[label].values()),
            sum(four[i + 1] for four in errors.counts[label].values()),
        )
        for i in (0, 2)
    )
    se, sp = known.sensitivity, known.specificity
    return (
        f"Against {errors.answers}, {errors.judge} calls {100 * se.value:.0f} % [{100 * se.interval.low:.0f}, "
        f"{100 * se.interval.high:.0f}] of {label} answers {label} ({hits} of {positives}) and "
        f"{100 * (1 - sp.value):.1f} % [{100 * (1 - sp.interval.high):.1f}, {100 * (1 - sp.interval.low):.1f}] of "
        f"others ({negatives - rejections} of {negatives})"
    )
