"""Generation with a thinking budget: the model's own CoT, a forced close tag when the budget ends, then the answer.

1. Chats are rendered for the thinking mode and batched by length.
2. Each row is decoded token by token; in mode `on` it starts inside the CoT. Where the model writes the close tag itself,
   the CoT ends there; where it does not within `cot_budget` tokens (or ends its turn first), the close tag is forced.
3. The answer ends at an end-of-turn token or after `max_new_tokens`.

Of several processes each decodes its share of the prompts and gets all answers.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from rim_lens.chat.chat import Chat
from rim_lens.chat.segments import Thinking, segment_id
from rim_lens.errors import RimLensError
from rim_lens.model.as_chats import as_chats
from rim_lens.model.batch import Batch
from rim_lens.model.decode import decoder
from rim_lens.model.fitting import halves_batches
from rim_lens.model.lens_model import LensModel
from rim_lens.model.requests import Prompts
from rim_lens.processes import gather_items
from rim_lens.progress import track

OPEN, COT, CLOSE, RESPONSE = map(segment_id, ("think_open", "cot", "think_close", "response"))

DROP_BELOW = 0.75  # share of unfinished rows under which finished ones are dropped; copying the cache costs a step

Pick = Callable[[Float[Tensor, "row vocab"], Sequence[int]], Int[Tensor, " row"]]  # logits, prompts' numbers -> tokens
Score = Callable[[Float[Tensor, "row vocab"]], Float[Tensor, " row"]]


@dataclass(frozen=True)
class Generation:
    """One answer: the chat up to the decision position, the answer after it, and how the thinking ended.

    `cot` is the text of the CoT (empty when thinking is off); `closed` says whether the model closed it by itself (None
    where it wrote none); `truncated` whether the answer was cut by the token limit; `score` the value of
    `decision_score` at the decision position, if one was asked for.
    """

    chat: Chat
    response: str
    response_ids: tuple[int, ...]
    cot: str
    closed: bool | None
    truncated: bool
    score: float | None = None

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

    def after(self, chat: Chat, decode: Callable[[Sequence[int]], str]) -> Generation:
        """The generation that it makes with its chat."""
        if self.cot_ids or self.close_ids:
            chat = chat.extend(self.cot_ids, "cot").extend(self.close_ids, "think_close")
        cot, response = chat.segment_text("cot").strip(), decode(self.response_ids).strip()
        return Generation(chat, response, self.response_ids, cot, self.closed, self.truncated, self.score)


@halves_batches
def generate(
    model: LensModel,
    prompts: Prompts,
    *,
    thinking: Thinking = "off",
    cot: str | Sequence[str] | None = None,
    system: str | None = None,
    max_new_tokens: int = 48,
    cot_budget: int = 96,
    batch_size: int = 32,
    temperature: float = 0.0,
    seed: int | Sequence[int] = 0,
    decision_score: Score | None = None,
    progress: bool = True,
) -> list[Generation]:
    """Answer every prompt, greedily unless a temperature is given.

    Args:
        model: the model; active taps (ablations, knock-outs) apply to every step.
        prompts: texts, `Prompt`s, a `PromptSet`, conversations, or chats rendered before; a single one is one prompt.
        thinking: `off`, `on` (the model writes its CoT) or `prefilled` (with `cot`); ignored for rendered chats.
        cot: the CoT to prefill, one for all or one a prompt.
        system: a system prompt for all.
        max_new_tokens: longest answer, in tokens.
        cot_budget: longest CoT of the model's own, in tokens, before the close tag is forced.
        batch_size: prompts decoded together.
        temperature: 0 for greedy; otherwise tokens are sampled from softmax(logits / temperature).
        seed: of the sampling; each prompt draws on its own, so batches and processes make no difference. Given one a
            prompt, the other prompts of the call make none either.
        decision_score: a function from logits [row, vocab] to [row], applied at each decision position: the refusal
            score costs no pass of its own this way.
        progress: show a progress bar when it takes long.

    Returns:
        Generations in the order of the prompts.

    Raises:
        RimLensError: a prompt with its budget does not fit the context, or another number of seeds than of prompts.

    """
    chats = as_chats(model, prompts, thinking=thinking, cot=cot, system=system)
    for i, chat in enumerate(chats):
        room = max_new_tokens + (cot_budget if is_thinking(chat) else 0)
        model.check_length(len(chat) + room, f"prompt {i} with its token budget")
    if isinstance(seed, Sequence) and len(seed) != len(chats):
        raise RimLensError(f"{len(seed)} seeds were given for {len(chats)} prompts; pass one for all or one each.")
    pick = picker(temperature, seed)
    mine, written = list[int](), list[Written]()
    batches = list(model.shared_batches(chats, batch_size))
    for indices, batch in track(batches, "generating") if progress else batches:
        written += decode_batch(model, batch, indices, max_new_tokens, cot_budget, pick, decision_score)
        mine += indices
    every = gather_items(len(chats), mine, written)
    return [one.after(chat, model.chat_format.decode) for chat, one in zip(chats, every, strict=True)]


def is_thinking(chat: Chat) -> bool:
    """Whether the chat ends inside its CoT; one that a former generation closed does not."""
    return chat.thinking == "on" and int(chat.segment_ids[-1]) in (OPEN, COT)


def picker(temperature: float, seed: int | Sequence[int]) -> Pick:
    """How the next token is chosen from the logits; where it is sampled, from random numbers of each prompt's own."""
    if temperature <= 0:
        return lambda logits, prompts: logits.argmax(-1)
    generators: dict[int, torch.Generator] = {}

    def drawn(chances: Float[Tensor, " vocab"], prompt: int) -> Tensor:
        if prompt not in generators:
            source = seed[prompt] if isinstance(seed, Sequence) else [seed, prompt]
            own = np.random.SeedSequence(source).generate_state(1, np.uint64)[0]
            generators[prompt] = torch.Generator().manual_seed(int(own >> np.uint64(1)))
        return torch.multinomial(chances, 1, generator=generators[prompt])

    def sample(logits: Float[Tensor, "row vocab"], prompts: Sequence[int]) -> Int[Tensor, " row"]:
        chances = (logits.double() / temperature).softmax(-1).cpu()
        return torch.cat([drawn(row, prompt) for row, prompt in zip(chances, prompts, strict=True)]).to(logits.device)

    return sample


