"""explore_neurons: choose a neuron and see its activation shift over checkpoints and the prompts that fire it most.

explorer = explore_neurons(model, neurons, prompts, series)
explorer.select_neuron("L29N269")
explorer.shift()                # relative change at every checkpoint, as in `training_time.shift`, of this neuron alone
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from rim_lens.capture.neuron_activations import NeuronActivations
from rim_lens.capture.neuron_sets import NeuronRows, neuron_names, neuron_rows
from rim_lens.capture.neurons import neuron_activations
from rim_lens.chat.chat import Chat
from rim_lens.errors import RimLensError
from rim_lens.explore.markup import columns, table_html
from rim_lens.explore.state import Explorer
from rim_lens.model.as_chats import as_chats
from rim_lens.model.lens_model import LensModel
from rim_lens.model.requests import Prompts
from rim_lens.plots import style
from rim_lens.training_time.checkpoints import Checkpoints
from rim_lens.training_time.neuron_table import NeuronTable, neuron_table
from rim_lens.training_time.series_measures import REQUEST_AND_ANSWER
from rim_lens.training_time.shift import prompt_resamples, relative_change, resampled_f

RESAMPLES = 2000


class NeuronExplorer(Explorer):
    """What is chosen: one neuron of a set. The series is measured once, when a shift is first asked for."""

    def __init__(
        self,
        model: LensModel,
        rows: np.ndarray,
        chats: Sequence[Chat],
        series: Checkpoints | None,
        table: NeuronTable,
        batch_size: int,
        seed: int,
    ) -> None:
        super().__init__()
        self.model, self.rows, self.chats, self.series, self.table = model, rows, chats, series, table
        self.names = neuron_names(rows)
        self.neuron = self.names[0]
        self._batch_size, self._seed = batch_size, seed
        self._shift: pd.DataFrame | None = None

    def __repr__(self) -> str:
        series = f", {len(self.series)} checkpoints" if self.series is not None else ""
        return f"NeuronExplorer({self.neuron} of {len(self.names)} neurons, {len(self.chats)} prompts{series})"

    def select_neuron(self, name: str) -> None:
        """Show this neuron ("L12N345"). Raises RimLensError for one that is not in the set."""
        if name not in self.names:
            raise RimLensError(
                f"There is no neuron {name!r} in the set; its first ones are {', '.join(self.names[:5])}."
            )
        self.neuron = name
        self._changed()

    def top_prompts(self) -> pd.DataFrame:
        """The prompts with the largest |a| of the neuron at one of their tokens, largest first."""
        rows = self.table.firing[self.table.firing["neuron"] == self.neuron]
        return rows.drop(columns="neuron").reset_index(drop=True)

    def about(self) -> pd.Series:
        """The neuron's row in the neuron table: promoted and suppressed tokens, mean activation."""
        return self.table.table.set_index("neuron").loc[self.neuron]

    def shift(self) -> pd.DataFrame:
        """One row per checkpoint.

        Mean |a| over the prompts before and after, relative change with its 95 % bootstrap interval.
        """
        every = self.shifts()
        return every[every["neuron"] == self.neuron].drop(columns="neuron").reset_index(drop=True)

    def shifts(self) -> pd.DataFrame:
        """The same for every neuron of the set."""
        if self.series is None:
            raise RimLensError("A shift over checkpoints needs a series; pass series= to explore_neurons.")
        if self._shift is None:
            self._shift = series_of_neurons(
                self.model, self.series, self.chats, self.rows, batch_size=self._batch_size, seed=self._seed
            )
        return self._shift

    def figure(self) -> go.Figure:
        """The chosen neuron's shift over the checkpoints."""
        return neuron_over_series(self.shift(), self.neuron, len(self.chats))

    def views(self) -> str:
        """The neuron's tokens and its top prompts, as HTML."""
        about = self.about()
        words = pd.DataFrame(
            {"promotes": [about["promoted"]], "suppresses": [about["suppressed"]], "mean a": [about["off"]]}
        )
        return table_html(self.neuron, words) + columns(table_html("Prompts that fire it most", self.top_prompts()))

    def widget(self) -> Any:
        """See `Explorer`."""
        from rim_lens.explore.neuron_widgets import neuron_widgets  # needs the notebook extra

        return neuron_widgets(self)

    def static(self) -> list[Any]:
        """See `Explorer`."""
        from IPython.display import HTML

        return [*([self.figure()] if self.series is not None else []), HTML(self.views())]


