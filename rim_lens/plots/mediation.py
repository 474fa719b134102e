"""Figures of paths: what heads do to refusal directly, through other units, and around them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd
import plotly.graph_objects as go

from rim_lens.plots import style

if TYPE_CHECKING:
    from rim_lens.causal.mediation import Mediation
    from rim_lens.causal.path_patching import PathPatching

WORDS = {
    "total": "heads zeroed",
    "through": "through the neurons",
    "around": "around the neurons",
    "interaction": "interaction",
}
PATH_WORDS = {"total": "in all", "direct": "directly to the logits", "response": "later layers' response"}


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


def patched_paths(paths: PathPatching, top: int = 20) -> go.Figure:
    """What zeroing the senders does in all, directly, and through the `top` receivers of largest effect."""
    first, rest = paths.table.iloc[:3], paths.table.iloc[3:]
    rest = rest.loc[rest["effect"].abs().sort_values(ascending=False, kind="stable").index].head(top)
    table = pd.concat([first, rest])
    y = list(range(len(table)))
    figure = style.blank(
        "Along which paths these heads act on refusal",
        f"{len(paths.senders)} heads zeroed; n = {len(paths.effects)} prompts; bars are 95 % intervals; "
        f"{len(rest)} of {len(paths.table) - 3} receivers; filled: q < 0.05",
        xaxis={"title": {"text": "change of the refusal score (nats)"}, "zerolinewidth": 2},
        yaxis={"tickvals": y, "ticktext": [style.text(PATH_WORDS.get(one, f"→ {one} →")) for one in table["path"]]}
        | {"range": [len(y) - 0.5, -0.5], "zeroline": False, "showgrid": False},
        height=190 + 24 * len(y),
    )
    filled = table["q"].isna() | (table["q"] < 0.05)
    figure.add_scatter(
        x=table["effect"],
        y=y,
        error_x=style.error_bars(table["effect"], table["low"], table["high"]),
        mode="markers",
        marker={"color": style.BLUE, "size": 9, "symbol": ["circle" if one else "circle-open" for one in filled]},
        customdata=[
            f"<b>{style.text(PATH_WORDS.get(row['path'], row['path']))}</b><br>"
            f"{style.number(row['effect'], sign=True)} nats {style.interval(row['low'], row['high'])}, "
            f"{style.p_value(row['p'])}" + (f", q = {row['q']:.2g}" if row["q"] == row["q"] else "")
            for _, row in table.iterrows()
        ],
        hovertemplate="%{customdata}<extra></extra>",
        showlegend=False,
    )
    return figure
