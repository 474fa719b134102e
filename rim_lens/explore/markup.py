"""Tokens and answers as HTML for notebooks. Every text of a prompt or a model is escaped."""

from collections.abc import Sequence
from html import escape
from typing import Any

import pandas as pd

from rim_lens.explore.answers import Answer
from rim_lens.plots.style import number
from rim_lens.units import AnyHead, Head

SIDE_BY_SIDE = "display:grid;grid-template-columns:repeat(auto-fit,minmax(18rem,1fr));gap:1.5rem"
EDGES = {"user": "#8A8F98", "think_open": "#D55E00", "cot": "#0072B2", "think_close": "#D55E00"}


def columns(*parts: str) -> str:
    """Fragments side by side, or below each other where there is little room."""
    return f'<div style="{SIDE_BY_SIDE}">{"".join(f"<div>{part}</div>" for part in parts)}</div>'


def tokens_html(title: str, rows: pd.DataFrame) -> str:
    """A chat's tokens, shaded by weight relative to the largest, segments underlined; exact weights on hover."""
    top = float(rows["weight"].max()) or 1.0
    most = rows.loc[rows["weight"].idxmax()]
    spans = [
        f'<span title="{escape(row.segment)}: {100 * row.weight:.2f} % of attention" style="background:rgba(213,94,0,'
        f'{0.7 * row.weight / top:.3f});border-bottom:2px solid {EDGES.get(row.segment, "transparent")}">'
        f"{escape(row.text).replace(chr(10), '↵<wbr>')}</span>"
        for row in rows.itertuples()
    ]
    return (
        f"<b>{escape(title)}</b><br><small>{len(rows)} tokens; most: {100 * most['weight']:.1f} % of attention on one "
        f"token of {escape(most['segment'])}</small>"
        f'<div style="white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.9">{"".join(spans)}</div>'
    )


def answer_html(title: str, said: Answer) -> str:
    """Refusal score, label, CoT and answer."""
    cot = f'<div style="opacity:.7;white-space:pre-wrap">{escape(said.cot)}</div>' if said.cot else ""
    return (
        f"<b>{escape(title)}</b><br>refusal score {number(said.score)} nats, {escape(said.label)}{cot}"
        f'<div style="white-space:pre-wrap">{escape(said.response)}</div>'
    )


def table_html(title: str, table: pd.DataFrame) -> str:
    """A small table under its title."""
    return f"<b>{escape(title)}</b>{table.to_html(index=False, border=0, escape=True, float_format='{:.3g}'.format)}"


def names(heads: Sequence[AnyHead]) -> str:
    """L12H3, L4H0."""
    return ", ".join(str(Head.parse(head)) for head in heads)


def frame(head: Head, dash: str = "solid") -> dict[str, Any]:
    """A frame around a head's cell in a map."""
    layer, index = head
    edges = {"x0": layer - 0.5, "x1": layer + 0.5, "y0": index - 0.5, "y1": index + 0.5}
    return {"type": "rect", **edges, "line": {"color": "black", "width": 3, "dash": dash}}
