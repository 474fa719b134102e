"""Checks of chats and generation.

Segments cover the rendered text, greedy decoding writes what the model's own does.
"""

from contextlib import nullcontext

from rim_lens.behavior.generate import generate
from rim_lens.chat.chat import Chat
from rim_lens.chat.segments import SEGMENTS
from rim_lens.check.outcome import Measured
from rim_lens.check.subject import COT, REQUESTS, Subject
from rim_lens.errors import RimLensError
from rim_lens.intervene import ablate_heads
from rim_lens.model.lens_model import LensModel

N_TOKENS = 6


def segments(subject: Subject) -> Measured:
    """Every token in exactly one segment, tokens that decode to the rendered text, and texts where they belong."""
    if not subject.templated:
        raise RimLensError(subject.why_no_template)
    model, wrong, n_tokens, why = subject.model, 0, 0, ""
    for thinking, cot in (("off", None), ("on", None), ("prefilled", COT)):
        chat = model.render(REQUESTS[0], thinking=thinking, cot=cot)[0]
        gaps = uncovered(chat, model, cot or "")
        wrong, n_tokens = wrong + len(gaps), n_tokens + len(chat)
        why = why or "; ".join(f"thinking {thinking}: {gap}" for gap in gaps)
    return Measured(wrong, 0, n_tokens, "tokens", why)


def uncovered(chat: Chat, model: LensModel, cot: str) -> list[str]:
    """What is wrong with the segments of a chat."""
    ends = [0, *(span.end for span in chat.spans)]
    gaps = {
        "a token belongs to no segment": chat.segment_ids.min() < 0 or chat.segment_ids.max() >= len(SEGMENTS),
        "segments leave a gap in the text": [span.start for span in chat.spans] != ends[:-1]
        or ends[-1] != len(chat.text),
        "the tokens do not decode to the rendered text": model.chat_format.decode(chat.token_ids.tolist()) != chat.text,
        "the user segment lacks the request": chat.request not in chat.segment_text("user"),
        "the cot segment is not the given CoT": chat.segment_text("cot") != cot,
    }
    return [what for what, wrong in gaps.items() if wrong]


def generation(subject: Subject, ablated: bool) -> Measured:
    """Greedy tokens of `generate` against the model's own; `ablated`: without a head, by hand there."""
    if ablated and not subject.heads:
        raise RimLensError("no layer has heads.")
    model, wrong, n_tokens = subject.model, 0, 0
    head = subject.heads[len(subject.heads) // 2] if ablated else None
    for chat in subject.chats[:1] if ablated else subject.chats:
        with subject.plain.without_head(*head) if head else nullcontext():
            theirs = subject.plain.greedy(chat, N_TOKENS)
        with ablate_heads(model, [head]) if head else nullcontext():
            (answer,) = generate(model, [chat], max_new_tokens=N_TOKENS, temperature=0, progress=False)
        ends = [i for i, token in enumerate(theirs) if token in model.chat_format.eos_ids]
        theirs = theirs[: ends[0]] if ends else theirs
        mine = list(answer.response_ids)
        n_tokens += max(len(mine), len(theirs), 1)
        wrong += sum(a != b for a, b in zip(mine, theirs, strict=False)) + abs(len(mine) - len(theirs))
    return Measured(wrong, 0, n_tokens, "tokens")
