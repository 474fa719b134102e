"""Generation with a thinking budget: the model's own CoT, a forced close tag when the budget ends, then the answer.

1. Chats are rendered for the thinking mode and batched by length.
2. Each row is decoded token by token; in mode `on` it starts inside the CoT. Where the model writes the close tag
   itself, the CoT ends there; where it does not within `cot_budget` tokens (or ends its turn first), the close tag is
   forced.
3. The answer ends at an end-of-turn token or after `max_new_tokens`.

With several samples a prompt is read once for all of them. Of several processes each decodes its share and gets all
answers.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from rim_lens.behavior.limits import Budget, Limits, is_thinking, limits_for
from rim_lens.behavior.sampling import Picker, sampling_for
from rim_lens.chat.chat import Chat
from rim_lens.chat.segments import Thinking, segment_id
from rim_lens.chat.tags import ThinkTags
from rim_lens.chat.thoughts import split_thoughts
from rim_lens.errors import RimLensError
from rim_lens.model.as_chats import as_chats
from rim_lens.model.batch import Batch
from rim_lens.model.decode import decoder, rows_that_fit
from rim_lens.model.fitting import halves_batches
from rim_lens.model.lens_model import LensModel
from rim_lens.model.requests import Prompts
from rim_lens.processes import gather_items, share
from rim_lens.progress import track

COT, CLOSE, RESPONSE = map(segment_id, ("cot", "think_close", "response"))

DROP_BELOW = 0.75  # share of unfinished rows under which finished ones are dropped; copying the cache costs a step

Score = Callable[[Float[Tensor, "row vocab"]], Float[Tensor, " row"]]


@dataclass(frozen=True)
class Generation:
    """One answer: the chat up to the decision position, the answer after it, and how the thinking ended.

    `response` is the answer alone, `response_ids` all that was written after the decision position. `cot` is the text
    of the CoT and of thoughts that the model puts into its answer; `closed` says whether the model closed it by itself
    and `cut` whether its budget ended it (both None where the model wrote none; neither where it ended its turn in the
    CoT); `truncated` whether the answer was cut by the token limit; `score` the value of `decision_score` at the
    decision position, if one was asked for.
    """

    chat: Chat
    response: str
    response_ids: tuple[int, ...]
    cot: str
    closed: bool | None
    truncated: bool
    score: float | None = None
    cut: bool | None = None

    @property
    def full_chat(self) -> Chat:
        """The chat with the answer's tokens as its `response` segment."""
        return self.chat.extend(self.response_ids, "response")


@dataclass(frozen=True)
class Written:
    """The tokens that a model wrote after a chat, and what a `Generation` tells of them besides."""

    cot_ids: tuple[int, ...]
    close_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    closed: bool | None
    truncated: bool
    score: float | None
    cut: bool | None

    def after(self, chat: Chat, decode: Callable[[Sequence[int]], str], tags: ThinkTags) -> Generation:
        """The generation that it makes with its chat; what it thinks once more after the CoT is no answer."""
        if self.cot_ids or self.close_ids:
            chat = chat.extend(self.cot_ids, "cot").extend(self.close_ids, "think_close")
        later, response, _ = split_thoughts(decode(self.response_ids), tags, opened=False)
        cot = "\n\n".join(part for part in (chat.segment_text("cot").strip(), later) if part)
        return Generation(chat, response, self.response_ids, cot, self.closed, self.truncated, self.score, self.cut)


@halves_batches
def generate(
    model: LensModel,
    prompts: Prompts,
    *,
    thinking: Thinking = "off",
    cot: str | Sequence[str] | None = None,
    system: str | None = None,
    max_new_tokens: int = 48,
    cot_budget: Budget = 96,
    batch_size: int = 32,
    temperature: float | None = None,
    top_p: float | None = None,
    samples: int = 1,
    seed: int | Sequence[int] = 0,
    decision_score: Score | None = None,
    progress: bool = True,
) -> list[Generation]:
    """Answer every prompt, `samples` times.

    Args:
        model: the model; active taps (ablations, knock-outs) apply to every step.
        prompts: texts, `Prompt`s, a `PromptSet`, conversations, or chats rendered before; a single one is one prompt.
        thinking: `off`, `on` (the model writes its CoT) or `prefilled` (with `cot`); ignored for rendered chats.
        cot: the CoT to prefill, one for all or one a prompt.
        system: a system prompt for all.
        max_new_tokens: longest answer, in tokens.
        cot_budget: longest CoT of the model's own, in tokens, before the close tag is forced; "auto": the longest that
            the context leaves to the longest prompt.
        batch_size: answers decoded together, fewer where the memory that is free holds fewer of this length.
        temperature: 0 for greedy; otherwise tokens are sampled from softmax(logits / temperature). By default the
            `generation_config`'s for a model that thinks natively, with its top-p, top-k and min-p; greedy for others.
        top_p: the share of probability whose most likely tokens are sampled from; by default as for `temperature`.
        samples: answers per prompt, each sampled on its own.
        seed: of the sampling; each prompt and sample draws on its own, so batches and processes make no difference.
            Given one a prompt, the other prompts of the call make none either.
        decision_score: a function from logits [row, vocab] to [row], applied at each decision position: the refusal
            score costs no pass of its own this way.
        progress: show a progress bar when it takes long.

    Returns:
        Generations in the order of the prompts, the samples of a prompt after each other.

    Raises:
        RimLensError: a prompt with its budget does not fit the context, another number of seeds than of prompts, or a
            sampling that cannot be (several samples of greedy decoding, say).

    """
    sampling = sampling_for(model, temperature, top_p, samples)
    asked = as_chats(model, prompts, thinking=thinking, cot=cot, system=system)
    if isinstance(seed, Sequence) and len(seed) != len(asked):
        raise RimLensError(f"{len(seed)} seeds were given for {len(asked)} prompts; pass one for all or one each.")
    limits = limits_for(model, asked, max_new_tokens, cot_budget)
    chats = [chat for chat in asked for _ in range(samples)]
    longest = max(len(chat) + limits.room(chat) for chat in chats)
    batches = model.shared_batches(chats, min(batch_size, rows_that_fit(model, longest)))
    pick, counted = Picker(sampling, seed), Counter()
    answers: Iterator[tuple[int, Written]] = (
        one
        for rows, batch in batches
        for one in decode_batch(model, batch, rows, limits, pick, decision_score, counted)
    )
    if progress:
        answers = track(answers, "answers", len(share(len(chats))), note=counted.told)
    written = dict(answers)
    every = gather_items(len(chats), list(written), list(written.values()))
    chat_format = model.chat_format
    return [one.after(chat, chat_format.decode, chat_format.tags) for chat, one in zip(chats, every, strict=True)]


