"""Widgets bound to a NeuronExplorer: a click on a neuron, or its name in the list, shows its shift and its prompts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ipywidgets as widgets
import plotly.graph_objects as go

from rim_lens.explore.fitted import FitsItsCell
from rim_lens.plots import style

if TYPE_CHECKING:
    from rim_lens.explore.neurons import NeuronExplorer


class NeuronWidgets(widgets.VBox):
    """All neurons by layer and strength, the chosen one's shift, its tokens and prompts."""

    def __init__(self, explorer: NeuronExplorer) -> None:
        self.explorer = explorer
        self._following = False
        self.map = go.FigureWidget(neuron_map(explorer))
        self.neuron = widgets.Dropdown(options=explorer.names, value=explorer.neuron, description="neuron")
        self.shift = go.FigureWidget(explorer.figure()) if explorer.series is not None else None
        self.views = widgets.HTML(layout=widgets.Layout(width="100%"))
        fits = FitsItsCell(layout=widgets.Layout(width="100%"))
        super().__init__([self.map, self.neuron, *([self.shift] if self.shift is not None else []), self.views, fits])
        self.map.data[0].on_click(self.clicked)
        self.neuron.observe(self.chosen, "value")
        explorer.on_change(self.show)
        self.show()

    def clicked(self, trace: Any, points: Any, state: Any) -> None:
        """A click on a point of the map."""
        if points.point_inds:
            self.explorer.select_neuron(self.explorer.names[points.point_inds[0]])

    def chosen(self, change: Any) -> None:
        """A name of the list."""
        if not self._following:
            self.explorer.select_neuron(change["new"])

    def show(self) -> None:
        """From the explorer to the widgets."""
        explorer = self.explorer
        self._following = True
        try:
            self.neuron.value = explorer.neuron
        finally:
            self._following = False
        self.map.data[0].selectedpoints = [explorer.names.index(explorer.neuron)]
        if self.shift is not None:
            wanted = explorer.figure()
            with self.shift.batch_update():
                self.shift.data[0].update(wanted.data[0].to_plotly_json())
                self.shift.layout.title = wanted.layout.title
        self.views.value = explorer.views()


def neuron_map(explorer: NeuronExplorer) -> go.Figure:
    """Every neuron of the set by its layer and its mean activation at the decision position."""
    rows = explorer.table.table
    figure = style.blank(
        "Neurons of the set",
        f"n = {explorer.table.n_off} prompts, thinking off; a click chooses a neuron",
        xaxis={"title": {"text": "layer"}, "zeroline": False},
        yaxis={"title": {"text": "mean activation at the decision position"}},
        height=320,
    )
    figure.add_scatter(
        x=rows["layer"],
        y=rows["off"],
        mode="markers",
        marker={"color": style.BLUE, "size": 9},
        text=rows["neuron"],
        hovertemplate="<b>%{text}</b><br>%{y:.3g}<extra></extra>",
        showlegend=False,
    )
    return figure


def neuron_widgets(explorer: NeuronExplorer) -> NeuronWidgets:
    """Widgets bound to the explorer."""
    return NeuronWidgets(explorer)
