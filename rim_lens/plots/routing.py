"""Figure of a mixture's routing: the load of every expert by layer, or how much it differs between labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import plotly.graph_objects as go

from rim_lens.plots import style
from rim_lens.plots.head_map import grid

if TYPE_CHECKING:
    import pandas as pd

    from rim_lens.inference_time.expert_load import ExpertLoad


def expert_loads(load: ExpertLoad, segment: str = "user", column: str = "load") -> go.Figure:
    """One segment's map of layers and experts: `load`, `weight`, or the labels' `effect`."""
    rows = load.table[load.table["segment"] == segment]
    values = grid(rows.rename(columns={"expert": "head"}), rows[column], load.loads.shape[1:3])
    hover = grid(
        rows.rename(columns={"expert": "head"}), [_hover(row) for _, row in rows.iterrows()], load.loads.shape[1:3]
    )
    signed = column == "effect"
    unit = "refused minus complied (sd)" if signed else "share of tokens" if column == "load" else "routing probability"
    scale = style.diverging(values, unit) if signed else style.sequential(0.0, float(rows[column].max()), unit)
    labels = f"; refused {load.n_refused}, complied {load.n_complied}" if load.n_refused else ""
    figure = style.blank(
        f"Routing of the {segment} tokens",
        f"n = {style.one_or_range(rows['n'])} chats{labels}; hover: 95 % intervals",
        coloraxis=scale,
        xaxis={"title": {"text": "layer"}, "showgrid": False, "zeroline": False, "dtick": 1},
        yaxis={"title": {"text": "expert"}, "showgrid": False, "zeroline": False},
        margin={"b": 48},
        height=190 + max(160, min(520, 22 * len(values))),
    )
    figure.add_heatmap(
        z=values,
        text=hover,
        coloraxis="coloraxis",
        hovertemplate="%{text}<extra></extra>",
        xgap=1,
        ygap=1,
        hoverongaps=False,
    )
    return figure


def _hover(row: pd.Series) -> str:
    lines = [f"<b>layer {row['layer']}, expert {row['expert']}</b>"]
    lines.append(f"load {style.percent(row['load'])} {style.interval(row['low'], row['high'], '%')}")
    if row.get("p") == row.get("p") and "p" in row:
        lines.append(
            f"refused {style.percent(row['load_refused'])}, complied {style.percent(row['load_complied'])}; "
            f"d = {style.number(row['effect'], sign=True)} {style.interval(row['effect_low'], row['effect_high'])}, "
            f"q = {row['q']:.2g}"
        )
    return "<br>".join(lines)
