"""Vectors of common English words: how near two words are in meaning, and how rare a word or a piece of one is.

Made by `python -m benchmarks.word_vectors` from SmolLM2-135M-Instruct (Apache-2.0): the state after ten blocks at a
word that stands alone, centred, whitened and cut to the first directions. Words are in the order of the model's
vocabulary, which is nearly the order of their frequency.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import Float
from safetensors.numpy import load_file, save_file

FILE = Path(__file__).with_name("word_vectors.safetensors")
UNKNOWN = 14.0  # rarity of a piece that no word holds, that of a share of one in a million
GRAM = 4  # characters of a piece of a word, the spaces around it included
ENDINGS = (
    ("'s", ""), ("ies", "y"), ("es", ""), ("s", ""), ("ing", ""), ("ing", "e"), ("ed", ""), ("ed", "e"), ("ly", ""),
    ("er", ""), ("ers", ""),
)  # fmt: skip


@dataclass(frozen=True)
class WordVectors:
    """Words in falling order of frequency, and one vector of length 1 for each."""

    words: tuple[str, ...]
    vectors: Float[np.ndarray, "word direction"]

    @cached_property
    def _row(self) -> dict[str, int]:
        return {word: i for i, word in enumerate(self.words)}

    @cached_property
    def gram_rarity(self) -> Mapping[str, float]:
        """−log of the share of words, by Zipf's law, that hold a piece."""
        share: dict[str, float] = {}
        for place, word in enumerate(self.words):
            for gram in grams(word):
                share[gram] = share.get(gram, 0.0) + 1 / (10 + place)
        whole = sum(1 / (10 + place) for place in range(len(self.words)))
        return {gram: -math.log(value / whole) for gram, value in share.items()}

    def row(self, word: str) -> int | None:
        """The row of a word in lower case, of its stem, or of its longest known beginning of four letters or more."""
        if word in self._row:
            return self._row[word]
        for ending, instead in ENDINGS:
            stem = word[: len(word) - len(ending)] + instead
            if word.endswith(ending) and len(word) - len(ending) >= 3 and stem in self._row:
                return self._row[stem]
        return next((self._row[word[:n]] for n in range(len(word) - 1, 3, -1) if word[:n] in self._row), None)

    def rarity(self, row: int | None) -> float:
        """From 0 to 1, rising with the logarithm of the place; an unknown word is rare."""
        return math.log1p(len(self.words) if row is None else row) / math.log1p(len(self.words))

    def save(self, path: Path = FILE) -> None:
        """Write the words as UTF-8 with line ends, and the vectors as int8 with one scale a row."""
        largest = np.abs(self.vectors).max(1, keepdims=True)
        arrays = {
            "words": np.frombuffer("\n".join(self.words).encode(), dtype=np.uint8),
            "vectors": np.rint(127 * self.vectors / largest).astype(np.int8),
        }
        save_file(arrays, path)


def grams(word: str) -> list[str]:
    """The pieces of a word with a space before and after it."""
    padded = f" {word} "
    return [padded[i : i + GRAM] for i in range(max(1, len(padded) - GRAM + 1))]


@lru_cache(maxsize=1)
def shipped_vectors() -> WordVectors:
    """The vectors that come with the package."""
    arrays = load_file(FILE)
    vectors = arrays["vectors"].astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return WordVectors(tuple(arrays["words"].tobytes().decode().split("\n")), vectors)
