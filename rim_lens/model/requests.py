"""What a function can be asked with: texts, prompts, conversations and chats, alone or many."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rim_lens.chat.chat import Chat
from rim_lens.data.schemas import Prompt, kind_of, listed
from rim_lens.errors import RimLensError

Request = str | Sequence[Mapping[str, str]]  # a user's text, or messages with `role` and `content`
Prompts = Request | Prompt | Chat | Iterable[Request | Prompt | Chat]  # a PromptSet among them

KINDS = "texts, Prompts, a PromptSet, conversations (lists of messages) or chats"


def as_requests(prompts: Prompts) -> list[Request | Chat]:
    """Texts, conversations and chats, in order; a single one becomes a list of one.

    Raises:
        RimLensError: there are none, or something among them is not a prompt.

    """
    if isinstance(prompts, str | Prompt | Chat) or _is_conversation(prompts):
        return [as_request(prompts, "the prompt")]
    return [as_request(one, f"prompt {number}") for number, one in enumerate(listed(prompts, KINDS))]


def as_request(one: Any, where: str) -> Request | Chat:
    """One text, conversation or chat."""
    if isinstance(one, Prompt):
        return one.text
    if isinstance(one, str):
        return str(one)
    without_messages = isinstance(one, list | tuple) and not one  # rendering it says what is missing
    if isinstance(one, Chat) or _is_conversation(one) or without_messages:
        return one
    raise RimLensError(f"{where[0].upper()}{where[1:]} is {kind_of(one)}; pass {KINDS}.")


def _is_conversation(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(message, Mapping) for message in value)
