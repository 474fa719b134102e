"""Chats of a wanted length."""

from dataclasses import replace

import numpy as np

from rim_lens.chat.chat import Chat
from rim_lens.chat.segments import SEGMENTS
from rim_lens.model.lens_model import LensModel

REQUEST = "Explain how a lock on a car door works and why it can fail."  # about 50 tokens when rendered
USER = SEGMENTS.index("user")


def chat_of(model: LensModel, n_tokens: int, seed: int = 0) -> Chat:
    """A chat whose user message is lengthened with random tokens until the chat has `n_tokens`."""
    chat = model.render(REQUEST)[0]
    place = int(np.flatnonzero(chat.segment_ids == USER)[-4])
    vocabulary = len(model.tokenizer)
    more = np.random.default_rng(seed).integers(vocabulary // 4, vocabulary // 2, n_tokens - len(chat))
    return replace(
        chat,
        token_ids=np.insert(chat.token_ids, place, more),
        segment_ids=np.insert(chat.segment_ids, place, np.full(len(more), USER, dtype=np.int8)),
        decision_position=chat.decision_position + len(more),
    )
