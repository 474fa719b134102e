"""Figures of causal tests: what changing a set of heads or neurons does, beside matched random sets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd
import plotly.graph_objects as go

from rim_lens.plots import style

if TYPE_CHECKING:
    from rim_lens.causal.ablation_comparison import AblationComparison
    from rim_lens.causal.ablation_test import AblationTest


def ablation_figure(test: AblationTest, **options: str) -> go.Figure:
    """The dose curve of heads with several doses; else the rates, or the scores where rates have no random sets."""
    if test.kind == "heads" and has_curve(test):
        return dose_curve(test, **options)
    shares = test.table[~test.table["measure"].map(in_nats)]
    return set_effects(test, nats=not (shares["n_controls"] > 0).any(), **options)


def has_curve(test: AblationTest) -> bool:
    """Whether there is more than one dose or kind of change to draw a curve of."""
    return len(test.table[["k", "change"]].drop_duplicates()) > 1


def dose_curve(test: AblationTest, measure: str | None = None) -> go.Figure:
    """Effect by the number of heads changed, one line per kind of change, over the band of the control sets."""
    name = str(test.table["measure"].iloc[0]) if measure is None else measure
    rows = test.dose_curve(name)
    figure = style.blank(
        f"{sentence(name)}, by number of {test.kind} changed",
        f"n = {style.one_or_range(rows['n'])} prompts; bars are 95 % intervals; bands hold 95 % of "
        f"{style.one_or_range(rows['n_controls'])} random sets with as many {test.kind} in each layer",
        xaxis={"title": {"text": f"{test.kind} changed"}, "zeroline": False, "rangemode": "tozero"},
        yaxis={"title": {"text": axis_of(name)}, "tickformat": "" if in_nats(name) else "+.0%"},
        height=420,
    )
    for i, (change, part) in enumerate(rows.groupby("change", sort=False)):
        part = part.sort_values("k")
        colour = style.SERIES[i % len(style.SERIES)]
        label = style.text(change)
        if (part["n_controls"] > 0).all():
            figure.add_trace(control_band(part, colour, f"{label}, random sets"))
        figure.add_scatter(
            name=label,
            x=part["k"],
            y=part["effect"],
            error_y=style.error_bars(part["effect"], part["low"], part["high"]),
            mode="lines+markers",
            line={"color": colour, "width": 1.8},
            marker={"symbol": style.MARKERS[i % len(style.MARKERS)], "size": 9},
            customdata=[hover_of(row, f"{label}, {row['k']} {test.kind}") for _, row in part.iterrows()],
            hovertemplate="%{customdata}<extra></extra>",
        )
    return figure


def control_band(part: pd.DataFrame, colour: str, name: str) -> go.Scatter:
    """The control sets' 95 % by dose; a single dose gets a little width."""
    x, low, high = (part[column].tolist() for column in ("k", "control_low", "control_high"))
    if len(x) == 1:
        x, low, high = [x[0] - 0.25, x[0] + 0.25], low * 2, high * 2
    return style.band(x, low, high, colour, name)


def set_effects(test: AblationTest, change: str | None = None, nats: bool = False) -> go.Figure:
    """Every rate (or, with `nats`, every score) under one change of the whole set, beside the range of random sets.

    The change is the first by default.
    """
    change = change or str(test.table["change"].iloc[0])
    rows = test.table[(test.table["change"] == change) & (test.table["measure"].map(in_nats) == nats)]
    rows = rows[rows["k"] == rows["k"].max()]
    what = f"{change} of {rows['k'].max()} {test.kind}{test.where}" if len(rows) else change
    return _beside_controls(rows, [style.text(name) for name in rows["measure"]], f"What changes under {what}", nats)


def compared_effects(comparison: AblationComparison, nats: bool = False) -> go.Figure:
    """Every share (or, with `nats`, every score) under each ablation, measure by measure, beside the controls."""
    rows = comparison.table[comparison.table["measure"].map(in_nats) == nats]
    order = {name: i for i, name in enumerate(rows["measure"].unique())}
    rows = rows.sort_values("measure", key=lambda names: names.map(order), kind="stable")
    labels = [style.text(f"{row['measure']} · {row['units']}") for _, row in rows.iterrows()]
    return _beside_controls(rows, labels, "What ablating each of them changes", nats)


def _beside_controls(rows: pd.DataFrame, labels: list[str], title: str, nats: bool = False) -> go.Figure:
    """Effects from top to bottom, each beside the range of its control sets."""
    y = list(range(len(rows)))
    drawn = rows.loc[rows["n_controls"] > 0, "n_controls"]
    beside = f"; grey: 95 % of {style.one_or_range(drawn)} matched random sets" if len(drawn) else "; no random sets"
    figure = style.blank(
        title,
        f"n = {style.one_or_range(rows['n']) if len(rows) else 0} prompts; bars are 95 % intervals{beside}",
        xaxis={"title": {"text": "change (nats)" if nats else "change of the share of answers"}, "zerolinewidth": 2}
        | ({} if nats else {"tickformat": "+.0%"}),
        yaxis={"tickvals": y, "ticktext": labels, "showgrid": False}
        | {"range": [len(rows) - 0.5, -0.5], "zeroline": False},
        height=150 + 44 * max(2, len(rows)),
    )
    for position, (_, row) in zip(y, rows.iterrows(), strict=True):
        if row["n_controls"]:
            ends = [row["control_low"], row["control_high"]]
            line = {"color": style.faint(style.GREY, 0.45), "width": 14}
            figure.add_scatter(x=ends, y=[position] * 2, mode="lines", line=line, hoverinfo="skip", showlegend=False)
    figure.add_vline(x=0, line={"color": style.GREY, "width": 1})
    figure.add_scatter(
        x=rows["effect"],
        y=y,
        error_x=style.error_bars(rows["effect"], rows["low"], rows["high"]),
        mode="markers",
        marker={"color": style.BLUE, "size": 9},
        customdata=[hover_of(row, label) for label, (_, row) in zip(labels, rows.iterrows(), strict=True)],
        hovertemplate="%{customdata}<extra></extra>",
        showlegend=False,
    )
    return figure


def in_nats(measure: str) -> bool:
    """Whether a measure is a score or a log-likelihood; all others are shares."""
    return measure.startswith(("refusal score", "log-likelihood"))


def axis_of(measure: str) -> str:
    """Axis title of an effect on a measure."""
    return "change (nats)" if in_nats(measure) else "change (share of answers)"


def sentence(measure: str) -> str:
    """A measure with a capital."""
    return measure[:1].upper() + measure[1:]


def effect_words(row: pd.Series) -> str:
    """Effect with its interval, in nats or points."""
    if in_nats(row["measure"]):
        return f"{style.number(row['effect'], sign=True)} nats {style.interval(row['low'], row['high'])}"
    return style.points(row["effect"], row["low"], row["high"])


def hover_of(row: pd.Series, head: str) -> str:
    """Hover: effect, before and after, place among the control sets."""
    lines = [
        f"<b>{head}</b>",
        effect_words(row),
        f"{style.number(row['before'])} → {style.number(row['after'])}, n = {row['n']}",
    ]
    if row["n_controls"]:
        lines.append(
            f"random sets {style.interval(row['control_low'], row['control_high'])}, percentile "
            f"{row['percentile']:.0f}, {style.p_value(row['p'])}" + (f", q = {row['q']:.2g}" if "q" in row else "")
        )
    return "<br>".join(lines)
