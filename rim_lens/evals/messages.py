"""From Inspect's messages and generation options to a question for a LensModel, and from its answer back.

    thinking off         reasoning_effort="none", or nothing about reasoning
    thinking on          reasoning_tokens=N, the longest CoT; max_tokens counts the answer after it
                         reasoning_effort="low" and so on: the N that Inspect gives to it
    thinking prefilled   the last message is the assistant's and holds its reasoning (`ContentReasoning`) only

What cannot be honoured is an error. Reasoning of earlier turns is left out, as chat templates leave it out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessage,
    ChatMessageAssistant,
    ContentReasoning,
    ContentText,
    GenerateConfig,
    ModelCall,
    ModelOutput,
    ModelUsage,
)
from inspect_ai.model._reasoning import effort_to_reasoning_tokens  # for models that take a budget

from rim_lens.behavior.generate import Generation
from rim_lens.chat.chat import Chat
from rim_lens.chat.segments import Thinking
from rim_lens.errors import RimLensError

HONOURED = {"max_tokens", "temperature", "seed", "reasoning_tokens", "reasoning_effort", "reasoning_history"}
INSPECTS_OWN = {  # acted on before a provider is asked
    "system_message",
    "max_retries",
    "timeout",
    "attempt_timeout",
    "stream_idle_timeout",
    "max_connections",
    "adaptive_connections",
    "fail_on_refusal",
    "cache",
}


@dataclass(frozen=True)
class Question:
    """One request to the model, with everything that its answer depends on; `seed` matters where it is sampled."""

    messages: tuple[dict[str, str], ...]
    thinking: Thinking
    cot: str | None
    max_new_tokens: int
    cot_budget: int
    temperature: float
    seed: int | None
    epoch: int

    @property
    def kind(self) -> tuple[int, int, float]:
        """What must be equal in questions that are answered together."""
        return self.max_new_tokens, self.cot_budget, self.temperature


def check_config(config: GenerateConfig) -> None:
    """Raise a RimLensError for options that a LensModel cannot honour."""
    options = {name: value for name, value in config if value is not None and value is not False}
    unknown = sorted(set(options) - HONOURED - INSPECTS_OWN)
    if unknown:
        raise RimLensError(
            f"A rim_lens model cannot honour {', '.join(unknown)}: leave it out; it takes "
            f"{', '.join(sorted(HONOURED))}."
        )
    effort = config.reasoning_effort
    if effort == "none" and config.reasoning_tokens:
        raise RimLensError(
            f"reasoning_effort 'none' and reasoning_tokens {config.reasoning_tokens} contradict each other: give one."
        )
    if config.reasoning_history not in (None, "auto", "last"):
        raise RimLensError(
            f"reasoning_history {config.reasoning_history!r} cannot be honoured: only the CoT of the last message is "
            "shown."
        )


def question_of(input: Sequence[ChatMessage], config: GenerateConfig, *, max_tokens: int, epoch: int) -> Question:
    """The question that Inspect's input asks.

    Args:
        input: messages; the last is the user's, or the assistant's with a CoT to prefill.
        config: generation options.
        max_tokens: longest answer where `config` has none.
        epoch: of the sample; a repeated question is sampled anew in each.

    Raises:
        RimLensError: an option that cannot be honoured, content other than text, a half-written answer.

    """
    check_config(config)
    messages, cot = list(input), None
    budget = config.reasoning_tokens or effort_to_reasoning_tokens(config.reasoning_effort) or 0
    if messages and isinstance(messages[-1], ChatMessageAssistant):
        cot = prefilled_cot(messages.pop())
        if budget:
            raise RimLensError(
                "A prefilled CoT is not written by the model: leave reasoning_tokens and reasoning_effort out."
            )
    return Question(
        messages=tuple({"role": message.role, "content": text_of(message)} for message in messages),
        thinking="prefilled" if cot is not None else "on" if budget else "off",
        cot=cot,
        max_new_tokens=config.max_tokens or max_tokens,
        cot_budget=budget,
        temperature=config.temperature or 0.0,
        seed=config.seed,
        epoch=epoch,
    )


def text_of(message: ChatMessage) -> str:
    """The text of a message, its reasoning left out; a RimLensError where it holds anything else."""
    for part in message.content_list:
        if not isinstance(part, ContentText | ContentReasoning):
            raise RimLensError(
                f"A rim_lens model takes text only, not {part.type} content in a {message.role} message."
            )
    if message.role == "tool" or getattr(message, "tool_calls", None):
        raise RimLensError("A rim_lens model calls no tools: leave tool calls and their results out of the messages.")
    return message.text


def prefilled_cot(message: ChatMessage) -> str:
    """The CoT that an assistant's last message gives."""
    cot = reasoning_in([message])
    if cot is None or text_of(message).strip():
        raise RimLensError(
            "The last message is the assistant's and must hold its reasoning alone (ContentReasoning): "
            "a rim_lens model goes on after a CoT, not after a half-written answer."
        )
    return cot


def reasoning_in(messages: Sequence[ChatMessage]) -> str | None:
    """The CoT that stands in the messages, None where there is none."""
    parts = [
        part.reasoning for message in messages for part in message.content_list if isinstance(part, ContentReasoning)
    ]
    return "\n\n".join(parts) if parts else None


def output_of(generation: Generation, chat: Chat, name: str, notes: dict[str, Any]) -> ModelOutput:
    """An answer as Inspect logs it; `chat` is the prompt before the model wrote, `notes` go into the metadata.

    Output tokens are those of the CoT, the close tag and the answer, the end-of-turn token not counted.
    """
    n_written = len(generation.full_chat) - len(chat)
    n_reasoning = int(generation.full_chat.where("cot")[len(chat) :].sum())
    content: list[Any] = [ContentText(text=generation.response)]
    if chat.thinking == "on":
        content.insert(0, ContentReasoning(reasoning=generation.cot))
    message = ChatMessageAssistant(content=content, model=name, source="generate")
    return ModelOutput(
        model=name,
        choices=[ChatCompletionChoice(message=message, stop_reason="max_tokens" if generation.truncated else "stop")],
        usage=ModelUsage(
            input_tokens=len(chat),
            output_tokens=n_written,
            total_tokens=len(chat) + n_written,
            reasoning_tokens=n_reasoning,
        ),
        metadata=notes | ({} if generation.closed is None else {"cot_closed_by_itself": generation.closed}) or None,
    )


def call_of(question: Question, chat: Chat, generation: Generation, changed: dict[str, Any]) -> ModelCall:
    """The call as it was really made: the rendered prompt, its tokens, what was ablated, the tokens written."""
    request = {
        "prompt": chat.text,
        "token_ids": chat.token_ids.tolist(),
        "thinking": question.thinking,
        "max_new_tokens": question.max_new_tokens,
        "cot_budget": question.cot_budget,
        "temperature": question.temperature,
        **changed,
    }
    response = {
        "cot": generation.cot,
        "response": generation.response,
        "token_ids": generation.full_chat.token_ids[len(chat) :].tolist(),
        "cot_closed_by_itself": generation.closed,
        "truncated": generation.truncated,
    }
    return ModelCall.create(request, response)
