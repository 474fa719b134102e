"""Figures of `series_behavior`: refusal rate and refusal score at every checkpoint, by arm and dose."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import pandas as pd
import plotly.graph_objects as go

from rim_lens import words
from rim_lens.plots import style

if TYPE_CHECKING:
    from rim_lens.training_time.series_answers import SeriesBehavior
    from rim_lens.training_time.series_problems import SeriesMaths


def refusal_over_series(series: SeriesBehavior, quantity: Literal["rate", "score"] = "rate") -> go.Figure:
    """Refusal `rate` or mean refusal `score` of every checkpoint with its 95 % interval; the reference as a band."""
    is_rate = quantity == "rate"
    n = style.one_or_range(series.table["n"])
    figure = style.blank(
        "Harmful requests refused, checkpoint by checkpoint" if is_rate else "Refusal score, checkpoint by checkpoint",
        f"n = {n} harmful requests per checkpoint, thinking off; bars and band are 95 % intervals; band: "
        f"{series.reference}",
        xaxis={"title": {"text": "fine-tuning steps"}, "zeroline": False, "rangemode": "tozero"},
        yaxis=style.percent_axis("refused") if is_rate else {"title": {"text": "mean refusal score (nats)"}},
        height=420,
    )
    columns = ("rate", "low", "high") if is_rate else ("score", "score_low", "score_high")
    for trace in arm_traces(series.table, series.reference, columns, hover_of(series)):
        figure.add_trace(trace)
    add_reference(figure, series.table, series.reference, columns)
    return figure


def maths_over_series(maths: SeriesMaths) -> go.Figure:
    """Log-likelihood of right maths answers at every checkpoint, by arm and dose; the reference as a band."""
    figure = style.blank(
        "Maths, checkpoint by checkpoint",
        maths.caption() + "; bars and band are 95 % intervals",
        xaxis={"title": {"text": "fine-tuning steps"}, "zeroline": False, "rangemode": "tozero"},
        yaxis={"title": {"text": "log-likelihood (nats per token)"}},
        height=420,
    )
    columns = ("likelihood", "likelihood_low", "likelihood_high")
    hover = maths.table.apply(lambda row: _maths_hover(row, maths.reference), axis=1)
    for trace in arm_traces(maths.table, maths.reference, columns, hover):
        figure.add_trace(trace)
    add_reference(figure, maths.table, maths.reference, columns)
    return figure


def _maths_hover(row: pd.Series, reference: str) -> str:
    lines = [
        f"<b>{style.text(row['checkpoint'])}</b>",
        f"{style.number(row['likelihood'])} nats {style.interval(row['likelihood_low'], row['likelihood_high'])}, n "
        f"= {row['n']}",
    ]
    if row["checkpoint"] != reference:
        change = f"{style.number(row['change'], sign=True)} {style.interval(row['change_low'], row['change_high'])}"
        lines.append(f"{change} against {style.text(reference)}, {style.p_value(row['p'])}, q = {row['q']:.2g}")
    if "solved" in row:
        lines.append(f"solved {row['solved']} of {row['n']} {style.interval(row['low'], row['high'], '%')}")
    return "<br>".join(lines)


def add_reference(figure: go.Figure, table: pd.DataFrame, reference: str, columns: tuple[str, str, str]) -> None:
    """The reference's value as a line and its interval as a band; checkpoints without steps on an axis of names."""
    if table["step"].isna().any():
        figure.update_xaxes(title={"text": "checkpoint"}, type="category")
    row = table[table["checkpoint"] == reference].iloc[0]
    value, low, high = (row[name] for name in columns)
    figure.add_hrect(y0=low, y1=high, fillcolor=style.GREY, opacity=0.15, line_width=0, layer="below")
    figure.add_hline(y=value, line={"color": style.GREY, "dash": "dot", "width": 1.5})


def arm_traces(
    table: pd.DataFrame, reference: str, columns: tuple[str, str, str], hover: pd.Series
) -> list[go.Scatter]:
    """One line per arm over its steps; checkpoints without steps in the table's order.

    Arms stand a little apart in x.
    """
    others = table[table["checkpoint"] != reference]
    steps_known = not table["step"].isna().any()
    arms = list(dict.fromkeys(others["arm"].fillna("checkpoints")))
    reach = float(table["step"].max()) if steps_known else 0.0
    value, low, high = columns
    traces = []
    for i, arm in enumerate(arms):
        rows = others[others["arm"].fillna("checkpoints") == arm]
        apart = 0.008 * reach * (i - (len(arms) - 1) / 2)
        traces.append(
            go.Scatter(
                name=style.text(words.arm(arm)),
                x=rows["step"] + apart if steps_known else [style.text(name) for name in rows["checkpoint"]],
                y=rows[value],
                error_y=style.error_bars(rows[value], rows[low], rows[high]),
                mode="lines+markers" if rows["step"].is_unique or not steps_known else "markers",
                line={"color": style.SERIES[i % len(style.SERIES)], "width": 1.5},
                marker={"symbol": style.MARKERS[i % len(style.MARKERS)], "size": 9},
                customdata=hover[rows.index],
                hovertemplate="%{customdata}<extra></extra>",
            )
        )
    return traces


def hover_of(series: SeriesBehavior) -> pd.Series:
    """Hover of every checkpoint: counts, rate and score with intervals, difference from the reference."""
    return series.table.apply(lambda row: _hover(row, series.reference), axis=1)


def _hover(row: pd.Series, reference: str) -> str:
    lines = [
        f"<b>{style.text(row['checkpoint'])}</b>",
        f"refused {style.percent(row['rate'])} {style.interval(row['low'], row['high'], '%')}",
        f"{row['refused']} refused, {row['complied']} complied, {row['incoherent']} incoherent of {row['n']}",
        f"refusal score {style.number(row['score'])} {style.interval(row['score_low'], row['score_high'])}",
    ]
    if row["checkpoint"] != reference:
        points = style.points(row["difference"], row["difference_low"], row["difference_high"])
        lines.append(f"{points} against {style.text(reference)}, {style.p_value(row['p'])}, q = {row['q']:.2g}")
    return "<br>".join(lines)
