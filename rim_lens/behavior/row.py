"""One answer as it is written: the model's own CoT, the close tag, the answer, token by token."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from rim_lens.behavior.limits import Limits
from rim_lens.chat.format import ChatFormat
from rim_lens.chat.segments import segment_id

COT, CLOSE, RESPONSE = map(segment_id, ("cot", "think_close", "response"))


@dataclass(frozen=True)
class Written:
    """The tokens that a model wrote after a chat, and what a `Generation` states about them."""

    cot_ids: tuple[int, ...]
    close_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    closed: bool | None
    truncated: bool
    score: float | None
    cut: bool | None


@dataclass
class Row:
    """Where one row, a sample of a prompt, is: in its CoT, in its answer, or done."""

    number: int
    chat_format: ChatFormat
    limits: Limits
    before: str  # the text of its chat
    thinking: bool
    forced: deque[int] = field(default_factory=deque)
    cot_ids: list[int] = field(default_factory=list)
    close_ids: list[int] = field(default_factory=list)
    response_ids: list[int] = field(default_factory=list)
    closed: bool | None = None
    done: bool = False
    truncated: bool = False
    score: float | None = None
    cut: bool | None = None

    @property
    def at_decision(self) -> bool:
        """Whether the next token is the first of the answer."""
        return not (self.thinking or self.forced or self.response_ids or self.done)

    def accept(self, chosen: int) -> tuple[int, int]:
        """Take the row's next token, forced or chosen by the model; say which one it was and its segment id."""
        if self.forced:
            self.close_ids.append(self.forced.popleft())
            return self.close_ids[-1], CLOSE
        if self.thinking and chosen in self.chat_format.eos_ids:
            self._close(by_itself=False)
            return self.accept(chosen)
        if self.thinking:
            self._think(chosen)
            return chosen, COT if self.thinking or not self.closed else CLOSE
        if not self.done:
            self._answer(chosen)
        return chosen, RESPONSE

    def _think(self, token: int) -> None:
        self.cot_ids.append(token)
        mark = self.chat_format.tags.close_mark
        if mark in self.chat_format.decode(self.cot_ids[-len(mark) :]):
            self._split_at(mark)
            self._close(by_itself=True)
        elif len(self.cot_ids) >= self.limits.cot_budget:
            self._close(by_itself=False)
            self.cut = True

    def _split_at(self, mark: str) -> None:
        """Move the tokens of the close tag, and the white space before it, from the CoT to the close tag."""
        decode = self.chat_format.decode
        start = len(self.cot_ids) - 1
        while mark not in decode(self.cot_ids[start:]):
            start -= 1
        while start > 0 and not decode(self.cot_ids[start - 1 : start]).strip():
            start -= 1
        self.close_ids, self.cot_ids = self.cot_ids[start:], self.cot_ids[:start]

    def _close(self, *, by_itself: bool) -> None:
        self.thinking, self.closed, self.cut = False, by_itself, False
        chat_format = self.chat_format
        if not by_itself:
            self.forced.extend(chat_format.encode_after(self._text(self.cot_ids), chat_format.tags.close))
            return
        mark = chat_format.tags.close_mark
        written = chat_format.decode(self.close_ids).partition(mark)[2]
        rest = chat_format.tags.close.partition(mark)[2].removeprefix(written)
        if rest:
            self.forced.extend(chat_format.encode_after(self._text([*self.cot_ids, *self.close_ids]), rest))

    def _text(self, written: Sequence[int]) -> str:
        """The chat's text with what was written after it."""
        return self.before + self.chat_format.decode(written)

    def _answer(self, token: int) -> None:
        if token in self.chat_format.eos_ids:
            self.done = True
            return
        self.response_ids.append(token)
        self.done = self.truncated = len(self.response_ids) >= self.limits.max_new_tokens

    def finished(self) -> Written:
        """What this row has written."""
        cot, close, response = tuple(self.cot_ids), tuple(self.close_ids), tuple(self.response_ids)
        return Written(cot, close, response, self.closed, self.truncated, self.score, self.cut)
