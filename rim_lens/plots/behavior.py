"""Figures of `measure_rim`: rates in every thinking condition, and what changes against the first one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd
import plotly.graph_objects as go

from rim_lens import words
from rim_lens.plots import style

if TYPE_CHECKING:
    from rim_lens.behavior.measure import RimTable

COLOURS = {
    "refused": (style.BLUE, "circle"),
    "partial": (style.PURPLE, "diamond-open"),
    "complied": (style.VERMILION, "square"),
    "incoherent": (style.GREY, "x"),
    "unjudged": (style.GREY, "circle-open"),
    words.HARMFUL: (style.PURPLE, "triangle-up"),
    "solved": (style.GREEN, "diamond"),
}
MEASURES = tuple(COLOURS)


def rates(table: RimTable, set_name: str = "harmful") -> go.Figure:
    """Rates of one set (`harmful`, `harmless`, `maths`) in every condition with their 95 % intervals."""
    rows = table.table[(table.table["set"] == set_name) & table.table["measure"].isin(MEASURES)]
    conditions = list(dict.fromkeys(rows["condition"]))
    measures = [name for name in table.measures[set_name] if (rows["measure"] == name).any()]
    figure = style.blank(
        f"{words.SETS[set_name]}: {' · '.join(measures)}",
        f"n = {style.one_or_range(rows['n'])} answers per condition; bars are 95 % intervals; judge: {table.judge}"
        if set_name != "maths"
        else f"n = {style.one_or_range(rows['n'])} answers per condition; bars are 95 % intervals",
        xaxis=style.percent_axis("share of answers"),
        yaxis=_condition_axis(conditions),
        height=130 + 26 * max(2, len(measures)) * len(conditions),
        hovermode="closest",
    )
    for i, measure in enumerate(measures):
        part = rows[rows["measure"] == measure]
        colour, symbol = COLOURS[measure]
        offset = (i - (len(measures) - 1) / 2) * 0.22
        figure.add_scatter(
            name=measure,
            x=part["rate"],
            y=[conditions.index(name) + offset for name in part["condition"]],
            error_x=style.error_bars(part["rate"], part["low"], part["high"]),
            mode="markers",
            marker={"color": colour, "symbol": symbol, "size": 9},
            customdata=_hover(part, table),
            hovertemplate="<b>%{customdata[0]}</b><br>%{customdata[1]}<br>%{customdata[2]}<extra></extra>",
        )
    return figure


def _condition_axis(conditions: list[str]) -> dict[str, object]:
    return {
        "tickvals": list(range(len(conditions))),
        "ticktext": [
            style.text(words.condition(name)).replace(" (", "<br>(").replace(" CoT ", "<br>CoT ") for name in conditions
        ],
        "range": [len(conditions) - 0.5, -0.5],
        "zeroline": False,
        "showgrid": False,
    }


def _hover(part: pd.DataFrame, table: RimTable) -> list[list[str]]:
    """Hover: condition, rate with its interval and count, change against the first condition."""
    lines = []
    for _, row in part.iterrows():
        rate = (
            f"{row['measure']}: {style.percent(row['rate'])} {style.interval(row['low'], row['high'], '%')}, "
            f"{row['k']} of {row['n']}"
        )
        lines.append([style.text(words.condition(row["condition"])), rate, change_words(table, row)])
    return lines


def change_words(table: RimTable, row: pd.Series) -> str:
    """The difference from the first condition in words; empty for the first condition itself."""
    all_changes = table.differences
    same = all_changes[(all_changes["set"] == row["set"]) & (all_changes["measure"] == row["measure"])]
    change = same[(same["to"] == row["condition"]) & (same["from"] == same["from"].iloc[0])] if len(same) else same
    if change.empty:
        return ""
    one = change.iloc[0]
    points = style.points(one["difference"], one["low"], one["high"])
    return f"{points} against {words.condition(one['from'])}, {style.p_value(one['p'])}{words.judge_words(one)}"
