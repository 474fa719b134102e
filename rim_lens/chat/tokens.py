"""Token ids of a text and the character at which each token starts, from a fast tokenizer's offsets."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Sequence
from functools import cached_property

import numpy as np
from jaxtyping import Int
from transformers import PreTrainedTokenizerBase

from rim_lens.errors import RimLensError


class TokenStarts:
    """A tokenizer that says where its tokens start. No special tokens are ever added.

    Raises RimLensError, at first use, when the tokenizer gives no character offsets.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer

    def encode(self, text: str) -> tuple[Int[np.ndarray, "pos"], Int[np.ndarray, "pos"]]:
        """Token ids of `text`, and the index of each token's first character (never falling).

        A zero-width token (a prefix the tokenizer adds) stands where the tokens before it end.
        """
        try:
            encoded = self._untrimmed(text, add_special_tokens=False, return_offsets_mapping=True)
        except (UnicodeEncodeError, TypeError) as error:
            raise RimLensError("a message holds a lone surrogate, which is not Unicode: mend it.") from error
        offsets = np.asarray(encoded["offset_mapping"], dtype=np.int64).reshape(-1, 2)
        ends = np.maximum.accumulate(offsets[:, 1])
        ends_before = np.concatenate([[0], ends])[: len(offsets)]
        empty = offsets[:, 0] == offsets[:, 1]
        starts = np.where(empty, np.maximum(offsets[:, 0], ends_before), offsets[:, 0])
        return np.asarray(encoded["input_ids"], dtype=np.int64), np.maximum.accumulate(starts)

    def encode_after(self, before: str, more: str) -> Int[np.ndarray, "new"]:
        """Token ids of `more` where it follows `before`, whose own tokens stay as they are.

        This is a model's input when it reads `before` and `more` is fed or generated afterwards. Where the two
        texts would merge into one token, `more` is encoded behind another text, so that no word-begin space is added.
        """
        for anchor in (before, "a", "\n", str(self.tokenizer.eos_token or "")):
            alone, both = self.encode(anchor)[0], self.encode(anchor + more)[0]
            if anchor and np.array_equal(both[: len(alone)], alone):
                return both[len(alone) :]
        return self.encode(more)[0]

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of token ids, special tokens and spaces as they are."""
        ids = list(token_ids)
        return str(self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def units(self, text: str) -> list[str]:
        """`text` cut into added tokens (special ones and tags) and single characters."""
        return self._unit_pattern.findall(text)

    @cached_property
    def added(self) -> dict[str, int]:
        """Added tokens (special ones and tags) and their ids."""
        return {str(token): int(index) for token, index in self.tokenizer.get_added_vocab().items()}

    @cached_property
    def _unit_pattern(self) -> re.Pattern[str]:
        tokens = sorted((token for token in self.added if token.strip()), key=len, reverse=True)
        return re.compile("|".join([*map(re.escape, tokens), "."]), flags=re.DOTALL)

    @cached_property
    def _untrimmed(self) -> PreTrainedTokenizerBase:
        """The tokenizer, or a copy of it where its post-processor trims spaces off the offsets."""
        if not getattr(self.tokenizer, "is_fast", False):
            raise RimLensError(
                f"{type(self.tokenizer).__name__} gives no character offsets, which segments need: "
                "load a fast tokenizer (one with a tokenizer.json)."
            )
        if not _trims(json.loads(self.tokenizer.backend_tokenizer.to_str())["post_processor"]):
            return self.tokenizer
        untrimmed = copy.deepcopy(self.tokenizer)
        untrimmed.backend_tokenizer.post_processor = None
        return untrimmed


def _trims(post_processor: dict[str, object] | None) -> bool:
    """Whether a post-processor, or one in its sequence, moves offsets past white space."""
    if post_processor is None:
        return False
    inner = post_processor.get("processors", [])
    return bool(post_processor.get("trim_offsets")) or any(map(_trims, inner if isinstance(inner, list) else []))
