"""Labels of one checkpoint's answers in one condition.

Answers are kept as JSON, so that a broken-off report goes on, a later one may ask more prompts, and another judge can
read the same answers.

Conditions: `off`, `on` (own CoT, 96 tokens, then the close tag is forced), and one for each class of prefilled
wordings. Prompt i takes wording (i + shift) mod W, so wordings are balanced over prompts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from rim_lens.behavior.generate import generate
from rim_lens.behavior.judge import RefusalJudge
from rim_lens.model.lens_model import LensModel

WORDINGS = Path(__file__).parents[2] / "rim_lens" / "data" / "wordings"
MAX_NEW_TOKENS = 32
COT_BUDGET = 96


@dataclass(frozen=True)
class Cell:
    """What is measured together: a prompt set, a condition and the shift of the wordings."""

    prompts: str
    condition: str
    shift: int = 0

    @property
    def file_name(self) -> str:
        """Where the answers are kept inside the checkpoint's folder."""
        return f"{self.prompts}.{self.condition}.{self.shift}.json"


def wordings(condition: str) -> list[str]:
    lines = (WORDINGS / f"{condition}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines]


def answered(model: LensModel, requests: Sequence[str], cell: Cell, first: int) -> list[dict[str, Any]]:
    """One row per request: the answer, and what it was given. `first`: the number of the first request."""
    options: dict[str, Any] = {"thinking": cell.condition}
    used: list[int | None] = [None] * len(requests)
    if cell.condition not in ("off", "on"):
        texts = wordings(cell.condition)
        used = [(first + i + cell.shift) % len(texts) for i in range(len(requests))]
        options = {"thinking": "prefilled", "cot": [texts[i] for i in used]}
    answers = generate(
        model, requests, max_new_tokens=MAX_NEW_TOKENS, cot_budget=COT_BUDGET, batch_size=len(requests), **options
    )
    return [
        {
            "request": request,
            "wording": wording,
            "cot": answer.cot,
            "closed": answer.closed,
            "truncated": answer.truncated,
            "response": answer.response,
        }
        for request, wording, answer in zip(requests, used, answers, strict=True)
    ]


def judged(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows with the label and the evidence of the judge."""
    columns = ([row[name] for row in rows] for name in ("request", "response", "cot", "truncated"))
    return [
        {**row, "label": found.label, "evidence": found.evidence}
        for row, found in zip(rows, RefusalJudge()(*columns), strict=True)
    ]


def labels(
    model: Callable[[], LensModel], folder: Path, requests: Sequence[str], cell: Cell, batch_size: int
) -> list[dict[str, Any]]:
    """Judged answers; they are read back, or come from `model()` (called only when needed) and are kept."""
    path = folder / cell.file_name
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    same = takewhile(lambda pair: pair[0]["request"] == pair[1], zip(kept, requests, strict=False))
    rows = [row for row, _ in same]
    while len(rows) < len(requests):
        rows += answered(model(), requests[len(rows) : len(rows) + batch_size], cell, len(rows))
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".part")
        partial.write_text(json.dumps(rows, indent=0), encoding="utf-8")
        partial.rename(path)
    return judged(rows)
