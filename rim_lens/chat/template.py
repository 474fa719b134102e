"""A tokenizer's chat template as a function of messages: its thinking switch, its form of contents, its date.

What a template does besides writing messages is made visible here: a date is pinned, a doubled BOS is taken out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any, NamedTuple

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from rim_lens.chat.families import Family, family_of
from rim_lens.errors import RimLensError

Messages = Sequence[Mapping[str, Any]]

# transformers passes no functions to a template, so the date is held by a macro in front of it.
FORMATS = re.compile(r"(['\"])((?:(?!\1).)*%[A-Za-z-](?:(?!\1).)*)\1")
HELD_DATE = (
    "{% macro strftime_now(format) %}{{ held_dates[format] if format in held_dates else "
    "raise_exception('the format of its date is not a plain text') }}{% endmacro %}\n"
)
DATE = datetime(2024, 7, 26)  # what Llama 3's templates write where they are not given a date
MARK = "\uf8f0"


class Switch(NamedTuple):
    """A template's variable for thinking; `None` as a value leaves the variable out."""

    name: str
    off: object
    on: object


SWITCHES = (
    Switch("enable_thinking", False, True),
    Switch("thinking", False, True),
    Switch("reasoning", False, True),
    Switch("thinking_budget", 0, None),
    Switch("reasoning_effort", "none", "high"),
)
TAKES_NO_EFFORT = re.compile(r"reasoning_effort[^%}]{0,80}['\"]none['\"]|['\"]none['\"][^%}]{0,80}reasoning_effort")


def read_variables(written: Sequence[str]) -> dict[str, object]:
    """Template variables from NAME=VALUE as a command line gives them; a value that is JSON is read as JSON.

    Raises:
        RimLensError: an entry without a name or without `=`.

    """
    read = dict[str, object]()
    for one in written:
        name, equals, value = one.partition("=")
        if not equals or not name.isidentifier():
            raise RimLensError(f"A template variable is NAME=VALUE, as reasoning_effort=high, got {one!r}.")
        try:
            read[name] = json.loads(value)
        except ValueError:
            read[name] = value
    return read


class Template:
    """A chat template with everything it needs to render.

    Args:
        tokenizer: the template's tokenizer.
        chosen: the text or name of a template in place of the tokenizer's default.
        variables: further variables of the template, such as `reasoning_effort`.
        date: what the template is given as today.

    Raises RimLensError, at first use, when there is no template.

    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        chosen: str | None = None,
        variables: Mapping[str, object] | None = None,
        date: datetime = DATE,
    ) -> None:
        self.tokenizer = tokenizer
        self.chosen = chosen
        self.variables = dict(variables or {})
        self.date = date

    def __call__(self, messages: Messages, with_prompt: bool, thinking: bool | None = None) -> str:
        """The rendered messages, the thinking switch off or on (None: not set).

        Raises RimLensError where the template refuses the messages.
        """
        switched = {}
        if thinking is not None and self.switch is not None:
            value = self.switch.on if thinking else self.switch.off
            switched = {} if value is None else {self.switch.name: value}
        if thinking is not None and self.family is not None:
            messages = _with_system_line(messages, self.family.system_on if thinking else self.family.system_off)
        return self._without_second_bos(self._apply(messages, with_prompt, self.date, switched))

    @cached_property
    def family(self) -> Family | None:
        """The row of the table of families that fits, None where none does."""
        return family_of(self.source, str(getattr(self.tokenizer, "name_or_path", "") or ""))

    @cached_property
    def source(self) -> str:
        """The template's text."""
        if self.chosen is None and not self.tokenizer.chat_template:
            name = getattr(self.tokenizer, "name_or_path", "") or "this model"
            raise RimLensError(
                f"the tokenizer of {name} has no chat template: pass chat_template=, or use a chat model "
                "(its name often ends in -Instruct or -Chat)."
            )
        try:
            return str(self.tokenizer.get_chat_template(self.chosen))
        except ValueError as error:  # several named templates, none of them the default
            raise RimLensError(
                f"no chat template is the tokenizer's default ({error}): pass chat_template= with a name."
            ) from error

    @cached_property
    def switch(self) -> Switch | None:
        """The variable that switches thinking, None where there is none or the caller set it."""
        user = [{"role": "user", "content": "x"}]
        for switch in SWITCHES:
            if switch.name in self.variables:
                return None
            if switch.name not in self.source:
                continue
            if switch.name == "reasoning_effort" and not TAKES_NO_EFFORT.search(self.source):
                continue  # gpt-oss writes any word into its system prompt, and has none for "off"
            off, on = (
                self._apply(user, True, self.date, {} if value is None else {switch.name: value})
                for value in (switch.off, switch.on)
            )
            if off != on:
                return switch
        return None

    @cached_property
    def takes_parts(self) -> bool:
        """Whether contents must be lists of parts: the template leaves plain strings out or refuses them."""
        user = [{"role": "user", "content": MARK}]
        return not self._writes(user, False) and self._writes(user, True)

    @cached_property
    def writes_date(self) -> str | None:
        """The date as the template writes it, None where it writes none."""
        user = [{"role": "user", "content": "x"}]
        here, there = (self._apply(user, True, date, {}) for date in (self.date, datetime(1999, 11, 13)))
        if here == there:
            return None
        words = set(there.split())
        return " ".join(word for word in here.split() if word not in words)

    @cached_property
    def doubles_bos(self) -> bool:
        """Whether the template writes its first token twice; `__call__` takes the second one out."""
        bos = str(self.tokenizer.bos_token or "")
        text = self._apply([{"role": "user", "content": "x"}], True, self.date, {})
        return bool(bos) and text.startswith(bos + bos)

    def _writes(self, messages: Messages, as_parts: bool) -> bool:
        try:
            return MARK in self._rendered(_in_parts(messages) if as_parts else messages, True, self.date, {})
        except (TemplateError, TypeError, ValueError):
            return False

    def _without_second_bos(self, text: str) -> str:
        bos = str(self.tokenizer.bos_token or "")
        return text[len(bos) :] if self.doubles_bos and text.startswith(bos + bos) else text

    def _apply(self, messages: Messages, with_prompt: bool, date: datetime, switched: Mapping[str, object]) -> str:
        try:
            return self._rendered(_in_parts(messages) if self.takes_parts else messages, with_prompt, date, switched)
        except (TemplateError, TypeError, ValueError) as error:
            raise RimLensError(
                f"the chat template refuses these messages ({str(error).strip().rstrip('.')}): "
                "check the order of their roles, and whether the template takes a system prompt."
            ) from error

    def _rendered(self, messages: Messages, with_prompt: bool, date: datetime, switched: Mapping[str, object]) -> str:
        variables = {**self.variables, **switched}
        source = self.source
        if "strftime_now" in source:
            variables["held_dates"] = {form: date.strftime(form) for _, form in FORMATS.findall(source)}
            source = HELD_DATE + source
        return str(
            self.tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                chat_template=source,
                add_generation_prompt=with_prompt,
                tokenize=False,
                **variables,
            )
        )


def _with_system_line(messages: Messages, line: str) -> Messages:
    """The messages with a line of the system prompt that switches thinking."""
    if not line:
        return messages
    if not messages or messages[0]["role"] != "system":
        return [{"role": "system", "content": line}, *messages]
    content = str(messages[0]["content"])
    return [{**messages[0], "content": f"{content}\n\n{line}" if content.strip() else line}, *messages[1:]]


def _in_parts(messages: Messages) -> list[dict[str, object]]:
    return [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in messages]
