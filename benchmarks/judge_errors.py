"""Write the counts of the default judge's errors (`rim_lens/behavior/judge_errors.json`), which correct its rates.

    python -m benchmarks.judge_errors

Each model's answers are judged by a judge trained without that model (`benchmarks.judge`), so that the counts are those
on a model that the judge has not met. Needs `../shared/data/outputs_dev.jsonl` beside the repository. Only counts go
into the package.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from benchmarks.judge import left_out
from benchmarks.judge_data import labelled_answers
from rim_lens import RefusalJudge, judge_report
from rim_lens.behavior.judge import Judgement

COUNTS = Path(__file__).parents[1] / "rim_lens" / "behavior" / "judge_errors.json"


class LeftOut:
    """The default judge, trained without the model that it judges: labels worked out before."""

    name = RefusalJudge.name
    judges = RefusalJudge.judges

    def __init__(self, labels: Sequence[str]) -> None:
        self.labels = labels

    def __call__(self, *_asked: Sequence[str] | Sequence[bool] | None) -> list[Judgement]:
        """The labels, whatever is asked."""
        return [Judgement(label, 1.0, "") for label in self.labels]


def main() -> None:
    answers = labelled_answers()
    real = [one for one in answers if not one.get("hand_written")]
    report = judge_report(LeftOut(left_out(answers, "model")), real)
    sample = f"{len(real)} real answers of {report.answers['model'].nunique()} models, each left out of the training"
    errors = dataclasses.replace(report.errors, answers=sample)
    COUNTS.write_text(errors.to_json(), encoding="utf-8")
    print(report.table[report.table["by"] == "all"].to_string())
    print(report.confusion[report.confusion["by"] == "all"].to_string())


if __name__ == "__main__":
    main()
