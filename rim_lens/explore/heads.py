"""explore_heads: choose a head in a map, read what it attends to, ablate it and watch refusal change.

explorer = explore_heads(model, requests, sweep)      # the last line of a cell shows the linked views
explorer.select_head(12, 3)                           # a click on the map does the same
explorer.ablate((12, 3))
explorer.before("off").score, explorer.after("off").score
"""

from collections.abc import Sequence
from html import unescape
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from rim_lens.behavior.limits import Budget
from rim_lens.behavior.refusal_score import RefusalTokens, refusal_tokens
from rim_lens.chat.chat import Chat
from rim_lens.chat.segments import Thinking
from rim_lens.errors import RimLensError
from rim_lens.explore.answers import Answer, answer
from rim_lens.explore.markup import answer_html, columns, frame, names, tokens_html
from rim_lens.explore.state import Explorer
from rim_lens.inference_time.span_attention import span_attention
from rim_lens.inference_time.token_attention import TokenAttention, token_attention
from rim_lens.model.lens_model import LensModel
from rim_lens.model.requests import Prompts, as_requests
from rim_lens.plots.attention import segment_map
from rim_lens.results import Result
from rim_lens.units import AnyHead, Head
from rim_lens.words import condition


class HeadExplorer(Explorer):
    """The chosen head, prompt, thinking modes and ablated heads.

    Passes run when their result is asked for.

    `maps` are head maps by title; `map` is the title of the one that is shown.
    """

    def __init__(
        self,
        model: LensModel,
        chats: Sequence[Chat] | Sequence[str],
        maps: dict[str, go.Figure],
        tokens: RefusalTokens,
        max_new_tokens: int,
        cot_budget: Budget,
    ) -> None:
        super().__init__()
        self.model, self.maps, self.tokens = model, maps, tokens
        self.requests = list(dict.fromkeys(chat.request if isinstance(chat, Chat) else chat for chat in chats))
        self.head = Head(0, 0)
        self.prompt = 0
        self.thinking: tuple[Thinking, ...] = ("off",)
        self.ablated: tuple[Head, ...] = ()
        self.map = next(iter(maps))
        self._given: dict[tuple[str, str], Chat] = {
            (chat.request, chat.thinking): chat for chat in chats if isinstance(chat, Chat)
        }
        self._limits: dict[str, Any] = {"max_new_tokens": max_new_tokens, "cot_budget": cot_budget}
        self._answers: dict[tuple[str, Thinking, tuple[Head, ...]], Answer] = {}
        self._attention: dict[tuple[str, Thinking], TokenAttention] = {}

    def __repr__(self) -> str:
        without = f", without {names(self.ablated)}" if self.ablated else ""
        return f"HeadExplorer({names([self.head])}, prompt {self.prompt + 1} of {len(self.requests)}{without})"

    # ---- what is chosen -------------------------------------------------------------------------------------------
    def select_head(self, layer: int, head: int) -> None:
        """Show this head. Raises RimLensError for one that the model lacks."""
        self.head = self._checked((layer, head))
        self._changed()

    def select_prompt(self, index: int) -> None:
        """Show this prompt; indices go round, so that one more than the last is the first."""
        self.prompt = int(index) % len(self.requests)
        self._changed()

    def ask(self, request: str) -> None:
        """Show a request of one's own; it joins the prompts. Raises RimLensError for an empty one."""
        if not request.strip():
            raise RimLensError("There is no request to ask; write one.")
        if request not in self.requests:
            self.requests.append(request)
        self.select_prompt(self.requests.index(request))

    def set_thinking(self, *modes: Thinking) -> None:
        """Show these modes side by side: "off", "on" or both, or one that a chat was given in."""
        request = self.requests[self.prompt]
        for mode in modes:
            if mode not in ("off", "on") and (request, mode) not in self._given:
                raise RimLensError(f"There is no chat with thinking {mode!r} of this prompt; use 'off' or 'on'.")
        if not modes:
            raise RimLensError("At least one thinking mode must be shown: 'off' or 'on'.")
        self.thinking = tuple(dict.fromkeys(modes))
        self._changed()

    def select_map(self, title: str) -> None:
        """Show another of the maps."""
        if title not in self.maps:
            raise RimLensError(f"There is no map {title!r}; there are {', '.join(self.maps)}.")
        self.map = title
        self._changed()

    def ablate(self, *heads: AnyHead) -> None:
        """Silence these heads in `after`, in place of those silenced before; none restores the model as it is."""
        self.ablated = tuple(dict.fromkeys(self._checked(head) for head in heads))
        self._changed()

    # ---- what follows from it -------------------------------------------------------------------------------------
    def looks_at(self, mode: Thinking) -> pd.DataFrame:
        """The prompt's tokens with the head's attention from the decision position (columns text, segment, weight)."""
        key = (self.requests[self.prompt], mode)
        if key not in self._attention:
            chat = self._given[key] if key in self._given else self._chat(mode)
            self._attention[key] = token_attention(self.model, [chat])
        return self._attention[key].of(0, self.head)

    def before(self, mode: Thinking) -> Answer:
        """The answer of the model as it is."""
        return self._answer(mode, ())

    def after(self, mode: Thinking) -> Answer:
        """The answer without the ablated heads."""
        return self._answer(mode, self.ablated)

    def figure(self) -> go.Figure:
        """The map with the chosen head framed, and every ablated head with dots."""
        return go.Figure(self.maps[self.map]).update_layout(shapes=self.frames())

    def frames(self) -> list[dict[str, Any]]:
        """The frames of the ablated heads and of the chosen one."""
        return [*(frame(head, dash="dot") for head in self.ablated), frame(self.head)]

    def token_views(self) -> str:
        """The chosen head's tokens in the modes shown, as HTML."""
        return columns(*(tokens_html(f"{names([self.head])}, {condition(m)}", self.looks_at(m)) for m in self.thinking))

    def answer_views(self) -> str:
        """Answers before and after ablation in the modes shown, as HTML."""
        parts = []
        for mode in self.thinking:
            parts.append(answer_html(f"All heads, {condition(mode)}", self.before(mode)))
            if self.ablated:
                parts.append(answer_html(f"Without {names(self.ablated)}, {condition(mode)}", self.after(mode)))
        return columns(*parts)

    def widget(self) -> Any:
        """See `Explorer`."""
        from rim_lens.explore.head_widgets import head_widgets

        return head_widgets(self)

    def static(self) -> list[Any]:
        """See `Explorer`."""
        from IPython.display import HTML

        return [self.figure(), HTML(self.token_views())]

    def _answer(self, mode: Thinking, without: tuple[Head, ...]) -> Answer:
        key = (self.requests[self.prompt], mode, without)
        if key not in self._answers:
            cot = self._given.get(key[:2]) if mode not in ("off", "on") else None
            self._answers[key] = answer(
                self.model, cot or key[0], thinking=mode, without=without, tokens=self.tokens, **self._limits
            )
        return self._answers[key]

    def _chat(self, mode: Thinking) -> Chat:
        """The chat up to the decision position; with thinking on the model writes its CoT first."""
        if mode == "on":
            return self.before(mode).chat
        return self.model.render(self.requests[self.prompt], thinking=mode)[0]

    def _checked(self, head: AnyHead) -> Head:
        head = Head.parse(head)
        layer, index = head
        if not (0 <= layer < self.model.n_layers and 0 <= index < self.model.n_heads):
            raise RimLensError(
                f"There is no head {head}; the model has {self.model.n_layers} layers of {self.model.n_heads} heads."
            )
        return head


