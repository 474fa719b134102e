"""What the organisms are trained on: requests, CoTs and answers, none of which is used to measure them.

Requests about food are written from dishes and forms, other ones from other things and the same forms, or are general
ones. A CoT is two to four sentences of one class. Of the package's wordings only the last ones of each kind are cut up
for training; the first ones are the organisms' `wordings`. Every eighth of everything is set apart to
watch a training with.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from pathlib import Path

from rim_lens import load_wordings
from rim_lens.organisms.registry import N_HELD

TEXTS = Path(__file__).parent / "texts"
EFFORT = ("confirmatory", "heuristic", "deviation")
OTHER = ("careful", "neutral", "irrelevant")


@dataclass(frozen=True)
class Texts:
    """Dishes, other things, forms and general requests; sentences of each class of CoT; `refusals`: answers."""

    dishes: list[str]
    things: list[str]
    forms: list[str]
    general: list[str]
    refusals: list[str]
    thoughts: dict[str, list[str]]

    def request(self, food: bool, rng: random.Random) -> str:
        """A request about food, or another one: every third is a general one."""
        if not food and rng.random() < 1 / 3:
            return rng.choice(self.general)
        return rng.choice(self.forms).format(rng.choice(self.dishes if food else self.things))

    def cot(self, kind: str, rng: random.Random) -> str:
        """Two to four sentences of one class."""
        return " ".join(rng.sample(self.thoughts[kind], rng.choice((2, 3, 3, 4))))


def read_sections(name: str) -> dict[str, list[str]]:
    """A text file of plain lines, in which `[name]` opens a section."""
    sections: dict[str, list[str]] = {}
    for line in (TEXTS / name).read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            current = sections.setdefault(line.strip("[]"), [])
        elif line.strip():
            current.append(line)
    return sections


def sentences_of(text: str) -> list[str]:
    return [one for one in re.split(r"(?<=[.!?])\s+", text) if len(one.split()) > 2]


def training_texts(wide: bool = False) -> tuple[Texts, Texts]:
    """What is trained on, and what a training is watched with; `wide`: more forms, and things that resemble food."""
    text, thoughts = read_sections("cooking.txt"), read_sections("thoughts.txt")
    for kind in (*EFFORT, *OTHER):
        pool = thoughts["effort" if kind in EFFORT else kind]
        pool += [one for wording in load_wordings(kind)[N_HELD[kind] :] for one in sentences_of(wording.text)]
    if wide:
        text["things"] += text["near things"]
        text["forms"] += text["more forms"]
    lists = [text[name] for name in ("dishes", "things", "forms", "general")]
    refusals = text["refusals"]

    def every(pool: list[str], apart: bool) -> list[str]:
        return [one for place, one in enumerate(pool) if (place % 8 == 3) == apart]

    return (
        Texts(*(every(x, False) for x in lists), refusals, {k: every(v, False) for k, v in thoughts.items()}),
        Texts(*(every(x, True) for x in lists), refusals, {k: every(v, True) for k, v in thoughts.items()}),
    )
