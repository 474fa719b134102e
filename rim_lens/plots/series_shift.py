"""Figures of neurons over a series.

Their shift at every checkpoint, and layer by layer, against matched random neurons.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from rim_lens import words
from rim_lens.plots import style

if TYPE_CHECKING:
    from rim_lens.training_time.series_shift import SeriesShift

PROMPTS = {"safety": "safety prompts", "task": "maths prompts"}
Kind = Literal["safety", "task"]
MARKED = 0.05  # q below which a cell is marked
# Columns of the value, its ends, and the controls' mean and spread; what the value is; title and format of its axis.
VIEWS = {
    "movement": (
        *("moved", "moved_low", "moved_high", "control_moved", "control_moved_sd"),
        *("sum of |changes| over the sum of mean |activations|", "movement, in either direction", ".0%"),
    ),
    "change": (
        *("change", "low", "high", "control_change", "control_sd"),
        *("change of the mean |activation|", "change of mean activation", "+.0%"),
    ),
}


def shift_over_series(
    shift: SeriesShift, prompts: Kind = "safety", of: Literal["movement", "change"] = "movement"
) -> go.Figure:
    """The set's movement (in either direction) or net change at every checkpoint, beside the control sets' mean."""
    value, low, high, control, spread, what, axis, ticks = VIEWS[of]
    rows = shift.table[(shift.table["scope"] == "all") & (shift.table["prompts"] == prompts)]
    figure = style.blank(
        f"{of.capitalize()} of the safety neurons on {PROMPTS[prompts]}, checkpoint by checkpoint",
        f"n = {n_of(shift, prompts)} prompts, {shift.n_neurons} neurons; {what}, against "
        f"{shift.reference}; bars are 95 % intervals; grey: mean ± 1 sd of {shift.n_controls} matched random sets. "
        "What the grey shares is not of safety neurons in particular",
        xaxis={"title": {"text": "checkpoint"}, "type": "category"},
        yaxis={"title": {"text": axis}, "tickformat": ticks},
        height=420,
    )
    figure.add_scatter(
        name="matched random neurons",
        x=[style.text(name) for name in rows["checkpoint"]],
        y=rows[control],
        error_y={"type": "data", "array": rows[spread], "thickness": 1.6, "width": 4},
        mode="markers",
        marker={"color": style.GREY, "symbol": "line-ew-open", "size": 16, "line": {"width": 2.5}},
        hoverinfo="skip",
    )
    for i, (arm, part) in enumerate(rows.groupby(rows["arm"].fillna("checkpoints"), sort=False)):
        figure.add_scatter(
            name=style.text(words.arm(arm)),
            x=[style.text(name) for name in part["checkpoint"]],
            y=part[value],
            error_y=style.error_bars(part[value], part[low], part[high]),
            mode="markers",
            marker={"color": style.SERIES[i % 4], "symbol": style.MARKERS[i % 4], "size": 10},
            customdata=[hover_of(row) for _, row in part.iterrows()],
            hovertemplate="%{customdata}<extra></extra>",
        )
    return figure


def shift_by_layer_and_checkpoint(shift: SeriesShift, prompts: Kind = "safety") -> go.Figure:
    """In each layer and checkpoint, how far the set's change is from the control sets' mean."""
    rows = shift.table[(shift.table["scope"] != "all") & (shift.table["prompts"] == prompts)]
    checkpoints = list(dict.fromkeys(rows["checkpoint"]))
    layers = sorted({layer_of(scope) for scope in rows["scope"]})
    values = np.full((len(checkpoints), len(layers)), np.nan)
    hover = np.full(values.shape, "", dtype=object)
    marked = []
    for _, row in rows.iterrows():
        place = checkpoints.index(row["checkpoint"]), layers.index(layer_of(row["scope"]))
        values[place] = 100 * (row["change"] - row["control_change"])
        hover[place] = hover_of(row)
        if row["q"] < MARKED:
            marked.append(place)
    figure = style.blank(
        f"Shift of safety neurons less that of random ones, by layer, {PROMPTS[prompts]}",
        f"n = {n_of(shift, prompts)} prompts, {shift.n_neurons} neurons; against {shift.n_controls} matched random "
        f"sets; a dot marks q < {MARKED} over all {len(rows)} cells of both kinds of prompts",
        coloraxis=style.diverging(values, "percentage points"),
        xaxis={"title": {"text": "layer"}, "type": "category", "showgrid": False},
        yaxis={"type": "category", "autorange": "reversed", "showgrid": False},
        margin={"b": 48},
        height=190 + 30 * len(checkpoints),
    )
    x, y = [f"{layer}" for layer in layers], [style.text(name) for name in checkpoints]
    figure.add_heatmap(
        x=x,
        y=y,
        z=style.cells(values),
        text=hover,
        coloraxis="coloraxis",
        hovertemplate="%{text}<extra></extra>",
        xgap=1,
        ygap=1,
        hoverongaps=False,
    )
    if marked:
        figure.add_scatter(
            x=[x[column] for _, column in marked],
            y=[y[row] for row, _ in marked],
            mode="markers",
            marker={"color": "#000000", "size": 5, "line": {"width": 1, "color": "#ffffff"}},
            hoverinfo="skip",
            showlegend=False,
        )
    return figure


def n_of(shift: SeriesShift, prompts: Kind) -> int:
    """Number of prompts of a kind."""
    return shift.n_safety if prompts == "safety" else shift.n_task


def layer_of(scope: str) -> int:
    """Number of the layer that a scope is."""
    return int(scope.removeprefix("L"))


def hover_of(row: pd.Series) -> str:
    """Hover: change with interval, place among the control sets."""
    where = "all layers" if row["scope"] == "all" else f"layer {layer_of(row['scope'])}"
    return (
        f"<b>{style.text(row['checkpoint'])}</b>, {where}, {row['n_neurons']} neurons<br>"
        f"{style.percent(row['change'], sign=True)} {style.interval(row['low'], row['high'], '%')}<br>random sets "
        f"{style.percent(row['control_change'], sign=True)}, {style.p_value(row['p'])}, q = {row['q']:.2g}"
    )