def explore_neurons(
    model: LensModel,
    neurons: NeuronRows,
    prompts: Prompts,
    series: Checkpoints | None = None,
    *,
    n_neurons: int = 50,
    n_prompts: int = 5,
    batch_size: int = 16,
    seed: int = 0,
) -> NeuronExplorer:
    """Linked views of neurons for a notebook; the object that is returned shows itself and works without one.

    Args:
        model: the model at the reference checkpoint.
        neurons: `SafetyNeurons`, or rows (layer, unit) or (layer, expert, unit).
        prompts: requests or prompts (rendered with thinking off), or chats.
        series: the checkpoints that the shift is measured over, if any.
        n_neurons: how many neurons of the set, the leading ones.
        n_prompts: top prompts of each.
        batch_size: chats per pass.
        seed: of the bootstrap.

    Raises:
        RimLensError: no neurons or prompts, or a model without the modules of the direct path.
    """
    rows = neuron_rows(neurons)[:n_neurons]
    chats = as_chats(model, prompts)
    table = neuron_table(model, rows, chats, n_neurons=len(rows), n_prompts=n_prompts, batch_size=batch_size, seed=seed)
    return NeuronExplorer(model, rows, chats, series, table, batch_size, seed)


def series_of_neurons(
    model: LensModel,
    series: Checkpoints,
    chats: Sequence[Chat],
    rows: np.ndarray,
    *,
    batch_size: int = 16,
    n_resamples: int = RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """Each neuron's relative change of mean |a| from the reference at every checkpoint, the same prompts resampled."""
    activations: dict[str, NeuronActivations] = {}
    for checkpoint, loaded in series.loaded(model):
        activations[checkpoint.name] = neuron_activations(
            loaded, chats, REQUEST_AND_ANSWER, per_prompt=rows, batch_size=batch_size, progress=False
        )
    weights = prompt_resamples(len(chats), n_resamples, seed)
    before, tables = activations[series.reference.name], []
    for name, after in activations.items():
        f0, f1 = (side.values()[tuple(rows.T)].astype(np.float64) for side in (before, after))
        drawn = relative_change(*resampled_f((before, after), rows, weights, "magnitude"))
        low, high = np.quantile(drawn, (0.025, 0.975), axis=0)
        values = {"f_before": f0, "f_after": f1, "change": relative_change(f0, f1), "low": low, "high": high}
        tables.append(pd.DataFrame({"neuron": neuron_names(rows), "checkpoint": name, "n": len(chats), **values}))
    return pd.concat(tables, ignore_index=True)


def neuron_over_series(shift: pd.DataFrame, name: str, n: int) -> go.Figure:
    """One neuron's relative change at every checkpoint."""
    figure = style.blank(
        f"Activation shift of {name} over the checkpoints",
        f"n = {n} prompts; bars are 95 % intervals",
        xaxis={"type": "category"},
        yaxis={"title": {"text": "change of mean |activation|"}, "tickformat": "+.0%"},
        height=340,
    )
    hover = [
        f"<b>{style.text(row.checkpoint)}</b><br>{style.percent(row.change, sign=True)} "
        f"{style.interval(row.low, row.high, '%')}"
        for row in shift.itertuples()
    ]
    figure.add_scatter(
        x=shift["checkpoint"].map(style.text),
        y=shift["change"],
        error_y=style.error_bars(shift["change"], shift["low"], shift["high"]),
        mode="markers",
        marker={"color": style.BLUE, "size": 9},
        customdata=hover,
        hovertemplate="%{customdata}<extra></extra>",
        showlegend=False,
    )
    return figure
