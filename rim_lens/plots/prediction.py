"""Figures of the shift predicted before training, next to what the checkpoints then did."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd
import plotly.graph_objects as go

from rim_lens import words
from rim_lens.plots import style

if TYPE_CHECKING:
    from rim_lens.training_time.prediction_check import PredictionCheck


def prediction_by_checkpoint(check: PredictionCheck) -> go.Figure:
    """Correlation over neurons of predicted and actual shift at every checkpoint, beside that of control sets."""
    rows = check.table
    figure = style.blank(
        "Is the shift of each neuron predicted before training?",
        f"n = {style.one_or_range(rows['n'])} neurons per checkpoint; correlation of predicted and actual change; bars "
        f"are 95 % intervals over neurons; grey: 95 % of {check.n_controls} matched random sets. High r where the "
        "grey is as high says that neurons are predictable, not that safety neurons are in particular",
        xaxis={"title": {"text": "checkpoint"}, "type": "category"},
        yaxis={"title": {"text": "Pearson's r over neurons"}, "range": [-1.05, 1.05]},
        height=420,
    )
    x = [style.text(name) for name in rows["checkpoint"]]
    middle = (rows["control_low"] + rows["control_high"]) / 2
    figure.add_scatter(
        name="matched random neurons",
        x=x,
        y=middle,
        error_y={"type": "data", "array": rows["control_high"] - middle, "thickness": 10, "width": 0}
        | {"color": style.faint(style.GREY, 0.45)},
        mode="markers",
        marker={"color": style.GREY, "symbol": "line-ew-open", "size": 12},
        hoverinfo="skip",
    )
    for i, (arm, part) in enumerate(rows.groupby("arm", sort=False)):
        figure.add_scatter(
            name=style.text(words.arm(arm)),
            x=[style.text(name) for name in part["checkpoint"]],
            y=part["r"],
            error_y=style.error_bars(part["r"], part["r_low"], part["r_high"]),
            mode="markers",
            marker={"color": style.SERIES[i % 4], "symbol": style.MARKERS[i % 4], "size": 10},
            customdata=[hover_of(row) for _, row in part.iterrows()],
            hovertemplate="%{customdata}<extra></extra>",
        )
    return figure


def predicted_against_actual(check: PredictionCheck, checkpoint: str | None = None) -> go.Figure:
    """Every neuron's predicted and actual change at one checkpoint; the last one by default."""
    chosen = checkpoint or str(check.table["checkpoint"].iloc[-1])
    row = check.table[check.table["checkpoint"] == chosen].iloc[0]
    points = check.neurons[check.neurons["checkpoint"] == chosen]
    figure = style.blank(
        f"Predicted and actual shift of each safety neuron, {chosen}",
        f"n = {row['n']} neurons; r = {style.correlation(row['r'], row['r_low'], row['r_high'])}, ρ = "
        f"{style.correlation(row['rho'], row['rho_low'], row['rho_high'])}; predicted for one gradient step of "
        f"{100 * check.step:g} % of the weights' length on examples in the form of the arm's data; the checkpoint "
        f"changed them by {100 * row['weight_distance']:.2g} %, so that the pattern can be compared, not the size",
        xaxis={"title": {"text": "predicted change, one small step"}, "tickformat": "+.1%"},
        yaxis={"title": {"text": "actual change"}, "tickformat": "+.0%"},
        height=440,
    )
    figure.add_scatter(
        x=points["predicted"],
        y=points["actual"],
        mode="markers",
        marker={"color": style.BLUE, "size": 7, "opacity": 0.6},
        customdata=[style.text(name) for name in points["neuron"]],
        hovertemplate="<b>%{customdata}</b><br>predicted %{x:+.1%}, actual %{y:+.1%}<extra></extra>",
        showlegend=False,
    )
    return figure


def hover_of(row: pd.Series) -> str:
    """Hover: both correlations, the set's change, place among the control sets."""
    return (
        f"<b>{style.text(row['checkpoint'])}</b><br>r = {style.correlation(row['r'], row['r_low'], row['r_high'])}, "
        f"ρ = {style.correlation(row['rho'], row['rho_low'], row['rho_high'])}<br>random sets "
        f"{style.number(row['control_r'])}, {style.p_value(row['control_p'])}<br>whole set: predicted for one small "
        f"step {style.percent(row['predicted'], sign=True)}, actual {style.percent(row['actual'], sign=True)}"
    )
