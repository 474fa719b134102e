"""Widgets bound to a HeadExplorer: they call its methods and show what it says, and hold no state of their own."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

import ipywidgets as widgets
import plotly.graph_objects as go

from rim_lens.errors import RimLensError
from rim_lens.explore.fitted import FitsItsCell
from rim_lens.explore.markup import names

if TYPE_CHECKING:
    from rim_lens.explore.heads import HeadExplorer

MODES = {"thinking off": ("off",), "thinking on": ("on",), "side by side": ("off", "on")}
WIDE = widgets.Layout(width="100%")


class HeadWidgets(widgets.VBox):
    """Head map, prompt and mode, tokens, and answers with and without the ablated heads."""

    def __init__(self, explorer: HeadExplorer) -> None:
        self.explorer = explorer
        self._following = False
        self.figure = go.FigureWidget(explorer.figure())
        self.maps = widgets.Dropdown(options=list(explorer.maps), value=explorer.map, description="map", layout=WIDE)
        self.layer = widgets.BoundedIntText(min=0, max=explorer.model.n_layers - 1, description="layer")
        self.head = widgets.BoundedIntText(min=0, max=explorer.model.n_heads - 1, description="head")
        self.prompt = widgets.Dropdown(options=self.choices(), description="prompt", layout=WIDE)
        self.before, self.after = (widgets.Button(description=name) for name in ("previous", "next"))
        self.own = widgets.Text(placeholder="a request of your own", description="or ask", layout=WIDE)
        self.read = widgets.Button(description="Read it")
        self.mode = widgets.ToggleButtons(options=list(MODES))
        self.ablate, self.restore = widgets.Button(), widgets.Button(description="Restore all heads")
        self.state, self.tokens, self.answers = widgets.HTML(), widgets.HTML(layout=WIDE), widgets.HTML(layout=WIDE)
        super().__init__(
            [
                self.maps,
                self.figure,
                widgets.HBox([self.layer, self.head, self.ablate, self.restore]),
                widgets.HBox([self.prompt, self.before, self.after]),
                widgets.HBox([self.own, self.read]),
                widgets.HBox([self.mode, self.state]),
                self.tokens,
                self.answers,
                FitsItsCell(layout=WIDE),
            ]
        )
        self._bind()
        explorer.on_change(self.show)
        self.show()

    def _bind(self) -> None:
        """From widgets to the explorer."""
        explorer = self.explorer
        self._follow_clicks()
        self.maps.observe(lambda change: self.do(explorer.select_map, change["new"]), "value")
        for box in (self.layer, self.head):
            box.observe(lambda _: self.do(explorer.select_head, self.layer.value, self.head.value), "value")
        self.prompt.observe(lambda change: self.do(explorer.select_prompt, change["new"]), "value")
        self.before.on_click(lambda _: self.do(explorer.select_prompt, explorer.prompt - 1))
        self.after.on_click(lambda _: self.do(explorer.select_prompt, explorer.prompt + 1))
        self.read.on_click(lambda _: self.do(explorer.ask, self.own.value))
        self.mode.observe(lambda change: self.do(explorer.set_thinking, *MODES[change["new"]]), "value")
        self.ablate.on_click(lambda _: self.do(explorer.ablate, *explorer.ablated, explorer.head))
        self.restore.on_click(lambda _: self.do(explorer.ablate))

    def choices(self) -> list[tuple[str, int]]:
        """The prompts of the list, numbered."""
        return [(f"{i + 1}. {request[:90]}", i) for i, request in enumerate(self.explorer.requests)]

    def _follow_clicks(self) -> None:
        """A cell can be chosen whether its head was measured or is hatched."""
        for trace in self.figure.data:
            trace.on_click(self.clicked)

    def clicked(self, trace: Any, points: Any, state: Any) -> None:
        """A click on the map."""
        if points.xs:
            self.do(self.explorer.select_head, points.xs[0], points.ys[0])

    def do(self, change: Any, *arguments: Any) -> None:
        """Change the explorer, unless the widgets are just being set to what it says; errors become a sentence."""
        if self._following:
            return
        self.state.value = "working…"
        try:
            change(*arguments)
            self.state.value = f"ablated: {names(self.explorer.ablated)}" if self.explorer.ablated else ""
        except RimLensError as error:
            self.state.value = escape(str(error))

    def show(self) -> None:
        """From the explorer to the widgets."""
        explorer = self.explorer
        self._following = True
        try:
            self.layer.value, self.head.value = explorer.head
            if len(self.prompt.options) != len(explorer.requests):
                self.prompt.options = self.choices()
            self.prompt.value = explorer.prompt
            self.mode.value = next((name for name, modes in MODES.items() if modes == explorer.thinking), None)
            self.ablate.description = f"Ablate {names([explorer.head])}"
            if self.maps.value != explorer.map:
                self.maps.value = explorer.map
            self._show_map()
        finally:
            self._following = False
        self.tokens.value = explorer.token_views()
        self.answers.value = explorer.answer_views()

    def _show_map(self) -> None:
        """The map that is chosen, its head framed."""
        wanted = self.explorer.figure()
        if self.figure.layout.title.text != wanted.layout.title.text:
            with self.figure.batch_update():
                self.figure.data = []
                self.figure.add_traces(wanted.data)
                self.figure.layout = wanted.layout
            self._follow_clicks()
        self.figure.layout.shapes = self.explorer.frames()


def head_widgets(explorer: HeadExplorer) -> HeadWidgets:
    """Widgets bound to the explorer."""
    return HeadWidgets(explorer)
