"""How many tokens a generated chat may grow by: the budget of the CoT, the close tag, the answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rim_lens.chat.chat import Chat
from rim_lens.chat.segments import segment_id
from rim_lens.errors import RimLensError
from rim_lens.model.lens_model import LensModel

Budget = int | Literal["auto"]  # of a CoT, in tokens; "auto": the largest that the context leaves

INSIDE = tuple(map(segment_id, ("think_open", "cot")))


@dataclass(frozen=True)
class Limits:
    """Most tokens of an answer, of a CoT, and of the close tag between them."""

    max_new_tokens: int
    cot_budget: int
    close: int

    def room(self, chat: Chat) -> int:
        """Most tokens that may follow a chat."""
        return self.max_new_tokens + (self.cot_budget + self.close if is_thinking(chat) else 0)


def limits_for(model: LensModel, chats: Sequence[Chat], max_new_tokens: int, cot_budget: Budget) -> Limits:
    """The limits, with an "auto" budget worked out; one budget for all chats.

    Raises RimLensError where they do not fit.
    """
    close = len(model.chat_format.close_ids)
    thinking = [len(chat) for chat in chats if is_thinking(chat)]
    longest = max(thinking, default=0)
    most = max(1, model.max_length - longest - close - max_new_tokens)
    budget = int(most if cot_budget == "auto" else cot_budget)
    if thinking and budget < 1:
        raise RimLensError(f'A CoT budget of {budget} tokens holds no thought; pass at least 1, or "auto".')
    limits = Limits(max_new_tokens, budget, close)
    for i, chat in enumerate(chats):
        model.check_length(len(chat) + limits.room(chat), f"prompt {i} with its token budget")
    return limits


def read_budget(text: str) -> Budget:
    """A CoT budget as the shell has it: a number of tokens, or "auto"."""
    if text == "auto":
        return "auto"
    if not text.isdecimal():
        raise RimLensError(f'{text!r} is not a CoT budget; pass a number of tokens, or "auto".')
    return int(text)


def is_thinking(chat: Chat) -> bool:
    """Whether the chat ends inside its CoT; one that a former generation closed does not."""
    return chat.thinking == "on" and int(chat.segment_ids[-1]) in INSIDE
