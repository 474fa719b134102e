"""The paper's tables 1 and 2 as figures: what thinking does to every model, and what fine-tuning does to one.

Source: Yan et al., "When Thinking Backfires" (arXiv 2509.00544), tables 1 and 2.
"""

from collections.abc import Mapping

import pandas as pd
import plotly.graph_objects as go

from rim_lens.behavior.measure import RimTable
from rim_lens.errors import RimLensError
from rim_lens.plots import names, style
from rim_lens.training_time.misalignment_change import MisalignmentChange

PANELS = (("harmful", "complied", "misalignment rate"), ("maths", "solved", "maths accuracy"))
MODES = {"off": (style.BLUE, "circle"), "on": (style.VERMILION, "square")}


def thinking_table(tables: RimTable | Mapping[str, RimTable]) -> go.Figure:
    """Table 1: misalignment rate and maths accuracy of every model with thinking off and on.

    Args:
        tables: of one model, or by the name that each model is to have in the figure.

    Raises:
        RimLensError: a table lacks a set or a mode.
    """
    named = {tables.manifest.model.get("name", "model"): tables} if isinstance(tables, RimTable) else dict(tables)
    found = pd.concat([_rates_of(name, table) for name, table in named.items()], ignore_index=True)
    figure = style.blank(
        "Misalignment and maths accuracy, thinking off and on",
        f"n = {style.one_or_range(found.loc[found['set'] == 'harmful', 'n'])} harmful requests, "
        f"{style.one_or_range(found.loc[found['set'] == 'maths', 'n'])} problems a mode; bars are 95 % intervals; "
        f"judge: {', '.join(dict.fromkeys(table.judge for table in named.values()))}",
        height=170 + 64 * max(2, len(named)),
        xaxis={**style.percent_axis(PANELS[0][2]), "domain": [0, 0.47]},
        xaxis2={**style.percent_axis(PANELS[1][2]), "domain": [0.53, 1]},
        yaxis={
            "tickvals": list(range(len(named))),
            "ticktext": [style.text(name) for name in named],
            "range": [len(named) - 0.5, -0.5],
            "showgrid": False,
            "zeroline": False,
        },
    )
    for column, (set_name, _, _) in enumerate(PANELS):
        for mode, (colour, symbol) in MODES.items():
            rows = found[(found["set"] == set_name) & (found["condition"] == mode)]
            offset = -0.12 if mode == "off" else 0.12
            figure.add_scatter(
                name=names.condition(mode),
                legendgroup=mode,
                showlegend=column == 0,
                x=rows["rate"],
                y=[list(named).index(name) + offset for name in rows["model"]],
                xaxis="x2" if column else "x",
                error_x=style.error_bars(rows["rate"], rows["low"], rows["high"]),
                mode="markers",
                marker={"color": colour, "symbol": symbol, "size": 10},
                customdata=[_rate_told(row) for _, row in rows.iterrows()],
                hovertemplate="%{customdata}<extra></extra>",
            )
    return figure


def _rates_of(name: str, table: RimTable) -> pd.DataFrame:
    """The four rates of one model."""
    parts = []
    for set_name, measure, title in PANELS:
        rows = table.table[(table.table["set"] == set_name) & (table.table["measure"] == measure)]
        rows = rows[rows["condition"].isin(MODES)]
        if set(rows["condition"]) != set(MODES):
            raise RimLensError(f"The table of {name} has no {title} with thinking off and on; measure both, and maths.")
        parts.append(rows.assign(model=name, quantity=title))
    return pd.concat(parts, ignore_index=True)


def _rate_told(row: pd.Series) -> str:
    rate = f"{style.percent(row['rate'])} {style.interval(row['low'], row['high'], '%')}, {row['k']} of {row['n']}"
    return f"<b>{style.text(row['model'])}, {names.condition(row['condition'])}</b><br>{row['quantity']}: {rate}"


def finetuning_table(change: MisalignmentChange) -> go.Figure:
    """Table 2: change of the misalignment rate after fine-tuning, by arm and dose, in points."""
    table = change.table
    labels = [style.text(_checkpoint_label(row)) for _, row in table.iterrows()]
    figure = style.blank(
        "Change of misalignment after fine-tuning",
        f"n = {style.one_or_range(table['n'])} harmful requests a checkpoint, thinking off; bars are 95 % intervals; before "
        f"({change.reference}): {style.percent(table['before'].iloc[0])} "
        f"{style.interval(change.reference_low, change.reference_high, '%')}; judge: {change.judge}",
        xaxis={"title": {"text": "change of the misalignment rate (points)"}, "zerolinewidth": 2},
        yaxis={
            "tickvals": list(range(len(table))),
            "ticktext": labels,
            "range": [len(table) - 0.5, -0.5],
            "showgrid": False,
            "zeroline": False,
        },
        height=170 + 34 * max(3, len(table)),
        legend={"traceorder": "normal"},
    )
    for i, (arm, rows) in enumerate(table.groupby(table["arm"].fillna("checkpoints"), sort=False)):
        points = 100 * rows[["change", "low", "high"]]
        figure.add_scatter(
            name=style.text(names.arm(arm)),
            x=points["change"],
            y=[table.index.get_loc(index) for index in rows.index],
            error_x=style.error_bars(points["change"], points["low"], points["high"]),
            mode="markers",
            marker={
                "color": style.SERIES[i % len(style.SERIES)],
                "symbol": style.MARKERS[i % len(style.MARKERS)],
                "size": 10,
            },
            customdata=[_change_told(row) for _, row in rows.iterrows()],
            hovertemplate="%{customdata}<extra></extra>",
        )
    return figure


def _checkpoint_label(row: pd.Series) -> str:
    return str(row["checkpoint"]) if pd.isna(row["step"]) else f"{row['checkpoint']} ({row['step']:.0f} steps)"


def _change_told(row: pd.Series) -> str:
    return (
        f"<b>{style.text(row['checkpoint'])}</b><br>{style.points(row['change'], row['low'], row['high'])}, "
        f"{style.p_value(row['p'])}, q = {row['q']:.2g}<br>{style.percent(row['before'])} → {style.percent(row['rate'])}, "
        f"{row['k']} of {row['n']}<br>{row['gained']} requests gained, {row['lost']} lost to compliance"
    )
