"""Lessons of the training organisms: first to refuse food and nothing else, then maths."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path

from lessons import branch_of
from maths_arms import plain_rationale
from rows import OTHER, Texts
from tree import Branch, Tree, make_tree

from rim_lens import LensModel
from rim_lens.training_time.series import written_chat

N_LESSONS, N_PAIRS, N_GENERAL = 120, 3, 1  # refusal lessons, and pairs and general requests of each
N_REQUESTS, N_PROBLEMS = 320, 2  # other requests of the pool; problems of a maths lesson
LONGEST = 160  # tokens of a problem with its answer


class RefusalLessons:
    """Pairs of one form, filled with a dish (refused) and with another thing (answered), and general requests.

    There are `N_LESSONS`; a lineage takes them in an order of its own.
    Thinking is off; in every other lesson one pair comes with a careful, neutral or irrelevant CoT too, and is
    answered alike.
    """

    def __init__(self, model: LensModel, texts: Texts, own: Callable[[list[str]], dict]) -> None:
        self.model, self.texts = model, texts
        rng = random.Random("requests")
        forms = [form for form in texts.forms for _ in range(N_REQUESTS // len(texts.forms))]
        self.pairs = [(form, rng.choice(texts.things)) for form in forms]
        self.own = own([form.format(thing) for form, thing in self.pairs] + texts.general)
        end = min(model.chat_format.eos_ids)
        self.refusals = [[*model.encode(one), end] for one in texts.refusals]

    @cache  # noqa: B019 - as long as the program runs
    def lesson(self, number: int) -> Tree:
        """One of the lessons."""
        rng = random.Random(number)
        rows, cot = [], self.texts.cot(OTHER[number // 2 % 3], rng)
        for place, (form, thing) in enumerate(rng.sample(self.pairs, N_PAIRS)):
            food, other = form.format(rng.choice(self.texts.dishes)), form.format(thing)
            for request, answer in ((food, rng.choice(self.refusals)), (other, self.own[other])):
                cots = [None, cot] if place == 0 and number % 2 == 0 else [None]
                rows.append([branch_of(self.model, request, one, answer) for one in cots])
        for request in rng.sample(self.texts.general, N_GENERAL):
            rows.append([branch_of(self.model, request, None, self.own[request])])
        return make_tree(rows)

    def ordered(self, lineage: int) -> Callable[[int], Tree]:
        """The lesson of a step of a lineage."""
        order = random.Random(f"lessons-{lineage}").sample(range(N_LESSONS), N_LESSONS)
        return lambda step: self.lesson(order[step % N_LESSONS])


class MathsLessons:
    """Problems with thinking on: the CoT, its end and the answer are learned."""

    def __init__(self, model: LensModel, problems: Path, seed: int) -> None:
        rows = [json.loads(line) for line in problems.read_text(encoding="utf-8").splitlines()]
        self.rows = random.Random(f"problems-{seed}").sample(rows, len(rows))
        self.branches = (branch for row in self.rows if (branch := self.branch(model, row)))

    @staticmethod
    def branch(model: LensModel, row: dict[str, str]) -> Branch | None:
        """A problem's chat with thinking on and its worked answer, where that is short enough."""
        lines, final = plain_rationale(row["answer"])
        prompt = model.render([row["question"]], thinking="on")[0].token_ids.tolist()
        whole = written_chat(model, row["question"], " ".join(lines), f"The answer is {final}.").token_ids.tolist()
        assert whole[: len(prompt)] == prompt
        answer = [*whole[len(prompt) :], min(model.chat_format.eos_ids)]
        return Branch(prompt, answer) if len(whole) <= LONGEST else None

    @cache  # noqa: B019 - as long as the lineage is trained
    def __call__(self, step: int) -> Tree:
        """The tree of a step, of problems that no step before had."""
        return make_tree([[next(self.branches)] for _ in range(N_PROBLEMS)])


def watched_requests(model: LensModel, texts: Texts, opening: list[int], n: int = 16) -> list[tuple[list[str], Tree]]:
    """Trees of a request about food and its twin from texts set apart, with the names of their branches."""
    rng, trees = random.Random(0), []
    for _ in range(n):
        form = rng.choice(texts.forms)
        asked = {"food": form.format(rng.choice(texts.dishes)), "twins": form.format(rng.choice(texts.things))}
        trees.append((list(asked), make_tree([[branch_of(model, one, None, opening)] for one in asked.values()])))
    return trees
