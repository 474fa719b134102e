"""Maps over layers and heads: one cell per head.

Signed values get a diverging scale centred at zero. Its colours have one meaning in every map that is about refusal:
vermilion stands for more of it, blue for less.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from rim_lens.plots import style
from rim_lens.units import AnyHead, Head, heads_from

PLAIN_AXIS = {"showgrid": False, "zeroline": False}


def head_map(
    table: pd.DataFrame,
    column: str,
    hovers: Sequence[str],
    *,
    title: str,
    caption: str,
    unit: str,
    signed: bool = True,
    marked: Sequence[AnyHead] = (),
    shape: tuple[int, int] | None = None,
    missing: Mapping[Head, str] | None = None,
) -> go.Figure:
    """A map of one column of a table with a row per head.

    Args:
        table: columns `layer`, `head` and `column`.
        column: what is shown.
        hovers: hover text of every row.
        title: of the figure.
        caption: under the title; states n.
        unit: of the values, beside the scale.
        signed: whether zero is the middle of the scale.
        marked: heads with a ring; the caption says what it means.
        shape: layers and heads of the model, where the table may lack some. Those are hatched, so that nobody takes
            them for zeros, and the caption says so.
        missing: what the hover says of such a head; "not measured" where nothing is given.
    """
    values, hover = grid(table, table[column], shape), grid(table, list(hovers), shape)
    low, high = (0.0, float(np.nanmax(values))) if np.isfinite(values).any() else (0.0, 1.0)
    scale = style.diverging(values, unit) if signed else style.sequential(low, high, unit)
    absent = [Head(int(layer), int(head)) for head, layer in np.argwhere(~np.isfinite(values))]
    figure = style.blank(
        title,
        f"{caption}; hatched: not measured" if absent else caption,
        coloraxis=scale,
        xaxis={"title": {"text": "layer"}, "range": [-0.5, values.shape[1] - 0.5]} | PLAIN_AXIS,
        yaxis={"title": {"text": "head"}, "range": [-0.5, len(values) - 0.5], "dtick": 1 if len(values) <= 16 else 4}
        | PLAIN_AXIS,
        margin={"b": 48},
        meta={"cells": "heads"},  # pages and notebooks link maps of heads
        height=190 + max(160, min(520, 22 * len(values))),
    )
    figure.add_heatmap(
        z=style.cells(values),
        text=hover,
        coloraxis="coloraxis",
        hovertemplate="%{text}<extra></extra>",
        xgap=1,
        ygap=1,
        hoverongaps=False,
    )
    if absent:
        said = missing or {}
        figure.add_scatter(
            x=[layer for layer, _ in absent],
            y=[head for _, head in absent],
            mode="markers",
            marker={"symbol": "line-ne-open", "size": 7, "color": style.GREY, "line": {"width": 1.5}},
            customdata=[f"<b>{one}</b><br>{said.get(one, 'not measured')}" for one in absent],
            hovertemplate="%{customdata}<extra></extra>",
            showlegend=False,
        )
    for colour, width in (("#ffffff", 4.5), ("#000000", 2.0)) if marked else ():  # seen on dark and on light cells
        figure.add_scatter(
            x=[layer for layer, _ in heads_from(marked)],
            y=[head for _, head in heads_from(marked)],
            mode="markers",
            marker={"symbol": "circle-open", "size": 11, "color": colour, "line": {"width": width}},
            hoverinfo="skip",
            showlegend=False,
        )
    return figure


def grid(table: pd.DataFrame, values: Sequence[object], shape: tuple[int, int] | None = None) -> np.ndarray:
    """Values of a table's rows as [head, layer]; NaN or empty where there is no row."""
    layers, heads = table["layer"].to_numpy(int), table["head"].to_numpy(int)
    n_layers, n_heads = shape or (layers.max() + 1, heads.max() + 1)
    array = np.asarray(values)
    is_number = array.dtype.kind == "f"
    filled = np.full((n_heads, n_layers), np.nan if is_number else "", dtype=float if is_number else object)
    filled[heads, layers] = array
    return filled
