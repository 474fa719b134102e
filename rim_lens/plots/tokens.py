"""Token view of a head: a chat's tokens in reading order, coloured by the head's attention from the decision position.

Each segment has a frame round its tokens; a segment that goes on in the next row is framed in both.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go

from rim_lens.plots import style
from rim_lens.plots.probe import token_label
from rim_lens.units import AnyHead, Head

if TYPE_CHECKING:
    from rim_lens.inference_time.token_attention import TokenAttention


def token_view(attention: TokenAttention, chat: int = 0, head: AnyHead | None = None, per_row: int = 10) -> go.Figure:
    """Tokens of one chat in rows of `per_row`, coloured by one head's attention (default: the first head)."""
    head = Head.parse(head or attention.heads[0])
    rows = attention.of(chat, head)
    n_rows = math.ceil(len(rows) / per_row)
    cells = n_rows * per_row - len(rows)
    weights = np.append(rows["weight"].to_numpy(float), np.full(cells, np.nan)).reshape(n_rows, per_row)
    labels = [token_label(text) for text in rows["text"]]
    texts = np.array([*labels, *[""] * cells], dtype=object).reshape(n_rows, per_row)
    hover_texts = [
        f"<b>{label}</b><br>{segment}, token {i}<br>{100 * weight:.2f} % of attention"
        for i, (label, segment, weight) in enumerate(zip(labels, rows["segment"], rows["weight"], strict=True))
    ]
    hover = np.array([*hover_texts, *[""] * cells], dtype=object).reshape(n_rows, per_row)
    about = attention.chats.iloc[chat]
    figure = style.blank(
        f"What {head} looks at, thinking {about['thinking']}",
        f"n = {len(rows)} tokens of one chat" + (f", answer {about['note']}" if about["note"] else ""),
        coloraxis=style.sequential(0.0, max(float(rows["weight"].max()), 1e-9), "share of attention"),
        xaxis={"visible": False, "fixedrange": True},
        yaxis={"visible": False, "autorange": "reversed", "fixedrange": True},
        height=200 + 28 * n_rows,
    )
    figure.add_heatmap(
        z=style.cells(weights),
        text=texts,
        customdata=hover,
        texttemplate="%{text}",
        textfont={"size": 11},
        coloraxis="coloraxis",
        hovertemplate="%{customdata}<extra></extra>",
        hoverongaps=False,
        xgap=1,
        ygap=1,
    )
    for segment, x, y in frames(rows["segment"].tolist(), per_row):
        line = {"color": style.SEGMENTS[segment][0], "width": 2.5}
        figure.add_scatter(name=segment, x=x, y=y, mode="lines", line=line, hoverinfo="skip")
    return figure


def frames(segments: list[str], per_row: int) -> list[tuple[str, list[float | None], list[float | None]]]:
    """Outline of every segment: its name and the x and y of its line, None between rows.

    Cell (row, column) is 1 wide.
    """
    inset = 0.44  # so that the frames of neighbours stand beside each other
    outlines = []
    for segment in dict.fromkeys(segments):
        members = [i for i, name in enumerate(segments) if name == segment]
        x: list[float | None] = []
        y: list[float | None] = []
        for row in sorted({i // per_row for i in members}):
            columns = [i % per_row for i in members if i // per_row == row]
            for first, last in _runs(columns):
                left, right = first - inset, last + inset
                x += [left, right, right, left, left, None]
                y += [row - inset, row - inset, row + inset, row + inset, row - inset, None]
        outlines.append((segment, x[:-1], y[:-1]))
    return outlines


def _runs(columns: list[int]) -> list[tuple[int, int]]:
    """First and last of every unbroken run of columns."""
    starts = [c for c in columns if c - 1 not in columns]
    ends = [c for c in columns if c + 1 not in columns]
    return list(zip(starts, ends, strict=True))