class Counter:
    """Tokens decoded so far and since when, for the display of progress."""

    def __init__(self) -> None:
        self.tokens, self.start = 0, time.monotonic()

    def told(self) -> str:
        """How many tokens, and how many a second."""
        return f"{self.tokens:,} tokens, {self.tokens / max(time.monotonic() - self.start, 1e-9):,.0f} a second"


@dataclass
class Row:
    """Where one row, a sample of a prompt, is: in its CoT, in its answer, or done."""

    number: int
    model: LensModel
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
        if self.thinking and chosen in self.model.chat_format.eos_ids:
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
        mark = self.model.chat_format.tags.close_mark
        if mark in self.model.chat_format.decode(self.cot_ids[-len(mark) :]):
            self._split_at(mark)
            self._close(by_itself=True)
        elif len(self.cot_ids) >= self.limits.cot_budget:
            self._close(by_itself=False)
            self.cut = True

    def _split_at(self, mark: str) -> None:
        """Move the tokens of the close tag, and the white space before it, from the CoT to the close tag."""
        decode = self.model.chat_format.decode
        start = len(self.cot_ids) - 1
        while mark not in decode(self.cot_ids[start:]):
            start -= 1
        while start > 0 and not decode(self.cot_ids[start - 1 : start]).strip():
            start -= 1
        self.close_ids, self.cot_ids = self.cot_ids[start:], self.cot_ids[:start]

    def _close(self, *, by_itself: bool) -> None:
        self.thinking, self.closed, self.cut = False, by_itself, False
        chat_format = self.model.chat_format
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
        return self.before + self.model.chat_format.decode(written)

    def _answer(self, token: int) -> None:
        if token in self.model.chat_format.eos_ids:
            self.done = True
            return
        self.response_ids.append(token)
        self.done = self.truncated = len(self.response_ids) >= self.limits.max_new_tokens

    def finished(self) -> Written:
        """What this row has written."""
        cot, close, response = tuple(self.cot_ids), tuple(self.close_ids), tuple(self.response_ids)
        return Written(cot, close, response, self.closed, self.truncated, self.score, self.cut)


@torch.no_grad()
def decode_batch(
    model: LensModel,
    batch: Batch,
    numbers: Sequence[int],
    limits: Limits,
    pick: Picker,
    decision_score: Score | None,
    counted: Counter,
) -> Iterator[tuple[int, Written]]:
    """Decode one left-padded batch, whose rows have these numbers.

    Each number with what its row wrote, once it is done.
    """
    steps = decoder(model, batch)
    live = [
        Row(i, model, limits, chat.text, thinking=is_thinking(chat))
        for i, chat in zip(numbers, batch.chats, strict=True)
    ]
    logits = steps.first()
    while True:
        if decision_score is not None:
            score_rows(live, logits, decision_score)
        before = [row.done for row in live]
        chosen = pick(logits, [row.number for row in live]).tolist()
        taken = [row.accept(token) for row, token in zip(live, chosen, strict=True)]
        counted.tokens += before.count(False)
        yield from ((row.number, row.finished()) for row, was in zip(live, before, strict=True) if row.done and not was)
        going = [i for i, row in enumerate(live) if not row.done]
        if not going:
            return
        if len(going) <= DROP_BELOW * len(live) and not model.active_taps:  # a tap may differ by row
            steps.keep(going)
            live, taken = [live[i] for i in going], [taken[i] for i in going]
        tokens, segments = torch.tensor(taken, device=model.device).unbind(1)
        logits = steps.step(tokens, segments)


def score_rows(rows: Sequence[Row], logits: Float[Tensor, "row vocab"], decision_score: Score) -> None:
    """Keep the score of the rows that stand at their decision position."""
    here = [i for i, row in enumerate(rows) if row.at_decision]
    if here:
        for i, score in zip(here, decision_score(logits[here]).tolist(), strict=True):
            rows[i].score = score
