"""Figures of the refusal direction: what its candidates do, and what it does on other prompts beside its controls."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from rim_lens.plots import style
from rim_lens.plots.probe import token_label
from rim_lens.plots.set_effects import hover_of, in_nats

if TYPE_CHECKING:
    from rim_lens.inference_time.refusal_direction import RefusalDirection
    from rim_lens.training_time.direction_drift import DirectionDrift

WORDS = {"project_out": "projected out", "add": "added"}
NAMES = {"bypass": "harmful requests, projected out", "induce": "harmless requests, added"}


def direction_effects(direction: RefusalDirection) -> go.Figure:
    """Change of the refusal score on test prompts, over the bands of random directions and shuffled labels."""
    rows = direction.table[direction.table["measure"].map(in_nats)].reset_index(drop=True)
    labels = [
        f"{WORDS[row['change']]}, {row['measure'].removeprefix('refusal score, ')}<br>against {row['controls']}"
        for _, row in rows.iterrows()
    ]
    y = list(range(len(rows)))
    figure = style.blank(
        f"What the refusal direction of layer {direction.layer} does",
        f"n = {style.one_or_range(rows['n'])} prompts that it was not chosen on; bars are 95 % intervals; grey: 95 % "
        f"of {style.one_or_range(rows['n_controls'])} control directions of the same norm",
        xaxis={"title": {"text": "change of the refusal score (nats)"}, "zerolinewidth": 2},
        yaxis={"tickvals": y, "ticktext": labels, "showgrid": False, "zeroline": False}
        | {"range": [len(rows) - 0.5, -0.5]},
        height=150 + 44 * max(2, len(rows)),
    )
    for place, (_, row) in zip(y, rows.iterrows(), strict=True):
        line = {"color": style.faint(style.GREY, 0.45), "width": 14}
        ends = [row["control_low"], row["control_high"]]
        figure.add_scatter(x=ends, y=[place] * 2, mode="lines", line=line, hoverinfo="skip", showlegend=False)
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


def direction_map(direction: RefusalDirection, column: str = "bypass") -> go.Figure:
    """What every candidate does to the refusal score on the prompts to select; a ring marks the chosen one."""
    table = direction.candidates
    grid = table.pivot(index="position", columns="layer", values=column)
    labels = [token_label(label) for label in direction.positions]
    cells = [_candidate(row) for _, row in table.sort_values(["position", "layer"]).iterrows()]
    hover = np.array(cells, dtype=object).reshape(grid.shape)
    figure = style.blank(
        "Candidates of the refusal direction",
        f"mean refusal score of {NAMES[column]}; n = {direction.n_select[0]} harmful, {direction.n_select[1]} harmless "
        "prompts to select; ring: chosen",
        coloraxis=style.diverging(grid.to_numpy(), "refusal score (nats)"),
        xaxis={"title": {"text": "layer"}, "showgrid": False, "zeroline": False},
        yaxis={"tickvals": list(range(len(labels))), "ticktext": labels, "autorange": "reversed"}
        | {"showgrid": False, "zeroline": False},
        margin={"b": 48},
        height=210 + 30 * len(labels),
    )
    figure.add_heatmap(
        z=grid.to_numpy(),
        x=grid.columns,
        text=hover,
        coloraxis="coloraxis",
        hovertemplate="%{text}<extra></extra>",
        xgap=1,
        ygap=1,
        hoverongaps=False,
    )
    for colour, width in (("#ffffff", 4.5), ("#000000", 2.0)):
        marker = {"symbol": "circle-open", "size": 11, "color": colour, "line": {"width": width}}
        figure.add_scatter(
            x=[direction.layer],
            y=[direction.position],
            mode="markers",
            marker=marker,
            hoverinfo="skip",
            showlegend=False,
        )
    return figure


def _candidate(row: pd.Series) -> str:
    return (
        f"<b>layer {row['layer']}, {token_label(row['token'])}</b><br>projected out "
        f"{style.number(row['bypass'])} nats, added {style.number(row['induce'])} nats<br>"
        f"KL {style.number(row['kl'])} nats" + ("" if row["allowed"] else "<br>not allowed")
    )


def direction_drift_curves(drift: DirectionDrift, prompts: str = "harmful") -> go.Figure:
    """Mean displacement along the direction by depth, one line per checkpoint; grey: random directions at the last."""
    table = drift.table[drift.table["prompts"] == prompts]
    figure = style.blank(
        f"Drift of {prompts} prompts along the refusal direction of {drift.reference}",
        f"n = {style.one_or_range(table['n'])} prompts; bars are 95 % intervals; grey: 95 % of {drift.n_random} random "
        f"directions at {drift.checkpoints[-1]}",
        xaxis={"title": {"text": "layer that the stream enters"}, "zeroline": False},
        yaxis={"title": {"text": "displacement (sd of the reference)"}, "zerolinewidth": 2},
        height=420,
    )
    last = table[table["checkpoint"] == drift.checkpoints[-1]]
    figure.add_trace(
        style.band(
            last["depth"].tolist(),
            last["random_low"].tolist(),
            last["random_high"].tolist(),
            style.GREY,
            "random directions",
        )
    )
    for i, name in enumerate(drift.checkpoints):
        rows = table[table["checkpoint"] == name]
        figure.add_scatter(
            name=style.text(name),
            x=rows["depth"],
            y=rows["displacement"],
            error_y=style.error_bars(rows["displacement"], rows["low"], rows["high"]),
            mode="lines+markers",
            line={"color": style.SERIES[i % len(style.SERIES)], "width": 1.6},
            marker={"symbol": style.MARKERS[i % len(style.MARKERS)], "size": 6},
            customdata=[
                f"{style.number(row['displacement'], sign=True)} sd {style.interval(row['low'], row['high'])}, "
                f"{style.p_value(row['p'])}; CKA {row['cka']:.2f}"
                for _, row in rows.iterrows()
            ],
            hovertemplate="layer %{x}: %{customdata}",
        )
    return figure