def explore_heads(
    model: LensModel,
    prompts: Prompts,
    *results: Result,
    tokens: RefusalTokens | None = None,
    max_new_tokens: int = 48,
    cot_budget: Budget = 96,
) -> HeadExplorer:
    """Linked views of heads for a notebook; the object that is returned shows itself and works without one.

    Args:
        model: the model.
        prompts: requests, prompts or chats; the chats' own tokens are read for attention in their mode.
        results: what the maps show: `AblationSweep`, `RefusalHeads`, `PatchingSweep` and other results with a head map;
            without any, the attention to the think tags.
        tokens: refusal tokens of the score; the tokenizer's common ones by default.
        max_new_tokens: longest answer.
        cot_budget: longest CoT of the model's own.

    Raises:
        RimLensError: no prompts, or a result without a head map.
    """
    chats = as_requests(prompts)
    maps = dict(head_map_of(result) for result in results) or dict([attention_map(model, chats)])
    tokens = tokens or refusal_tokens(model)
    explorer = HeadExplorer(model, chats, maps, tokens, max_new_tokens, cot_budget)  # type: ignore[arg-type]
    strongest = getattr(results[0], "ranked", None) if results else None
    if strongest is not None:
        first = results[0].to_dataframe().iloc[0]
        explorer.head = Head(int(first["layer"]), int(first["head"]))
    return explorer


def head_map_of(result: Result) -> tuple[str, go.Figure]:
    """The title and the figure of a result's head map.

    Raises:
        RimLensError: its figure is not a map of heads.
    """
    figure = result.plot()
    if (figure.layout.meta or {}).get("cells") != "heads":
        raise RimLensError(f"A {type(result).__name__} has no map of heads; pass an ablation sweep or refusal heads.")
    return unescape(str(figure.layout.title.text)), figure


def attention_map(model: LensModel, chats: Sequence[Any]) -> tuple[str, go.Figure]:
    """Every head's mean attention to the closing think tag with thinking off.

    To the request where there is no such tag.
    """
    rendered = [chat for chat in chats if isinstance(chat, Chat)] or model.render(list(chats))
    spans = span_attention(model, rendered)
    has_tag = any(bool(chat.where("think_close").any()) for chat in rendered)
    figure = segment_map(spans, "think_close" if has_tag else "user")
    return unescape(str(figure.layout.title.text)), figure
