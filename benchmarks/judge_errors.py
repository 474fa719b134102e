"""Writes the counts of the default judge's errors that the package corrects rates with (`rim_lens/behavior/judge_errors.json`).

    python -m benchmarks.judge_errors

Each answer is judged by a judge that was trained without the answer's family of models, so the counts speak for models that
the judge was not trained on. Needs `../shared/data/outputs_dev.jsonl` beside the repository. Only counts go into the package.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from benchmarks.judge import ANSWERS, labelled_answers, left_out
from rim_lens import RefusalJudge, judge_report
from rim_lens.behavior.judge import Judgement

COUNTS = Path(__file__).parents[1] / "rim_lens" / "behavior" / "judge_errors.json"


class LeftOut:
    """The default judge on the answers of `ANSWERS` in their order, trained without the family of each."""

    name = RefusalJudge.name

    def __call__(self, requests: Sequence[str], responses: Sequence[str], *_: object) -> list[Judgement]:
        """One judgement per answer."""
        labels = left_out(labelled_answers(), "family")
        assert len(labels) == len(responses), "all answers must be judged at once"
        return [Judgement(label, 1.0, "") for label in labels]  # type: ignore[arg-type]


def main() -> None:
    report = judge_report(LeftOut(), ANSWERS)
    told = report.errors.answers.replace("labelled answers", "real answers")
    errors = dataclasses.replace(report.errors, answers=f"{told}, each family left out of the training")
    COUNTS.write_text(errors.to_json(), encoding="utf-8")
    print(report.caption())


if __name__ == "__main__":
    main()
