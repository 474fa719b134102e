"""Rendering chats through a tokenizer's own chat template, in one of three thinking modes.

off: an empty think span (`open` + `close`); on: the prompt ends with `open` and the model writes its CoT;
prefilled: `open` + a given CoT + `close`. Templates with a switch for thinking are asked through it, templates that
open the tag themselves are recognised, and others get the tags as plain text after their generation prompt. Which tags,
and where they come from, is said by `tags` and `tags_from`; what else a template does, by `notes`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import cached_property, partial
from typing import get_args

import numpy as np
from transformers import PreTrainedTokenizerBase

from rim_lens.chat.chat import Chat
from rim_lens.chat.layout import (
    Pieces,
    Turns,
    generation_prompt,
    join_pieces,
    locate,
    pieces_of,
    probe_turns,
)
from rim_lens.chat.own_tags import OwnTags, TagsFrom, own_tags
from rim_lens.chat.segments import Span, Thinking, segment_id
from rim_lens.chat.tags import ThinkTags
from rim_lens.chat.template import DATE, Template
from rim_lens.chat.think_part import cut_think_part, without_answer_tag, written_tags
from rim_lens.chat.tokens import TokenStarts
from rim_lens.errors import RimLensError

ROLES = ("system", "user", "assistant")


class ChatFormat:
    """A tokenizer's chat template and how thinking is switched in it.

    Args:
        tokenizer: a fast tokenizer (character offsets are needed).
        tags: the texts around a CoT, in place of those that the template or its family has; `<think>` where none has
            any.
        chat_template: used in place of the tokenizer's own.
        variables: further variables of the template, such as `{"reasoning_effort": "high"}`.
        date: what a template is given as today, so that renders can be repeated.
        generation_eos: end-of-sequence ids of the generation config, joined to the tokenizer's.

    Raises RimLensError, at first use, when there is no chat template or the tokenizer gives no offsets.

    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        tags: ThinkTags | None = None,
        *,
        chat_template: str | None = None,
        variables: Mapping[str, object] | None = None,
        date: datetime = DATE,
        generation_eos: int | Sequence[int] | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.template = Template(tokenizer, chat_template, variables, date)
        self._given_tags = tags
        eos = [generation_eos] if isinstance(generation_eos, int) else (generation_eos or ())
        self._generation_eos = frozenset(int(token) for token in eos)
        self._tokens = TokenStarts(tokenizer)
        self._probed: dict[bool, Turns] = {}

    def render(
        self,
        request: str | Sequence[Mapping[str, str]],
        *,
        thinking: Thinking = "off",
        cot: str | None = None,
        response: str | None = None,
        system: str | None = None,
    ) -> Chat:
        """Render one request, or a list of messages that ends with the user's, as the prompt of an answer.

        Args:
            request: the user's text, or messages with `role` and `content`; the last must be the user's.
            thinking: "off", "on" or "prefilled".
            cot: the CoT between the tags, for "prefilled" only.
            response: appended after the prompt (teacher forcing); the prompt's tokens are the same without it.
            system: a system prompt before the messages.

        Raises RimLensError for messages that the template refuses or rewrites, and for a CoT in another mode.

        """
        messages = _messages(request, system)
        _check_thinking(thinking, cot)
        render = partial(self.template, thinking=thinking != "off")
        text, places = locate(messages, render, self.template.source, self.tags.close_mark)
        pieces = pieces_of(text, places, self._turns_for(thinking != "off"))
        pieces = self._with_think_part(pieces, thinking, cot)
        chat = self._chat(pieces, messages[-1]["content"], thinking)
        return self.write(chat, response) if response else chat

    # What the template and the tokenizer do

    @cached_property
    def switch(self) -> str | None:
        """Name of the template's variable that switches thinking, None when it has none."""
        return self.template.switch.name if self.template.switch else None

    @property
    def tags(self) -> ThinkTags:
        """The tags in the form the template writes them; as given, or as the family has them, where it writes none."""
        return self._own.tags

    @property
    def tags_from(self) -> TagsFrom:
        """Where the tags come from: "given", "template", "known family", or "default" (plain `<think>`)."""
        return self._own.tags_from

    @cached_property
    def writes_tags(self) -> bool:
        """Whether the template itself writes the tags; if not, they stand after its generation prompt as plain text."""
        parts = [cut_think_part(prompt, self.tags) for prompt in self._generation_prompts]
        return any(part.open or part.close for part in parts)

    @cached_property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the renders should hear, a sentence each."""
        template, notes = self.template, []
        if self.tags_from == "default":
            notes.append("The template has no think tags of its own, so the CoT stands in plain <think> tags.")
        if template.family is not None:
            notes.append(f"The template is of the family {template.family.name}.")
        if template.family is not None and template.family.system_off:
            notes.append(f"Thinking is switched off by {template.family.system_off!r} in the system prompt.")
        if template.writes_date is not None:
            notes.append(f"The template writes a date, which is held at {template.writes_date!r}.")
        if template.doubles_bos:
            notes.append("The template begins with two BOS tokens; one was taken out.")
        if template.takes_parts:
            notes.append("The template takes contents as lists of parts, so texts are passed as one part each.")
        return tuple(notes)

    @cached_property
    def _own(self) -> OwnTags:
        off, on = self._generation_prompts
        if self._given_tags is not None:
            return OwnTags(written_tags(off, on, self._given_tags), "given")
        return own_tags(self.template, self._turns_as_written(True), (off, on))

    @cached_property
    def _generation_prompts(self) -> tuple[str, str]:
        """The template's generation prompts with thinking off and on."""
        off, on = (
            generation_prompt(partial(self.template, thinking=thinking), self._turns_as_written(thinking).user_closing)
            for thinking in (False, True)
        )
        return off, on

    @cached_property
    def open_ids(self) -> tuple[int, ...]:
        """Token ids of the opening tag, as they follow other text."""
        return tuple(self._tokens.encode_after("", self.tags.open).tolist())

    @cached_property
    def close_ids(self) -> tuple[int, ...]:
        """Token ids of the closing tag, as they follow other text: forced when a CoT's budget is spent."""
        return tuple(self._tokens.encode_after("", self.tags.close).tolist())

    @cached_property
    def turn_end_id(self) -> int | None:
        """Id of the special token with which the template ends the assistant's turn; None where it writes none."""
        closing = self._tokens.units(self._turns_for(False).last_closing)
        first = next((unit for unit in closing if unit in self._tokens.added), None)
        return None if first is None else self._tokens.added[first]

    @cached_property
    def eos_ids(self) -> tuple[int, ...]:
        """Ids that end a turn: the tokenizer's, the generation config's and the template's turn closing."""
        ids = set(self._generation_eos)
        if self.tokenizer.eos_token_id is not None:
            ids.add(int(self.tokenizer.eos_token_id))
        if self.turn_end_id is not None:
            ids.add(self.turn_end_id)
        return tuple(sorted(ids))

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of token ids, special tokens and spaces as they are."""
        return self._tokens.decode(token_ids)

    def encode_after(self, before: str, more: str) -> tuple[int, ...]:
        """Token ids of `more` where it follows `before`, whose own tokens stay as they are.

        A text has other tokens alone: sentencepiece tokenizers put a space before it ("▁Sorry" for "Sorry").
        """
        return tuple(self._tokens.encode_after(before, more).tolist())

    def write(self, chat: Chat, text: str, segment: str = "response") -> Chat:
        """A longer chat: `text` appended as `segment`, in the tokens that it has there.

        Segments must come in the order of SEGMENTS, else RimLensError.
        """
        if not text:
            return chat
        longer = chat.extend(self.encode_after(chat.text, text), segment)
        span = Span(segment, len(chat.text), len(chat.text) + len(text))
        return replace(longer, text=chat.text + text, spans=(*chat.spans, span), n_rendered=len(longer))

    # Steps of a render

    def _with_think_part(self, pieces: Pieces, thinking: Thinking, cot: str | None) -> Pieces:
        """The pieces of the whole prompt, its think part in the mode asked for."""
        last_segment, generation = pieces[-1]
        written = cut_think_part(generation if last_segment == "assistant_tag" else "", self.tags)
        before = pieces[:-1] if last_segment == "assistant_tag" else pieces
        if thinking == "off" and written.close:
            think = [("think_open", written.open), ("think_close", written.close)]
        elif thinking == "off" and self._answers_at_once:
            return [*before, ("assistant_tag", generation)]
        elif thinking == "on":
            if not self.tags.open:
                raise RimLensError("thinking 'on' needs an opening tag: give ThinkTags with one.")
            think = [("think_open", self.tags.open)]
        else:
            close = self._empty_close if thinking == "off" else self.tags.close
            think = [("think_open", self.tags.open), ("cot", cot or ""), ("think_close", close)]
        header = written.header
        if not written.open and not written.close:
            header = without_answer_tag(header, self.tags.close_mark) + self._own.lead
        return [*before, ("assistant_tag", header), *think]

    @property
    def _empty_close(self) -> str:
        family = self.template.family
        return (family.empty_close if family and self.tags_from != "given" else "") or self.tags.close

    @property
    def _answers_at_once(self) -> bool:
        """Whether off is the bare generation prompt, as the family has it."""
        family = self.template.family
        return self.tags_from != "given" and family is not None and family.off == "bare"

    def _chat(self, pieces: Pieces, request: str, thinking: Thinking) -> Chat:
        text, spans = "".join(piece for _, piece in pieces), join_pieces(pieces)
        token_ids, starts = self._tokens.encode(text)
        if not len(token_ids):
            raise RimLensError("the chat template renders to no tokens: pass a request or another template.")
        ends = np.array([span.end for span in spans])
        span_of_token = np.minimum(np.searchsorted(ends, starts, side="right"), len(spans) - 1)
        segment_ids = np.array([segment_id(span.segment) for span in spans], dtype=np.int8)[span_of_token]
        decision = len(token_ids) - 1
        return Chat(text, token_ids, segment_ids, thinking, request, decision, tuple(spans), self.decode)

    def _turns_for(self, thinking: bool) -> Turns:
        turns = self._turns_as_written(thinking)
        # An empty think span that the template writes before earlier answers is not part of their header.
        return replace(turns, assistant_header=cut_think_part(turns.assistant_header, self.tags).header)

    def _turns_as_written(self, thinking: bool) -> Turns:
        if thinking not in self._probed:
            bos = str(self.tokenizer.bos_token or "")
            self._probed[thinking] = probe_turns(partial(self.template, thinking=thinking), self._tokens.units, bos)
        return self._probed[thinking]


def _check_thinking(thinking: str, cot: str | None) -> None:
    if thinking not in get_args(Thinking):
        raise RimLensError(f"unknown thinking mode {thinking!r}: use one of {', '.join(get_args(Thinking))}.")
    if thinking == "prefilled" and cot is None:
        raise RimLensError("thinking 'prefilled' needs a CoT: pass cot= (the text between the tags).")
    if thinking != "prefilled" and cot is not None:
        raise RimLensError(f"thinking {thinking!r} takes no CoT: leave cot= out, or use 'prefilled'.")


def _messages(request: str | Sequence[Mapping[str, str]], system: str | None) -> list[dict[str, str]]:
    """The checked messages of a request: an optional system prompt, turns, and the user's last."""
    if isinstance(request, str):
        request = [{"role": "user", "content": request}]
    messages = [dict(message) for message in request]
    if system is not None:
        if messages and messages[0].get("role") == "system":
            raise RimLensError("the messages already begin with a system prompt: leave system= out.")
        messages.insert(0, {"role": "system", "content": system})
    for index, message in enumerate(messages):
        role, content = message.get("role"), message.get("content")
        if role not in ROLES or not isinstance(content, str):
            raise RimLensError(
                f"message {index} must have a role ({', '.join(ROLES)}) and a text content, "
                f"got role {role!r} and content of type {type(content).__name__}."
            )
        if role == "system" and index:
            raise RimLensError(f"message {index} is a system prompt: it must be the first message.")
    if not messages or messages[-1]["role"] != "user":
        raise RimLensError("the last message must be the user's: pass an answer to it as response=.")
    return messages
