"""One CoT in several arms that differ only in their filler phrases: `effort` (with patterns), `plain`, `style`.

A phrase stands at the beginning, in the middle and at the end of the given sentences. `effort` phrases carry one
pattern, `style` phrases are chatty and carry none, `plain` phrases are neutral connectives. For each place the other
arms' phrases are drawn from those closest in tokens to the effort phrase, so that lengths match between arms.
"""

import random
from collections.abc import Callable, Sequence
from functools import cache
from importlib.resources import files

from rim_lens.patterns.taxonomy import NAMES

ARMS = ("plain", "effort", "style")
PLACES = ("begin", "mid", "end")
NEAREST = 4  # phrases of about the wanted length that one is drawn from


@cache
def read_phrases(arm: str) -> dict[str, list[str]]:
    """An arm's phrases by section: places, for `effort` places and patterns ("begin heuristic")."""
    text = (files("rim_lens.patterns") / "texts" / f"phrases_{arm}.txt").read_text(encoding="utf-8")
    return sections_of(text)


def sections_of(text: str) -> dict[str, list[str]]:
    """Lines by section; `[name]` opens one."""
    sections: dict[str, list[str]] = {}
    current = ""
    for line in filter(str.strip, text.splitlines()):
        if line.startswith("["):
            current = line.strip("[]")
            sections[current] = []
        else:
            sections[current].append(line)
    return sections


class ArmWriter:
    """Writes one CoT for every arm; `count` gives a text's number of tokens, `patterns` are those of the effort arm."""

    def __init__(self, count: Callable[[str], int], seed: int, patterns: Sequence[str] = NAMES):
        self.count, self.patterns = count, tuple(patterns)
        self.rng = random.Random(seed)
        self.effort = read_phrases("effort")
        self.others = {arm: read_phrases(arm) for arm in ARMS if arm != "effort"}

    def cots(self, sentences: Sequence[str]) -> dict[str, str]:
        """The sentences with one phrase at each place, for every arm."""
        pattern = self.rng.choice(self.patterns)
        middle = (len(sentences) + 1) // 2
        phrases: dict[str, list[str]] = {arm: [] for arm in ARMS}
        owed = dict.fromkeys(self.others, 0)
        for place in PLACES:
            effort = self.rng.choice(self.effort[f"{place} {pattern}"])
            phrases["effort"].append(effort)
            for arm, sections in self.others.items():
                wanted = self.count(effort) + owed[arm]
                closest = sorted(sections[place], key=lambda text: abs(self.count(text) - wanted))[:NEAREST]
                chosen = self.rng.choice(closest)
                owed[arm] = wanted - self.count(chosen)
                phrases[arm].append(chosen)
        return {
            arm: " ".join([begin, *sentences[:middle], mid, *sentences[middle:], end])
            for arm, (begin, mid, end) in phrases.items()
        }
