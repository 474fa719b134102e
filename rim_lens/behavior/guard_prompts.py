"""The text that a guard model reads: its own chat template or a published prompt, which must hold request and response.

Some templates (Llama Guard 3 1B, Llama Guard 4) take contents as lists of parts, and plain strings vanish from the
prompt. Both forms are tried with marks in place of the texts; a template that shows the marks in neither is refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from jinja2.exceptions import TemplateError
from transformers.utils import cached_file

from rim_lens.behavior.guards import Guard
from rim_lens.errors import RimLensError

Render = Callable[[str, str], list[str]]  # request, response -> the prompts of one item
_REQUEST, _RESPONSE = "REQUEST-goes-here", "RESPONSE-goes-here"


def prompts_of(guard: Guard, tokenizer: Any, instruction: str | None, name: str) -> Render:
    """How a guard's prompts are written; raises `RimLensError` where they would not hold request and response."""
    if guard.prompt is not None:
        text = (tokenizer.bos_token or "") + guard.prompt
        task = instruction or guard.instruction

        def published(request: str, response: str) -> list[str]:
            parts = {"instruction": task, "request": request, "response": response}
            return [text.format(**parts)]

        return published
    if instruction is not None:
        raise RimLensError(
            f"{name} is asked through its own chat template, so instruction= has no effect; leave it out."
        )
    if not tokenizer.chat_template:
        raise RimLensError(f"The guard model {name} has no chat template; give a tokenizer that has one.")
    failure = ""
    for parts in (False, True):

        def templated(request: str, response: str, parts: bool = parts) -> list[str]:
            return [_templated(tokenizer, request, response, options, parts) for options in guard.options]

        try:
            if all(holds(prompt, _REQUEST, _RESPONSE) for prompt in templated(_REQUEST, _RESPONSE)):
                return templated
        except (TemplateError, TypeError, ValueError, KeyError) as error:
            failure = f" ({type(error).__name__}: {str(error)[:80]})"
    raise RimLensError(
        f"The chat template of {name} leaves out the request or the response{failure}, so the guard would judge "
        "another conversation; give a tokenizer with the guard's own template."
    )


def _templated(tokenizer: Any, request: str, response: str, options: Mapping[str, Any], parts: bool) -> str:
    def content(text: str) -> Any:
        return [{"type": "text", "text": text}] if parts else text

    chat = [{"role": "user", "content": content(request)}, {"role": "assistant", "content": content(response)}]
    return str(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True, **options))


def holds(prompt: str, request: str, response: str) -> bool:
    """Whether request and response stand in the prompt, in this order; templates may trim both."""
    start = prompt.find(request.strip())
    return start >= 0 and prompt.find(response.strip(), start + len(request.strip())) >= 0


def fitting(
    render: Render, tokenizer: Any, request: str, response: str, budget: int, name: str
) -> tuple[list[str], bool]:
    """The prompts of one item, and whether the response's end was cut off to fit into `budget` tokens."""
    whole, kept = response, response
    while True:
        prompts = render(request, kept)
        if not all(holds(prompt, request, kept) for prompt in prompts):
            raise RimLensError(
                f"The prompt of {name} for the request {request[:60]!r} does not hold the request and the response "
                "as they are, so the guard would judge another text; leave this answer out or use another judge."
            )
        excess = max(len(encoded(tokenizer, prompt)) for prompt in prompts) - budget
        if excess <= 0:
            return prompts, kept != whole
        ids = tokenizer(kept, add_special_tokens=False)["input_ids"][:-excess]
        if not ids:
            raise RimLensError(
                f"The request {request[:60]!r} leaves no room for a response in {budget} tokens of {name}; "
                "raise max_length or leave the request out."
            )
        kept = tokenizer.decode(ids)


def encoded(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a prompt that holds its own special tokens."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def next_token(tokenizer: Any, prompt: str, word: str) -> int | None:
    """The token with which `word` begins right after `prompt`; None where the border is within a token."""
    before, with_word = encoded(tokenizer, prompt), encoded(tokenizer, prompt + word)
    return with_word[len(before)] if with_word[: len(before)] == before and len(with_word) > len(before) else None


def template_from_processor(model: str) -> str | None:
    """The template that multimodal guards keep beside their tokenizer, in chat_template.json."""
    path = cached_file(model, "chat_template.json", _raise_exceptions_for_missing_entries=False)
    if path is None:
        return None
    with open(path, encoding="utf-8") as file:
        return str(json.load(file)["chat_template"])
