"""The writer that needs no model: the CoT's own sentences with three phrases, patterned or not (see `arms`).

For every CoT, phrases are drawn until target and control have the same length within the limit; after `tries` draws the
closest pair is returned, and whoever asked drops it.
"""

import re
from collections.abc import Sequence
from typing import Literal

from rim_lens.patterns.arms import ArmWriter
from rim_lens.patterns.drafts import LENGTH_LIMIT, Count, Draft, RewriteTask

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")


class TemplateWriter:
    """Adds phrases to the CoT's sentences; `control` says which phrases have no pattern.

    `plain` or `style` (chatty).
    """

    def __init__(self, control: Literal["plain", "style"] = "plain", *, seed: int = 0, tries: int = 30) -> None:
        self.name, self.control, self.seed, self.tries = f"template writer ({control})", control, seed, tries

    def __call__(self, tasks: Sequence[RewriteTask], count: Count) -> list[Draft]:
        """One draft a task."""
        return [self.draft(number, task, count) for number, task in enumerate(tasks)]

    def draft(self, number: int, task: RewriteTask, count: Count) -> Draft:
        """The first of the draws whose lengths match, else the closest."""
        writer = ArmWriter(count, self.seed * 1_000_003 + number, task.patterns)
        sentences = [part.strip() for part in _SENTENCE_END.split(task.cot) if part.strip()]
        # The last sentence states the result, and a number in a phrase could be taken for it: none of the phrases has
        # one.
        drafts = []
        for _ in range(self.tries):
            arms = writer.cots(sentences)
            drafts.append(Draft(arms["effort"], arms[self.control]))
            if gap(drafts[-1], count) <= LENGTH_LIMIT:
                return drafts[-1]
        return min(drafts, key=lambda draft: gap(draft, count))


def gap(draft: Draft, count: Count) -> float:
    """Difference of the lengths as a share of the control's."""
    target, control = count(draft.target), count(draft.control)
    return abs(target - control) / max(control, 1)
