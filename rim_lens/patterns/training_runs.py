"""The runs of a training plan: every arm with every seed, and the rows each learns from."""

import hashlib
import json
from dataclasses import asdict, dataclass

from rim_lens.chat.format import ChatFormat
from rim_lens.patterns.arm_data import written_arms
from rim_lens.patterns.training_plan import TrainingPlan
from rim_lens.patterns.training_rows import TrainingRow, read_training_rows, training_rows


@dataclass(frozen=True)
class Run:
    """One arm with one seed.

    `name` is the arm's where there is one seed only; `source` says where the rows are from.
    """

    name: str
    arm: str
    seed: int
    rows: tuple[TrainingRow, ...]
    save_at: tuple[int, ...]
    source: str

    @property
    def lines(self) -> str:
        """The rows as JSON Lines."""
        return "".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in self.rows)

    @property
    def sha256(self) -> str:
        """Over the rows."""
        return hashlib.sha256(self.lines.encode()).hexdigest()


def runs_of(plan: TrainingPlan, chat_format: ChatFormat) -> list[Run]:
    """Every run in order: all seeds of an arm, then the next arm.

    Raises:
        RimLensError: an unreadable data file, rows without CoT or with answers that disagree, too few worked problems.

    """
    settings = plan.settings
    check = settings.check_answers
    if plan.problems is not None:
        written = written_arms(plan.problems, chat_format.tokenizer, settings.seeds)
        options = [
            (
                arm,
                seed,
                training_rows(rows, plan.problems.source, check_answers=check),
                settings.save_at,
                plan.problems.source,
            )
            for (arm, seed), rows in written.items()
        ]
    else:
        options = [
            (arm.name, seed, read_training_rows(arm.file(seed), check_answers=check), arm.save_at, str(arm.file(seed)))
            for arm in plan.arms
            for seed in settings.seeds
        ]
    many = len(settings.seeds) > 1
    return [
        Run(f"{arm}-s{seed}" if many else arm, arm, seed, tuple(rows), save_at, source)
        for arm, seed, rows, save_at, source in options
    ]
