"""One answer of the model, as it is or without some heads.

Refusal score at the decision position, text, and what a judge calls it.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

from rim_lens.behavior.generate import generate
from rim_lens.behavior.judge import RefusalJudge
from rim_lens.behavior.limits import Budget
from rim_lens.behavior.refusal_score import RefusalTokens, refusal_tokens
from rim_lens.chat.chat import Chat
from rim_lens.chat.segments import Thinking
from rim_lens.intervene import ablate_heads
from rim_lens.model.lens_model import LensModel
from rim_lens.units import AnyHead


@dataclass(frozen=True)
class Answer:
    """What the model said.

    `score` in nats, the judge's `label`, the CoT (empty with thinking off), and the chat before it.
    """

    score: float
    response: str
    label: str
    cot: str
    chat: Chat


def answer(
    model: LensModel,
    prompt: str | Chat,
    *,
    thinking: Thinking = "off",
    without: Sequence[AnyHead] = (),
    tokens: RefusalTokens | None = None,
    max_new_tokens: int = 48,
    cot_budget: Budget = 96,
) -> Answer:
    """Answer one prompt greedily, with the outputs of some heads set to zero throughout, CoT and answer included.

    Args:
        model: the model.
        prompt: a request, or a rendered chat.
        thinking: "off" or "on" for a request.
        without: the heads to ablate.
        tokens: refusal tokens of the score; the tokenizer's common ones by default.
        max_new_tokens: longest answer.
        cot_budget: longest CoT of the model's own.

    Raises:
        RimLensError: an unknown head, or a prompt longer than the context.
    """
    tokens = tokens or refusal_tokens(model)
    with ablate_heads(model, list(without)) if without else nullcontext():
        said = generate(
            model,
            [prompt],  # type: ignore[arg-type]
            thinking=thinking,
            max_new_tokens=max_new_tokens,
            cot_budget=cot_budget,
            temperature=0,
            decision_score=tokens.score,
            progress=False,
        )[0]
    judged = RefusalJudge()([said.chat.request], [said.response], [said.cot], [said.truncated])[0]
    assert said.score is not None
    return Answer(said.score, said.response, judged.label, said.cot, said.chat)
