"""Answers that are none against real ones: of another request, of another of the same source, echoes and loops.

    python -m benchmarks.topic            with models and sources left out: the table of docs/trust.md, which
                                          benchmarks.judge prints too
    python -m benchmarks.topic train      trains on all answers and writes the weights that the package ships

The answers are the English ones labelled complied in `../shared/data/outputs_dev.jsonl`. An answer is tried with its
own request, with `OTHERS` other requests of the file and as many of its source. No request of a test fold, asked or
answered, is in its training; the operating point is chosen inside the training folds.
"""

import random
import sys
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from scipy.optimize import minimize

from benchmarks.judge_data import group, labelled_answers, rate_in_words
from rim_lens.behavior.coherence import OFF_TOPIC_WORDS, STOP_WORDS, incoherence, off_topic, words
from rim_lens.behavior.judge import answer_text
from rim_lens.behavior.languages import language_of
from rim_lens.behavior.topic import NAMES, TopicWeights, shared

OTHERS = 2
FOLDS, INNER = 4, 5
FALSE_ALARMS = 0.012  # of real answers in the training folds; 98 % precision at 80 % found allows 0.016
STRENGTH = 100.0
KINDS = ("its own request", "another request", "another request of the source")


@dataclass(frozen=True)
class Pairs:
    """Answers with requests: `answer` and `request` [pair] are rows of `answers`, `kind` [pair] indexes `KINDS`."""

    answers: list[dict[str, Any]]
    answer: np.ndarray
    request: np.ndarray
    kind: np.ndarray
    values: Float[np.ndarray, "pair feature"]

    @property
    def by_hand(self) -> Bool[np.ndarray, " pair"]:
        """Whether the answer [pair] was written by hand."""
        return np.array([bool(one.get("hand_written")) for one in self.answers])[self.answer]

    def fold(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Fold [pair] of the request that was answered and of the one that it is paired with, by their texts."""
        folds = np.array([zlib.crc32(one["request"].encode()) % n for one in self.answers])
        return folds[self.answer], folds[self.request]


def pairs_of(answers: Sequence[dict[str, Any]]) -> Pairs:
    """Every answer with its own request and with others, drawn with a fixed seed."""
    draw, found = random.Random(0), list[tuple[int, int, int]]()
    by_source: dict[str, list[int]] = {}
    for i, one in enumerate(answers):
        by_source.setdefault(group(one, "source"), []).append(i)
    for i, one in enumerate(answers):
        found.append((i, i, 0))
        for kind, pool in ((1, range(len(answers))), (2, by_source[group(one, "source")])):
            others = [j for j in pool if answers[j]["request"] != one["request"]]
            found += [(i, j, kind) for j in draw.sample(others, min(OTHERS, len(others)))]
    answer, request, kind = np.array(found).T
    texts = [words(answer_text(one["response"])) for one in answers]
    asked = [words(one["request"]) for one in answers]
    rows = [shared(asked[j], texts[i], STOP_WORDS) for i, j, _ in found]
    kept = np.array([row is not None for row in rows])
    values = np.array([row for row in rows if row is not None])
    return Pairs(list(answers), answer[kept], request[kept], kind[kept], values)


def complied_answers() -> list[dict[str, Any]]:
    """The English answers that comply: real ones, and short ones written by hand, which only take part in training."""
    return [
        one | {"model": "hand-written", "source": "hand-written"} if one.get("hand_written") else one
        for one in labelled_answers()
        if one["label"] == "complied"
        and len(answer_text(one["response"]).split()) >= OFF_TOPIC_WORDS
        and {language_of(one["request"]), language_of(answer_text(one["response"]))} == {"English"}
    ]


def fitted(values: Float[np.ndarray, "pair feature"], real: Bool[np.ndarray, " pair"]) -> TopicWeights:
    """Logistic regression on standardized features, both classes of equal weight."""
    mean, scale = values.mean(0), values.std(0) + 1e-9
    part, sign = (values - mean) / scale, np.where(real, 1.0, -1.0)
    weight = np.where(real, 0.5 / real.sum(), 0.5 / (~real).sum())

    def loss(point: np.ndarray) -> tuple[float, np.ndarray]:
        margin = sign * (part @ point[:-1] + point[-1])
        slope = -STRENGTH * weight * sign / (1 + np.exp(margin))
        flat = np.append(point[:-1], 0.0)
        return float(flat @ flat / 2 + STRENGTH * (weight * np.logaddexp(0, -margin)).sum()), (
            np.append(part.T @ slope, slope.sum()) + flat
        )

    point = minimize(loss, np.zeros(values.shape[1] + 1), jac=True, method="L-BFGS-B").x
    return TopicWeights(point[:-1] / scale, float(point[-1] - point[:-1] @ (mean / scale)))


def trained(pairs: Pairs, use: Bool[np.ndarray, " pair"]) -> TopicWeights:
    """Weights from the pairs used, zero at the score below which `FALSE_ALARMS` of their real answers fall.

    The scores for that come from folds inside, each from weights of the others.
    """
    answered, asked = pairs.fold(INNER)
    real = pairs.kind == 0
    held = list[np.ndarray]()
    for fold in range(INNER):
        inside = use & (answered != fold) & (asked != fold)
        out = use & (answered == fold) & real & ~pairs.by_hand
        weights = fitted(pairs.values[inside], real[inside])
        held.append(pairs.values[out] @ weights.of + weights.constant)
    scores = np.sort(np.concatenate(held))
    weights = fitted(pairs.values[use], real[use])
    return TopicWeights(weights.of, weights.constant - scores[int(FALSE_ALARMS * len(scores))])


def left_out(pairs: Pairs, by: str) -> Bool[np.ndarray, " pair"]:
    """Which pairs are called off topic by weights of other models (or sources) and other requests."""
    groups = np.array([group(one, by) for one in pairs.answers])[pairs.answer]
    answered, asked = pairs.fold(FOLDS + INNER)  # not the inner folds
    answered, asked = answered % FOLDS, asked % FOLDS
    called = np.zeros(len(groups), dtype=bool)
    for name in sorted(set(groups[~pairs.by_hand])):
        for fold in range(FOLDS):
            weights = trained(pairs, (groups != name) & (answered != fold) & (asked != fold))
            for i in np.flatnonzero((groups == name) & (answered == fold)):
                one, other = pairs.answers[pairs.answer[i]], pairs.answers[pairs.request[i]]
                called[i] = off_topic(other["request"], words(answer_text(one["response"])), weights) is not None
    return called


def table(by: str, pairs: Pairs, called: Bool[np.ndarray, " pair"]) -> list[str]:
    """Found, and precision where as many answers are of the kind as are real."""
    alarms = called[(pairs.kind == 0) & ~pairs.by_hand]
    lines = [f"| {by} left out | found | precision at equal numbers |", "| --- | --- | --- |"]
    for kind in (1, 2):
        found = called[(pairs.kind == kind) & ~pairs.by_hand]
        precision = found.mean() / (found.mean() + alarms.mean())
        lines.append(f"| {KINDS[kind]} | {rate_in_words((int(found.sum()), len(found)))} | {100 * precision:.1f} % |")
    lines.append(f"| {KINDS[0]} (false alarms) | {rate_in_words((int(alarms.sum()), len(alarms)))} | |")
    return lines


def rules_table(answers: Sequence[dict[str, Any]]) -> list[str]:
    """Echoes and loops made of the same requests and answers, which rules find."""
    lines = ["| made from each answer | found |", "| --- | --- |"]
    answers = [one for one in answers if not one.get("hand_written")]
    texts = [answer_text(one["response"]) for one in answers]
    made = {
        "the request given back": [one["request"] for one in answers],
        "its first sentence, repeated to 60 words": [_repeated(text, 60) for text in texts],
        "its last five words, repeated from the middle on": [_stuck(text) for text in texts],
    }
    for name, responses in made.items():
        pairs = zip(answers, responses, strict=True)
        hits = sum(_reason(one["request"], text) in ("loop", "parrots the request") for one, text in pairs)
        lines.append(f"| {name} | {rate_in_words((hits, len(answers)))} |")
    alarms = sum(
        _reason(one["request"], text) in ("loop", "parrots the request")
        for one, text in zip(answers, texts, strict=True)
    )
    return [*lines, f"| nothing (false alarms) | {rate_in_words((alarms, len(answers)))} |"]


def _reason(request: str, response: str) -> str:
    found = incoherence(request, response)
    return found.reason if found else ""


def _repeated(text: str, n: int) -> str:
    unit = text.split(". ")[0].split()[:20]
    return " ".join((unit * n)[:n])


def _stuck(text: str) -> str:
    said = text.split()
    half = said[: max(5, len(said) // 2)]
    return " ".join(half + half[-5:] * max(4, len(half) // 4))


def report() -> list[str]:
    """The tables, as Markdown."""
    answers = complied_answers()
    pairs = pairs_of(answers)
    lines = list[str]()
    for by in ("model", "source"):
        lines += ["", *table(by, pairs, left_out(pairs, by))]
    return [*lines, "", *rules_table(answers)]


def main() -> None:
    if sys.argv[1:] == ["train"]:
        pairs = pairs_of(complied_answers())
        weights = trained(pairs, np.ones(len(pairs.kind), dtype=bool))
        weights.save()
        print(dict(zip(NAMES, weights.of.round(2).tolist(), strict=True)), round(weights.constant, 2))
        return
    print("\n".join(report()))


if __name__ == "__main__":
    main()
