"""Does an answer speak of what was asked? A linear score of what both have in common; below zero it is off topic.

    s = b + w · x      x: `shared`, weights trained by `python -m benchmarks.topic`

Common to both: pieces of words weighted by rarity, stems of the request that come back, and words near in meaning.
Only the first words of an answer count.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import Float
from safetensors.numpy import load_file, save_file

from rim_lens.behavior.word_vectors import UNKNOWN, WordVectors, grams, shipped_vectors

FILE = Path(__file__).with_name("topic_weights.safetensors")
FIRST = 35  # words at the beginning, which mostly name the subject
SHORT = 20  # words up to which an answer is short
OPEN = frozenset(  # words of requests whose answer may well choose its own
    [
        "name",
        "suggest",
        "recommend",
        "example",
        "examples",
        "story",
        "poem",
        "haiku",
        "song",
        "chorus",
        "joke",
        "quote",
        "game",
        "choose",
        "pick",
        "create",
        "generate",
        "compose",
        "design",
        "write",
        "come",
        "imagine",
        "translate",
        "solve",
        "calculate",
        "code",
        "function",
        "list",
        "tips",
        "ideas",
        "describe",
        "tell",
        "review",
    ]
)
READ = 60  # words of an answer that count at all
NAMES = (
    "pieces", "stems at the beginning", "stems by rarity", "any stem", "words of the request", "words of the answer",
    "content words of the answer", "mean direction", "nearest to the request", "nearest other word",
    "nearest to the answer", "open request", "short answer",
)  # fmt: skip


@dataclass(frozen=True)
class TopicWeights:
    """Weight of each of `NAMES`, and the constant."""

    of: Float[np.ndarray, " feature"]
    constant: float

    def score(self, found: Float[np.ndarray, " feature"]) -> float:
        """Below zero for an answer off topic."""
        return float(found @ self.of + self.constant)

    def save(self, path: Path = FILE) -> None:
        """Write both as float32."""
        save_file({"of": self.of.astype(np.float32), "constant": np.array([self.constant], dtype=np.float32)}, path)


@lru_cache(maxsize=1)
def shipped_topic_weights() -> TopicWeights:
    """The weights that come with the package."""
    arrays = load_file(FILE)
    return TopicWeights(arrays["of"].astype(float), float(arrays["constant"][0]))


def shared(asked: Sequence[str], said: Sequence[str], plain: frozenset[str]) -> Float[np.ndarray, " feature"] | None:
    """What request and answer have in common, in the order of `NAMES`; words in lower case.

    `plain`: words without content. None where either has no content word.
    """
    vectors, said = shipped_vectors(), said[:READ]
    content_asked = list(dict.fromkeys(word for word in asked if word not in plain and len(word) > 1))
    content_said = [word for word in said if word not in plain and len(word) > 1]
    if not content_asked or not content_said:
        return None
    rows = [vectors.row(word) for word in content_asked]
    rare = np.array([vectors.rarity(row) for row in rows])
    stems, early = ({word[:5] for word in part if word not in plain} for part in (said, said[:FIRST]))
    hit, first = (np.array([word[:5] in part for word in content_asked], dtype=float) for part in (stems, early))
    return np.array(
        [
            _pieces_in_common(vectors, asked, said),
            first.mean(),
            hit @ rare / rare.sum(),
            hit.max(),
            np.log1p(len(content_asked)),
            np.log1p(len(said)),
            np.log1p(len(content_said)),
            *_nearness(vectors, [row for row in rows if row is not None], content_said),
            float(not OPEN.isdisjoint(asked)),
            max(0.0, 1 - len(said) / SHORT),
        ]
    )


def _pieces_in_common(vectors: WordVectors, asked: Sequence[str], said: Sequence[str]) -> float:
    """Cosine of the pieces of both, each weighted by (1 + log count) · rarity."""
    one, other = (
        {
            gram: (1 + math.log(n)) * vectors.gram_rarity.get(gram, UNKNOWN)
            for gram, n in Counter(gram for word in words for gram in grams(word)).items()
        }
        for words in (asked, said)
    )
    norms = [math.sqrt(sum(value * value for value in part.values())) for part in (one, other)]
    return float(sum(value * other.get(gram, 0.0) for gram, value in one.items()) / (norms[0] * norms[1]))


def _nearness(vectors: WordVectors, asked: Sequence[int], content_said: Sequence[str]) -> tuple[float, ...]:
    """Cosine of the mean directions, then of each word's nearest word, weighted by rarity; zero where none is known."""
    said = [row for row in (vectors.row(word) for word in content_said) if row is not None]
    if not asked or not said:
        return (0.0, 0.0, 0.0, 0.0)
    rare_asked, rare_said = (np.array([vectors.rarity(row) for row in rows]) for rows in (asked, said))
    means = [rare @ vectors.vectors[rows] for rare, rows in ((rare_asked, asked), (rare_said, said))]
    near = vectors.vectors[asked] @ vectors.vectors[said].T
    others = np.where(near > 0.999, 0.0, near)
    return (
        float(means[0] @ means[1] / np.sqrt((means[0] @ means[0]) * (means[1] @ means[1]))),
        float(rare_asked @ near.max(1) / rare_asked.sum()),
        float(rare_asked @ others.max(1) / rare_asked.sum()),
        float(rare_said @ near.max(0) / rare_said.sum()),
    )
