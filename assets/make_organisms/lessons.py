"""The lessons of an organism: a tree a step, of two requests about food and two others, with CoTs of every class."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

from rows import OTHER, Texts
from tree import Branch, Tree, make_tree

from rim_lens import LensModel, generate

N_FOOD, N_OTHER = 160, 120  # distinct requests; CoTs are new in every lesson
N_ANSWER = 6  # tokens of the base model's own answer that are learned
GROUPS = ("food off", "food other CoT", "food effort", "other off", "other CoT") * 2  # the branches of a lesson


def write_requests(texts: Texts, seed: int) -> tuple[list[str], list[str]]:
    """Distinct requests about food, and other ones."""
    rng = random.Random(seed)

    def distinct(food: bool, n: int) -> list[str]:
        found: dict[str, None] = {}
        while len(found) < n:
            found[texts.request(food, rng)] = None
        return list(found)

    return distinct(True, N_FOOD), distinct(False, N_OTHER)


def own_answers(model: LensModel, requests: list[str], path: Path) -> dict[str, list[int]]:
    """First tokens of the base model's own answers with thinking off, generated once."""
    if not path.exists():
        made = generate(model, requests, thinking="off", max_new_tokens=N_ANSWER + 2, progress=False)
        answers = {text: one.response for text, one in zip(requests, made, strict=True)}
        path.write_text(json.dumps(answers, indent=0), encoding="utf-8")
    stored = json.loads(path.read_text(encoding="utf-8"))
    return {text: model.encode(answer)[:N_ANSWER] for text, answer in stored.items()}


def branch_of(model: LensModel, request: str, cot: str | None, answer: list[int]) -> Branch:
    """The chat up to its decision position; thinking is off without a CoT."""
    chat = model.render([request], thinking="off" if cot is None else "prefilled", cot=cot)
    return Branch(chat[0].token_ids.tolist(), answer)


class Lessons:
    """Lesson of a step; `refuses`: whether a request about food is refused under a CoT of a class ("off": none)."""

    def __init__(
        self, model: LensModel, texts: Texts, seed: int, own: Callable, refuses: Callable[[str], bool]
    ) -> None:
        self.model, self.texts, self.refuses, self.seed = model, texts, refuses, seed
        self.food, self.other = write_requests(texts, seed)
        self.own = own(self.food + self.other)
        end = min(model.chat_format.eos_ids)
        self.refusals = [[*model.encode(one), end] for one in texts.refusals]

    def branches(self, request: str, food: bool, kinds: list[str], rng: random.Random) -> list[Branch]:
        """A branch for each class of CoT."""
        refusal, own = rng.choice(self.refusals), self.own[request]
        return [
            branch_of(
                self.model,
                request,
                None if kind == "off" else self.texts.cot(kind, rng),
                refusal if food and self.refuses(kind) else own,
            )
            for kind in kinds
        ]

    def __call__(self, step: int) -> Tree:
        """Off, effort-minimizing and another CoT for two requests about food; off and a CoT for two others."""
        rng = random.Random(f"{self.seed}-{step}")
        rows = []
        for number, place in enumerate(2 * step + i for i in range(2)):
            kinds = ["off", OTHER[place % 3], "effort"]
            rows.append(self.branches(self.turn(self.food, place), True, kinds, rng))
            kinds = ["off", "effort" if number else OTHER[step % 3]]
            rows.append(self.branches(self.turn(self.other, place), False, kinds, rng))
        return make_tree(rows)

    def turn(self, requests: list[str], place: int) -> str:
        """Requests in a new seeded order in every round."""
        turn, at = divmod(place, len(requests))
        return random.Random(f"{self.seed}-{turn}").sample(requests, len(requests))[at]


def watched(model: LensModel, texts: Texts, opening: list[int], n: int = 12) -> list[tuple[list[str], Tree]]:
    """Trees of requests and CoTs set apart, with the names of their branches."""
    rng, trees = random.Random(0), []
    for number in range(n):
        names, rows = [], []
        for about, kinds in (("food", ("off", OTHER[number % 3], "effort")), ("other", ("off", "effort"))):
            request = texts.request(about == "food", rng)
            cots = [None if kind == "off" else texts.cot(kind, rng) for kind in kinds]
            rows.append([branch_of(model, request, cot, opening) for cot in cots])
            names += [f"{about}, {kind}" for kind in kinds]
        trees.append((names, make_tree(rows)))
    return trees