@dataclass
class Row:
    """Where one row is: in its CoT, in its answer, or done."""

    prompt: int
    model: LensModel
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

    @property
    def at_decision(self) -> bool:
        """Whether the next token is the first of the answer."""
        return not (self.thinking or self.forced or self.response_ids or self.done)

    def accept(self, chosen: int, *, max_new_tokens: int, cot_budget: int) -> tuple[int, int]:
        """Take the row's next token, forced or chosen by the model; say which one it was and its segment id."""
        if self.forced:
            self.close_ids.append(self.forced.popleft())
            return self.close_ids[-1], CLOSE
        if self.thinking and chosen in self.model.chat_format.eos_ids:
            self._close(by_itself=False)
            return self.accept(chosen, max_new_tokens=max_new_tokens, cot_budget=cot_budget)
        if self.thinking:
            self._think(chosen, cot_budget)
            return chosen, COT if self.thinking or not self.closed else CLOSE
        if not self.done:
            self._answer(chosen, max_new_tokens)
        return chosen, RESPONSE

    def _think(self, token: int, cot_budget: int) -> None:
        self.cot_ids.append(token)
        mark = self.model.chat_format.tags.close_mark
        if mark in self.model.chat_format.decode(self.cot_ids[-len(mark) :]):
            self._split_at(mark)
            self._close(by_itself=True)
        elif len(self.cot_ids) >= cot_budget:
            self._close(by_itself=False)

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
        self.thinking, self.closed = False, by_itself
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

    def _answer(self, token: int, max_new_tokens: int) -> None:
        if token in self.model.chat_format.eos_ids:
            self.done = True
            return
        self.response_ids.append(token)
        self.done = self.truncated = len(self.response_ids) >= max_new_tokens

    def finished(self) -> Written:
        """What this row has written."""
        cot, close, response = tuple(self.cot_ids), tuple(self.close_ids), tuple(self.response_ids)
        return Written(cot, close, response, self.closed, self.truncated, self.score)


@torch.no_grad()
def decode_batch(
    model: LensModel,
    batch: Batch,
    prompts: Sequence[int],
    max_new_tokens: int,
    cot_budget: int,
    pick: Pick,
    decision_score: Score | None = None,
) -> list[Written]:
    """Decode one left-padded batch, whose rows are these prompts, until every row is done."""
    steps = decoder(model, batch)
    rows = [Row(i, model, chat.text, thinking=is_thinking(chat)) for i, chat in zip(prompts, batch.chats, strict=True)]
    live = list(rows)
    logits = steps.first()
    while True:
        if decision_score is not None:
            score_rows(live, logits, decision_score)
        taken = [
            row.accept(token, max_new_tokens=max_new_tokens, cot_budget=cot_budget)
            for row, token in zip(live, pick(logits, [row.prompt for row in live]).tolist(), strict=True)
        ]
        going = [i for i, row in enumerate(live) if not row.done]
        if not going:
            return [row.finished() for row in rows]
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
