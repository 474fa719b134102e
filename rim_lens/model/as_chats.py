"""Whatever renders, as chats: the one way from a function's prompts to what a model reads."""

from collections.abc import Sequence

from rim_lens.chat.chat import Chat
from rim_lens.chat.segments import Thinking
from rim_lens.errors import RimLensError
from rim_lens.model.lens_model import LensModel
from rim_lens.model.requests import Prompts, as_requests


def as_chats(
    model: LensModel,
    prompts: Prompts,
    *,
    thinking: Thinking = "off",
    cot: str | Sequence[str] | None = None,
    system: str | None = None,
) -> list[Chat]:
    """One chat per prompt: chats as they are, everything else rendered for the thinking mode.

    A single text, `Prompt`, conversation or chat is one prompt.

    Args:
        model: the model whose chat format renders them.
        prompts: texts, `Prompt`s, a `PromptSet`, conversations or chats, also mixed.
        thinking: mode of those that are rendered here.
        cot: the CoT of mode "prefilled", one for all or one per prompt.
        system: a system prompt for those that are rendered here.

    Raises:
        RimLensError: no prompts, something else among them, or another number of CoTs than of prompts.

    """
    wanted = as_requests(prompts)
    if cot is None or isinstance(cot, str):
        cots: list[str | None] = [cot] * len(wanted)
    else:
        cots = list(cot)
    if len(cots) != len(wanted):
        raise RimLensError(f"{len(cots)} CoTs were given for {len(wanted)} prompts; pass one for all or one each.")
    return [
        one if isinstance(one, Chat) else model.render([one], thinking=thinking, cot=text, system=system)[0]
        for one, text in zip(wanted, cots, strict=True)
    ]


def answered_chats(chats: Prompts, what: str) -> list[Chat]:
    """Chats that hold what a model wrote, so that texts cannot stand for them; `what` names them in the error.

    Raises:
        RimLensError: something else than chats among them.

    """
    found = as_requests(chats)
    written = [one for one in found if isinstance(one, Chat)]
    if len(written) < len(found):
        raise RimLensError(f"{what} must be chats that a model has written in; take the `chat` of each generation.")
    return written
