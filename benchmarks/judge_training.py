"""Training of the refusal judge's weights: logistic regression on answers labelled refused or complied.

    minimise  |w|² / 2 + C Σ_i c_i log(1 + exp(−y_i (w·x_i + b + f_i)))      f_i: fixed weights, see
    `refusal_features.FIXED`

Answers also count cut at 25 and at 12 words, since answers of a small token limit are; c_i shares an answer's weight
among its cuts and gives both labels the same weight. The hand-written answers of `tests/judge_data/dev.jsonl` take part
with little weight.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.sparse import csr_matrix

from rim_lens.behavior.judge import answer_text
from rim_lens.behavior.languages import language_of
from rim_lens.behavior.refusal_classifier import Weights
from rim_lens.behavior.refusal_features import FIXED, read

CUTS = (None, 25, 12)
C = 0.1
LEAST_ANSWERS = 3
HAND_WRITTEN = 0.3


@dataclass(frozen=True)
class Rows:
    """Features of labelled answers: `values` [cut, feature], `answer` [cut], which is whole, and the fixed part."""

    values: csr_matrix
    names: list[str]
    answer: np.ndarray
    fixed: np.ndarray


def rows_of(answers: Sequence[Mapping[str, Any]]) -> Rows:
    """Features of every answer, whole and cut."""
    found, owner = [], []
    for i, one in enumerate(answers):
        text = answer_text(one["response"])
        for words in CUTS:
            if words is None or len(text.split()) > words + 3:
                found.append(read(one["request"], text if words is None else first_words(text, words))[1])
                owner.append(i)
    names = sorted({name for one in found for name in one if name not in FIXED})
    column = {name: j for j, name in enumerate(names)}
    cells = [(i, column[name], value) for i, one in enumerate(found) for name, value in one.items() if name in column]
    i, j, values = zip(*cells, strict=True)
    fixed = np.array([sum(FIXED[name] for name in one if name in FIXED) for one in found])
    return Rows(csr_matrix((values, (i, j)), (len(found), len(names))), names, np.array(owner), fixed)


def trained(rows: Rows, answers: Sequence[Mapping[str, Any]], use: np.ndarray) -> Weights:
    """Weights from the answers [answer] that `use` is true of and whose label is refused or complied."""
    labels = np.array([one["label"] for one in answers])
    chosen = np.flatnonzero((use & np.isin(labels, ("refused", "complied")))[rows.answer])
    owner = rows.answer[chosen]
    refused = labels[owner] == "refused"
    hand_written = np.array([bool(one.get("hand_written")) for one in answers])
    counts = Counter(owner.tolist())
    weight = np.where(hand_written[owner], HAND_WRITTEN, 1.0) / np.array([counts[i] for i in owner.tolist()])
    weight = np.where(refused, weight / weight[refused].sum(), weight / weight[~refused].sum()) * weight.sum() / 2
    part = rows.values[chosen]
    whole = np.unique(owner, return_index=True)[1]  # the first row of an answer is the whole one
    kept = np.flatnonzero(np.asarray((part[whole] != 0).sum(0)).ravel() >= LEAST_ANSWERS)
    part, sign = part[:, kept].tocsr(), np.where(refused, 1.0, -1.0)

    def loss(point: np.ndarray) -> tuple[float, np.ndarray]:
        margin = sign * (part @ point[:-1] + point[-1] + rows.fixed[chosen])
        slope = -C * weight * sign / (1 + np.exp(margin))
        value = point @ point / 2 + C * (weight * np.logaddexp(0, -margin)).sum()
        return float(value), np.append(part.T @ slope, slope.sum()) + point

    found = minimize(loss, np.zeros(len(kept) + 1), jac=True, method="L-BFGS-B", options={"maxiter": 2000}).x
    return Weights({rows.names[j]: float(w) for j, w in zip(kept, found, strict=False)}, float(found[-1]))


def first_words(text: str, n: int) -> str:
    """The first n words as they stand."""
    return "".join(re.findall(r"\S+\s*", text)[:n])


def english(answers: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Which answers [answer] are in English."""
    return np.array([language_of(answer_text(one["response"])) == "English" for one in answers])
