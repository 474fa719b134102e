"""Figure of a mediation: what heads do to refusal, through some neurons and around them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import plotly.graph_objects as go

from rim_lens.plots import style

if TYPE_CHECKING:
    from rim_lens.causal.mediation import Mediation

WORDS = {
    "total": "heads zeroed",
    "through": "through the neurons",
    "around": "around the neurons",
    "interaction": "interaction",
}


def mediated_effects(mediation: Mediation) -> go.Figure:
    """The four effects with their intervals; grey: control sets of neurons."""
    table = mediation.table
    y = list(range(len(table)))
    n_controls = int(table["n_controls"].max())
    figure = style.blank(
        f"How {len(mediation.heads)} heads act on refusal, through {mediation.n_neurons} neurons and around them",
        f"n = {len(mediation.prompts)} prompts; bars are 95 % intervals"
        + (f"; grey: 95 % of {n_controls} control sets of neurons" if n_controls else ""),
        xaxis={"title": {"text": "change of the refusal score (nats)"}, "zerolinewidth": 2},
        yaxis={"tickvals": y, "ticktext": [WORDS[path] for path in table["path"]], "showgrid": False}
        | {"range": [len(y) - 0.5, -0.5], "zeroline": False},
        height=330,
    )
    for place, (_, row) in zip(y, table.iterrows(), strict=True):
        if row["n_controls"]:
            line = {"color": style.faint(style.GREY, 0.45), "width": 14}
            ends = [row["control_low"], row["control_high"]]
            figure.add_scatter(x=ends, y=[place] * 2, mode="lines", line=line, hoverinfo="skip", showlegend=False)
    figure.add_scatter(
        x=table["effect"],
        y=y,
        error_x=style.error_bars(table["effect"], table["low"], table["high"]),
        mode="markers",
        marker={"color": style.BLUE, "size": 9},
        customdata=[
            f"<b>{WORDS[row['path']]}</b><br>{style.number(row['effect'], sign=True)} nats "
            f"{style.interval(row['low'], row['high'])} {style.p_value(row['p'])}"
            for _, row in table.iterrows()
        ],
        hovertemplate="%{customdata}<extra></extra>",
        showlegend=False,
    )
    return figure
