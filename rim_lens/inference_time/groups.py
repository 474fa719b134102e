"""Which chats were refused and which complied with, and which chats belong to the same request."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

from rim_lens.behavior.judge import LABELS, Judgement
from rim_lens.chat.chat import Chat
from rim_lens.errors import RimLensError


@dataclass(frozen=True, eq=False)
class Groups:
    """Refused and complied chats; incoherent answers are in neither and only counted."""

    refused: Bool[np.ndarray, "chat"]
    complied: Bool[np.ndarray, "chat"]

    @property
    def n_left_out(self) -> int:
        """Chats in neither group."""
        return int((~self.refused & ~self.complied).sum())


def groups_of(chats: Sequence[Chat], judged: Sequence[Judgement | str]) -> Groups:
    """Groups by judgement; labels as text serve too. Raises RimLensError for a wrong number or an unknown label."""
    if len(chats) != len(judged):
        raise RimLensError(f"{len(chats)} chats but {len(judged)} judgements; give one judgement for every chat.")
    labels = [one.label if isinstance(one, Judgement) else str(one) for one in judged]
    unknown = sorted(set(labels) - set(LABELS))
    if unknown:
        raise RimLensError(f"Unknown label {unknown[0]!r}; a judged answer is one of {', '.join(LABELS)}.")
    array = np.array(labels)
    return Groups(array == "refused", array == "complied")


def need_groups(refused: int, complied: int, at_least: int, what: str) -> None:
    """RimLensError that says what to do when one of the two groups is too small to compare."""
    if min(refused, complied) < at_least:
        raise RimLensError(
            f"{what} compares refused with complied answers, but there are {refused} refused and {complied} complied "
            f"ones (at least {at_least} of each are needed); use more or other prompts, on which the model does not "
            "always behave alike, or pass outcome=refusal_score(model, chats): a rank correlation needs no groups."
        )


def request_ids(chats: Sequence[Chat]) -> Int[np.ndarray, "chat"]:
    """A number per distinct request: chats of one request are not independent rows."""
    return np.unique([chat.request for chat in chats], return_inverse=True)[1]


def need_distinct_requests(chats: Sequence[Chat], what: str) -> None:
    """RimLensError when a request occurs twice among chats that a test takes as independent rows."""
    (request, times), *_ = Counter(chat.request for chat in chats).most_common(1) or [("", 0)]
    if times > 1:
        raise RimLensError(
            f"{what} takes chats as independent rows, but the request {request[:40]!r}… occurs {times} times; "
            "pass one chat per request, for instance one CoT wording drawn for each."
        )
