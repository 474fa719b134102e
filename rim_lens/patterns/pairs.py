"""make_cot_pairs: a data set of target and control CoTs, and how far the two sides differ besides the pattern.

Pairs outside the limits are dropped, and counted by reason; the others come with a divergence report (`divergence`).
"""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from rim_lens.errors import RimLensError
from rim_lens.model.lens_model import LensModel
from rim_lens.patterns.annotation import annotate_reasoning
from rim_lens.patterns.divergence import SIDES, add_side, divergence, overlap
from rim_lens.patterns.drafts import LENGTH_LIMIT, Writer
from rim_lens.patterns.labels import Annotator
from rim_lens.patterns.rewrite import CotPair, counter, drafts_of, fault_of, pair_of, problem_with, task_of
from rim_lens.patterns.taxonomy import NAMES, NONE, checked_patterns
from rim_lens.patterns.template_writer import TemplateWriter
from rim_lens.results import Manifest, Result


@dataclass(frozen=True, eq=False)
class CotPairs(Result):
    """Pairs of target and control CoTs.

    `table` is the divergence report: per measure the mean of both sides and their paired difference with its 95 %
    interval. `pairs`: one row per pair, with both texts. `dropped`: reason and count of what was left out of the
    `n_given` problems.
    """

    table: pd.DataFrame
    pairs: pd.DataFrame
    dropped: pd.DataFrame
    n_given: int
    writer: str
    annotator: str
    patterns: tuple[str, ...]

    def caption(self) -> str:
        """How many pairs, of how many problems, by whom."""
        return (
            f"{len(self.pairs)} pairs of {self.n_given} problems by {self.writer}; patterns "
            f"{', '.join(self.patterns)}; pattern sentences by {self.annotator}; means over pairs with 95 % "
            "bootstrap intervals of the difference"
        )

    def write_rows(self, path: str | Path, side: Literal["target", "control"]) -> Path:
        """One side as a training file for `rim-lens finetune`: request, cot, response, one JSON line per pair."""
        if side not in SIDES:
            raise RimLensError(f"{side!r} is not a side of a pair; use target or control.")
        rows = [
            {"request": row.problem, "cot": getattr(row, side), "response": stated(row.answer)}
            for row in self.pairs.itertuples()
        ]
        path = Path(path)
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        return path


def make_cot_pairs(
    rows: Sequence[Mapping[str, Any]],
    *,
    tokenizer: Any,
    patterns: Sequence[str] = NAMES,
    writer: Writer | None = None,
    annotator: Annotator | None = None,
    base: LensModel | None = None,
    limit: float = LENGTH_LIMIT,
    seed: int = 0,
) -> CotPairs:
    """Rewrite every row's CoT and report how the sides differ.

    Args:
        rows: mappings with `problem` (or `request`, `question`), `cot` and `answer`.
        tokenizer: a tokenizer, or a LensModel, whose tokens count.
        patterns: patterns that targets shall have.
        writer: `TemplateWriter()` by default.
        annotator: `TextAnnotator()` by default; a control that it finds a pattern in is dropped.
        base: a model for the perplexity; left out without one.
        limit: largest difference of lengths, as a share of the control's.
        seed: of the bootstraps.

    Raises:
        RimLensError: no row, rows without a problem, or no pair within the limits.

    """
    patterns, writer, count = checked_patterns(patterns), writer or TemplateWriter(), counter(tokenizer)
    tasks = [task_of(problem_of(row), row.get("cot"), row.get("answer"), patterns) for row in rows]
    if not tasks:
        raise RimLensError("make_cot_pairs was given no rows; give problems with cot and answer.")
    reasons: Counter[str] = Counter()
    possible = []
    for task in tasks:
        wrong = problem_with(task)
        reasons.update([kind_of(wrong)] if wrong else [])
        possible += [] if wrong else [task]
    if not possible:
        raise RimLensError(
            f"None of the {len(tasks)} rows can be rewritten ({counts_in_words(reasons)}); check their cot and answer."
        )
    drafts = drafts_of(writer, possible, count)
    pairs, name = within_limits(
        [pair_of(t, d, count) for t, d in zip(possible, drafts, strict=True)], limit, annotator, reasons
    )
    if not pairs:
        raise RimLensError(
            f"{writer.name} wrote no pair within the limits ({counts_in_words(reasons)}); try another writer."
        )
    frame = pd.DataFrame([asdict(pair) for pair in pairs])
    frame["overlap"] = [overlap(pair.target, pair.control) for pair in pairs]
    for side in SIDES:
        add_side(frame, side, annotator, base)
    return CotPairs(
        manifest=Manifest.collect(base, seed=seed, writer=writer.name, patterns=list(patterns), limit=limit),
        table=divergence(frame, seed),
        pairs=frame,
        dropped=pd.DataFrame(list(reasons.items()), columns=["reason", "count"]),
        n_given=len(tasks),
        writer=writer.name,
        annotator=name,
        patterns=patterns,
    )


def within_limits(
    pairs: Sequence[CotPair], limit: float, annotator: Annotator | None, reasons: Counter[str]
) -> tuple[list[CotPair], str]:
    """The pairs that keep the limits, and the annotator's name; the others are counted in `reasons`."""
    sound = []
    for pair in pairs:
        wrong = fault_of(pair, limit)
        reasons.update([kind_of(wrong)] if wrong else [])
        sound += [] if wrong else [pair]
    if not sound:
        return [], ""
    controls = annotate_reasoning(
        [pair.control for pair in sound], annotator, problems=[pair.problem for pair in sound]
    )
    frame = controls.sentences
    patterned = set(frame.loc[frame["label"] != NONE, "cot"])
    reasons.update(["the control has a pattern"] * len(patterned))
    return [pair for i, pair in enumerate(sound) if i not in patterned], controls.annotator


def problem_of(row: Mapping[str, Any]) -> str:
    """A row's request."""
    for name in ("problem", "request", "question"):
        if isinstance(row.get(name), str) and row[name].strip():
            return row[name]
    raise RimLensError(
        f"A row has no problem, request or question (its fields: {', '.join(row)}); name one of them so."
    )


def stated(answer: str) -> str:
    """A number as a sentence, another answer as it is."""
    return f"The answer is {answer}." if re.fullmatch(r"[-$\d.,/%]+", answer) else answer


def kind_of(reason: str) -> str:
    """The reason without its particulars, so that equal kinds are counted together."""
    return re.split(r":|;| '", reason)[0]


def counts_in_words(reasons: Counter[str]) -> str:
    """Reasons with counts, in words."""
    return ", ".join(f"{count} × {reason}" for reason, count in reasons.most_common())
