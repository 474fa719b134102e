"""What the page may ask of the model: which model it is, answers with and without heads, attention in a new prompt.

Requests and replies are plain JSON values. One question is answered at a time: whoever asks meanwhile is told so.
"""

import re
import threading
from collections.abc import Callable, Mapping
from typing import Any

from rim_lens.behavior.limits import Budget
from rim_lens.behavior.refusal_score import refusal_tokens
from rim_lens.errors import RimLensError
from rim_lens.explore.answers import Answer, answer
from rim_lens.inference_time.token_attention import token_attention
from rim_lens.model.lens_model import LensModel
from rim_lens.report.page_heads import token_views

Reply = dict[str, Any]
LONGEST_REQUEST = 2000  # characters
MODES = ("off", "on")
MOST_HEADS = 64


class Busy(RimLensError):
    """The model is answering somebody else."""


class PageModel:
    """The audited model behind the page.

    Args:
        model: the model at the audit's reference checkpoint.
        max_new_tokens: longest answer.
        cot_budget: longest CoT of the model's own.
    """

    def __init__(self, model: LensModel, *, max_new_tokens: int = 48, cot_budget: Budget = 96) -> None:
        self.model, self.tokens = model, refusal_tokens(model)
        self._limits: dict[str, Any] = {"max_new_tokens": max_new_tokens, "cot_budget": cot_budget}
        self.modes = modes_of(model)
        self._one_at_a_time = threading.Lock()
        self.questions: Mapping[str, Callable[[Mapping[str, Any]], Reply]] = {
            "answer": self.answer,
            "tokens": self.attention,
        }

    def about(self) -> Reply:
        """Name and size of the model."""
        size = {"layers": self.model.n_layers, "heads": self.model.n_heads}
        return {"model": self.model.name, **size, "modes": list(self.modes)}

    def ask(self, question: str, body: Mapping[str, Any]) -> Reply:
        """Answer one question.

        Raises:
            Busy: another one is being answered.
            RimLensError: what is given makes no sense.
        """
        if not self._one_at_a_time.acquire(blocking=False):
            raise Busy("The model is busy with another question; ask again when it is done.")
        try:
            return self.questions[question](body)
        finally:
            self._one_at_a_time.release()

    def answer(self, question: Mapping[str, Any]) -> Reply:
        """Answers to `request` with thinking `thinking`, as the model is and without `heads` (names, "L12H3")."""
        request, thinking = request_in(question), mode_in(question)
        heads = heads_in(question)
        options: dict[str, Any] = {"thinking": thinking, "tokens": self.tokens, **self._limits}
        reply = {"before": said(answer(self.model, request, **options))}
        if heads:
            reply["after"] = said(answer(self.model, request, without=heads, **options))
        return reply

    def attention(self, question: Mapping[str, Any]) -> Reply:
        """Every head's attention in a request with thinking off and, after the model's own CoT, on."""
        request = request_in(question)
        chats = self.model.render([request])
        if "on" in self.modes:
            budget: dict[str, Any] = {**self._limits, "max_new_tokens": 1}  # the CoT alone is needed
            chats.append(answer(self.model, request, thinking="on", tokens=self.tokens, **budget).chat)
        views = token_views(token_attention(self.model, chats))
        return {"chats": views["chats"], "heads": views["heads"]}


def modes_of(model: LensModel) -> tuple[str, ...]:
    """The thinking modes that the model's chats can be rendered in."""
    try:
        model.render(["?"], thinking="on")
    except RimLensError:  # a template without a think part
        return ("off",)
    return MODES


def said(answer: Answer) -> Reply:
    """An answer as JSON; the page sets its texts as text."""
    return {"score": answer.score, "label": answer.label, "response": answer.response, "cot": answer.cot}


def request_in(question: Mapping[str, Any]) -> str:
    """The request, a text that is not empty and not too long."""
    request = question.get("request")
    if not isinstance(request, str) or not request.strip() or len(request) > LONGEST_REQUEST:
        raise RimLensError(f"A prompt must be a text of at most {LONGEST_REQUEST} characters.")
    return request


def mode_in(question: Mapping[str, Any]) -> Any:
    """The thinking mode, "off" where none is given."""
    mode = question.get("thinking", "off")
    if mode not in MODES:
        raise RimLensError("Thinking must be 'off' or 'on'.")
    return mode


def heads_in(question: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Heads by name; whether the model has them is checked where they are ablated."""
    names = question.get("heads", [])
    if not isinstance(names, list) or len(names) > MOST_HEADS or not all(isinstance(name, str) for name in names):
        raise RimLensError(f"Heads must be a list of at most {MOST_HEADS} names such as L12H3.")
    matches = [re.fullmatch(r"L(\d{1,4})H(\d{1,4})", name) for name in names]
    if None in matches:
        raise RimLensError("A head is named by its layer and its number in it, L12H3 for instance.")
    return [(int(match[1]), int(match[2])) for match in matches if match]
