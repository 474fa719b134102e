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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from rim_lens.behavior.limits import Budget, Limits, is_thinking, limits_for
from rim_lens.behavior.row import Row, Written
from rim_lens.behavior.sampling import Picker, sampling_for
from rim_lens.behavior.through_engine import written_through
from rim_lens.chat.chat import Chat
from rim_lens.chat.segments import Thinking
from rim_lens.chat.tags import ThinkTags
from rim_lens.chat.thoughts import split_thoughts
from rim_lens.errors import RimLensError
from rim_lens.model.as_chats import as_chats
from rim_lens.model.decode import Decoder, decoder, rows_that_fit
from rim_lens.model.fitting import halves_batches
from rim_lens.model.lens_model import LensModel
from rim_lens.model.prompt_cache import PromptCache
from rim_lens.model.requests import Prompts
from rim_lens.processes import gather_items, share
from rim_lens.progress import track

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


def generation_of(chat: Chat, written: Written, decode: Callable[[Sequence[int]], str], tags: ThinkTags) -> Generation:
    """What was written after a chat, with that chat; what it thinks once more after the CoT is not an answer."""
    if written.cot_ids or written.close_ids:
        chat = chat.extend(written.cot_ids, "cot").extend(written.close_ids, "think_close")
    later, response, _ = split_thoughts(decode(written.response_ids), tags, opened=False)
    cot = "\n\n".join(part for part in (chat.segment_text("cot").strip(), later) if part)
    return Generation(
        chat, response, written.response_ids, cot, written.closed, written.truncated, written.score, written.cut
    )


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
    started: Sequence[PromptCache] = (),
    progress: bool = True,
) -> list[Generation]:
    """Answer every prompt, `samples` times.

    Args:
        model: the model; active taps (ablations, knock-outs) apply to every step.
        prompts: texts, `Prompt`s, a `PromptSet`, conversations, or chats rendered before; a single one is one prompt.
        thinking: `off`, `on` (the model writes its CoT) or `prefilled` (with `cot`); ignored for rendered chats.
        cot: the CoT to prefill, one for all or one per prompt.
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
            Given one per prompt, the other prompts of the call make none either.
        decision_score: a function from logits [row, vocab] to [row], applied at each decision position: the refusal
            score costs no pass of its own this way.
        started: this process's prompts where a pass over the same chats has computed them before.
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
    counted = Counter()
    answers: Iterator[tuple[int, Written]]
    if model.engine is not None:
        if decision_score is not None and not model.engine.inside:
            raise RimLensError(
                f"decision_score needs logits, which the server of {model.name} does not show: leave it out, and ask "
                "refusal_score."
            )
        answers = written_through(model, chats, share(len(chats)), limits, sampling, seed, counted.add)
    else:
        longest = max(len(chat) + limits.room(chat) for chat in chats)
        size = min(batch_size, rows_that_fit(model, longest))
        begun: Iterator[tuple[list[int], Decoder]]
        if started:
            begun = continued(started, samples, size)
        else:
            begun = ((rows, decoder(model, batch)) for rows, batch in model.shared_batches(chats, size))
        pick = Picker(sampling, seed)
        answers = (
            one
            for rows, steps in begun
            for one in decode_rows(model, steps, rows, limits, pick, decision_score, counted)
        )
    if progress:
        answers = track(answers, "answers", len(share(len(chats))), note=counted.words)
    written = dict(answers)
    every = gather_items(len(chats), list(written), list(written.values()))
    chat_format = model.chat_format
    generations = [
        generation_of(chat, one, chat_format.decode, chat_format.tags) for chat, one in zip(chats, every, strict=True)
    ]
    if model.engine is None or decision_score is None:
        return generations
    scores = scores_at_decisions(model, [one.chat for one in generations], decision_score, batch_size)
    return [replace(one, score=score) for one, score in zip(generations, scores, strict=True)]


@torch.no_grad()
def scores_at_decisions(model: LensModel, chats: Sequence[Chat], decision_score: Score, batch_size: int) -> list[float]:
    """Scores of the decision positions of chats that an engine has written, by passes of their own."""
    scores = [0.0] * len(chats)
    by_row = any(
        getattr(tap, "n_given", 1) > 1 for tap in model.active_taps
    )  # then all rows are one batch in their order
    every = [(list(range(len(chats))), model.batch(chats))] if by_row else model.batches(chats, batch_size)
    for rows, batch in every:
        for row, score in zip(rows, decision_score(model.decision_logits(batch)).tolist(), strict=True):
            scores[row] = score
    return scores


def continued(started: Sequence[PromptCache], samples: int, size: int) -> Iterator[tuple[list[int], Decoder]]:
    """The numbers of some rows at a time, and their decoder, from prompts that were computed before."""
    for part in started:
        rows = [(row, prompt * samples + k) for row, prompt in enumerate(part.indices) for k in range(samples)]
        for first in range(0, len(rows), size):
            places, numbers = (list(column) for column in zip(*rows[first : first + size], strict=True))
            yield numbers, part.decoder(places)


class Counter:
    """Tokens decoded so far and since when, for the display of progress."""

    def __init__(self) -> None:
        self.tokens, self.start = 0, time.monotonic()

    def add(self, n_tokens: int) -> None:
        """Count more tokens."""
        self.tokens += n_tokens

    def words(self) -> str:
        """How many tokens, and how many a second."""
        return f"{self.tokens:,} tokens, {self.tokens / max(time.monotonic() - self.start, 1e-9):,.0f} a second"


@torch.no_grad()
def decode_rows(
    model: LensModel,
    steps: Decoder,
    numbers: Sequence[int],
    limits: Limits,
    pick: Picker,
    decision_score: Score | None,
    counted: Counter,
) -> Iterator[tuple[int, Written]]:
    """Decode the rows of one batch, which have these numbers.

    Each number with what its row wrote, once it is done.
    """
    live = [
        Row(i, model.chat_format, limits, chat.text, thinking=is_thinking(chat))
        for i, chat in zip(numbers, steps.batch.chats, strict=True)
    ]
    logits = steps.first()
    while True:
        if decision_score is not None:
            score_rows(live, logits, decision_score)
        before = [row.done for row in live]
        chosen = pick(logits, [row.number for row in live]).tolist()
        taken = [row.accept(token) for row, token in zip(live, chosen, strict=True)]
        counted.add(before.count(False))
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
