"""Positions: which tokens of a chat are read or changed; one value for capture, interventions, sweeps and tests.

| value | tokens |
| --- | --- |
| `"all"` | every token |
| `"decision"` | the decision position: the last one before the answer |
| `"from_decision"` | that and every later one |
| `"suffix"` | from the assistant tag on |
| a segment, `"user"` | its tokens |
| `"last cot"`, `"from think_close"` | the last token of a segment; every one from its first token on |
| `"prompt"`, `"thinking"`, `"answer"` | phases: a tag counts with what is written behind it (`PHASES`) |
| several names, `("cot", "response")` | the tokens of any of them |
| offsets, `(-2, -1, 0)` | from the decision position, in this order |
| a function of the chat | True at the tokens, `[pos]` |

Interventions apply a name to the tokens that are generated later too; offsets and functions are about the prompt.
"""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Int

from rim_lens.chat.chat import Chat
from rim_lens.chat.segments import SEGMENTS, segment_id
from rim_lens.errors import RimLensError

Positions = str | Sequence[str] | Sequence[int] | Callable[[Chat], Bool[np.ndarray, "pos"]]
PHASES = {
    "prompt": ("system", "user", "assistant_tag"),
    "thinking": ("think_open", "cot"),
    "answer": ("think_close", "response"),
}
FIXED = ("all", "decision", "from_decision", "suffix")


def checked_positions(positions: Positions) -> Positions:
    """The positions, if their names are known.

    Raises:
        RimLensError: an unknown name.
    """
    for name in named(positions) or ():
        segment = name.removeprefix("last ").removeprefix("from ")
        if name not in (*FIXED, *PHASES) and segment not in SEGMENTS:
            known = ", ".join(map(repr, (*FIXED, *PHASES)))
            raise RimLensError(f"unknown positions {name!r}: use {known} or a segment ({', '.join(SEGMENTS)}).")
    return positions


def named(positions: Positions) -> tuple[str, ...] | None:
    """The names that positions are made of; None for offsets and functions."""
    if isinstance(positions, str):
        return (positions,)
    if callable(positions) or not len(positions) or not isinstance(positions[0], str):
        return None
    return tuple(map(str, positions))


def words_of(positions: Positions) -> str:
    """Positions as text, for captions and manifests."""
    if callable(positions):
        return getattr(positions, "__name__", "a function")
    names = named(positions)
    return ", ".join(map(str, positions)) if names is None else "+".join(names)


def segments_of(positions: Positions) -> list[int] | None:
    """Ids of the segments that positions are made of; None where segments do not say it all."""
    names = named(positions)
    if names is None or not all(name in PHASES or name in SEGMENTS for name in names):
        return None
    return [segment_id(segment) for name in names for segment in PHASES.get(name, (name,))]


def places(chat: Chat, positions: Positions) -> Bool[np.ndarray, "pos"]:
    """True at the tokens of a chat that positions name.

    Raises:
        RimLensError: an unknown name, an offset that leaves the chat, or a function that gives something else.
    """
    inside = np.zeros(len(chat), dtype=bool)
    if callable(positions):
        mask = np.asarray(positions(chat))
        if mask.dtype != bool or mask.shape != inside.shape:
            raise RimLensError(
                f"The function of positions gave {mask.dtype} of shape {mask.shape} for a chat of {len(chat)} tokens; "
                "give one bool per token."
            )
        return mask
    inside[positions_in(chat, positions)] = True
    return inside


def positions_in(chat: Chat, positions: Positions) -> Int[np.ndarray, " position"]:
    """Indices of the tokens that positions name in one chat, in order; empty where the chat lacks the segment.

    Raises:
        RimLensError: as `places`.
    """
    if callable(positions):
        return np.flatnonzero(places(chat, positions))
    names = named(checked_positions(positions))
    if names is None:
        positions_found = chat.decision_position + np.asarray(tuple(positions), dtype=np.int64)
        if not len(positions_found) or positions_found.min() < 0 or positions_found.max() >= len(chat):
            raise RimLensError(
                f"offsets {tuple(positions)} from the decision position leave the chat {chat.request[:40]!r} of "
                f"{len(chat)} tokens (decision position {chat.decision_position})."
            )
        return positions_found
    if len(names) == 1:
        return _of_name(chat, names[0])
    return np.unique(np.concatenate([_of_name(chat, name) for name in names]))


def _of_name(chat: Chat, name: str) -> Int[np.ndarray, " position"]:
    if name == "all":
        return np.arange(len(chat))
    if name == "decision":
        return np.array([chat.decision_position])
    if name == "from_decision":
        return np.arange(chat.decision_position, len(chat))
    if name.startswith("last "):
        return np.flatnonzero(chat.where(name.removeprefix("last ")))[-1:]
    if name == "suffix" or name.startswith("from "):
        first = np.flatnonzero(chat.where("assistant_tag" if name == "suffix" else name.removeprefix("from ")))[:1]
        return np.arange(first[0], len(chat)) if len(first) else first
    wanted = [segment_id(segment) for segment in PHASES.get(name, (name,))]
    return np.flatnonzero(np.isin(chat.segment_ids, wanted))
