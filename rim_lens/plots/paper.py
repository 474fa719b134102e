"""The paper's table 1 as a figure: what thinking does to every model. Its table 2 is `rim_lens.plots.arms.arm_changes`.

Source: Yan et al., "When Thinking Backfires" (arXiv 2509.00544), table 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import pandas as pd
import plotly.graph_objects as go

from rim_lens import words
from rim_lens.errors import RimLensError
from rim_lens.plots import style

if TYPE_CHECKING:
    from rim_lens.behavior.measure import RimTable

HARM = ("harmful", words.HARMFUL, "misalignment rate")
NOT_REFUSED = ("harmful", "complied", "complied (not refused, coherent)")
MATHS = ("maths", "solved", "maths accuracy")
MODES = {"off": (style.BLUE, "circle"), "on": (style.VERMILION, "square")}


def thinking_table(tables: RimTable | Mapping[str, RimTable]) -> go.Figure:
    """Table 1: misalignment rate and maths accuracy of every model with thinking off and on.

    Where a model was judged by a refusal judge alone, the share of answers that complied is shown in its place, under
    that name.

    Args:
        tables: of one model, or by the name that each model is to have in the figure.

    Raises:
        RimLensError: a table lacks a set or a mode.
    """
    named = dict(tables) if isinstance(tables, Mapping) else {tables.manifest.model.get("name", "model"): tables}
    panels = (HARM if all(table.judges_harm for table in named.values()) else NOT_REFUSED, MATHS)
    rates = pd.concat([_rates_of(name, table, panels) for name, table in named.items()], ignore_index=True)
    figure = style.blank(
        f"{'Misalignment' if panels[0] is HARM else 'Requests complied with'} and maths accuracy, thinking off and on",
        f"n = {style.one_or_range(rates.loc[rates['set'] == 'harmful', 'n'])} harmful requests, "
        f"{style.one_or_range(rates.loc[rates['set'] == 'maths', 'n'])} problems per mode; bars are 95 % intervals; "
        f"judge: {', '.join(dict.fromkeys(table.judge for table in named.values()))}",
        height=170 + 64 * max(2, len(named)),
        xaxis={**style.percent_axis(panels[0][2]), "domain": [0, 0.47]},
        xaxis2={**style.percent_axis(panels[1][2]), "domain": [0.53, 1]},
        yaxis={
            "tickvals": list(range(len(named))),
            "ticktext": [style.text(name) for name in named],
            "range": [len(named) - 0.5, -0.5],
            "showgrid": False,
            "zeroline": False,
        },
    )
    for column, (set_name, _, _) in enumerate(panels):
        for mode, (colour, symbol) in MODES.items():
            rows = rates[(rates["set"] == set_name) & (rates["condition"] == mode)]
            offset = -0.12 if mode == "off" else 0.12
            figure.add_scatter(
                name=words.condition(mode),
                legendgroup=mode,
                showlegend=column == 0,
                x=rows["rate"],
                y=[list(named).index(name) + offset for name in rows["model"]],
                xaxis="x2" if column else "x",
                error_x=style.error_bars(rows["rate"], rows["low"], rows["high"]),
                mode="markers",
                marker={"color": colour, "symbol": symbol, "size": 10},
                customdata=[_rate_words(row) for _, row in rows.iterrows()],
                hovertemplate="%{customdata}<extra></extra>",
            )
    return figure


def _rates_of(name: str, table: RimTable, panels: tuple[tuple[str, str, str], ...]) -> pd.DataFrame:
    """The four rates of one model."""
    parts = []
    for set_name, measure, title in panels:
        rows = table.table[(table.table["set"] == set_name) & (table.table["measure"] == measure)]
        rows = rows[rows["condition"].isin(MODES)]
        if set(rows["condition"]) != set(MODES):
            raise RimLensError(f"The table of {name} has no {title} with thinking off and on; measure both, and maths.")
        parts.append(rows.assign(model=name, quantity=title))
    return pd.concat(parts, ignore_index=True)


def _rate_words(row: pd.Series) -> str:
    rate = f"{style.percent(row['rate'])} {style.interval(row['low'], row['high'], '%')}, {row['k']} of {row['n']}"
    return f"<b>{style.text(row['model'])}, {words.condition(row['condition'])}</b><br>{row['quantity']}: {rate}"
