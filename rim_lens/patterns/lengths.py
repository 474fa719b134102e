"""Wordings fitted to one token length under a model's own tokenizer, by the same neutral fillers for every class."""

from collections.abc import Callable, Mapping, Sequence

from rim_lens.errors import RimLensError

FILLERS = (
    "And here this thought comes to its end.",
    "So that is the thought.",
    "That is that.",
    "So it is.",
    "So.",
    "…",
)
TOLERANCE = 0.05


def fitted(texts: Mapping[str, Sequence[str]], count: Callable[[str], int]) -> dict[str, list[str]]:
    """Every text of every class filled up towards the longest one's length.

    Raises:
        RimLensError: lengths still differ by more than 5 % of the longest.

    """
    longest = max(count(text) for group in texts.values() for text in group)
    done = {name: [filled(text, longest, count) for text in group] for name, group in texts.items()}
    shortest = min(count(text) for group in done.values() for text in group)
    if longest - shortest > TOLERANCE * longest:
        raise RimLensError(
            f"The wordings have {shortest} to {longest} tokens after filling; give texts of more equal length."
        )
    return done


def filled(text: str, length: int, count: Callable[[str], int]) -> str:
    """The text with fillers, each the longest that still fits, not longer than `length` tokens."""
    while count(text) < length:
        longer = next((made for filler in FILLERS if count(made := f"{text} {filler}") <= length), None)
        if longer is None:
            return text
        text = longer
    return text
