"""Figures of heads over a series.

Effect and attention of chosen and random heads, and whether heads keep their order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import pandas as pd
import plotly.graph_objects as go

from rim_lens.plots import style

if TYPE_CHECKING:
    from rim_lens.training_time.series_heads import SeriesHeads

Quantity = Literal["effect", "attention"]


def heads_by_checkpoint(heads: SeriesHeads, quantity: Quantity = "effect") -> go.Figure:
    """Mean effect (or attention) of the chosen and of the random heads at every checkpoint."""
    is_effect = quantity == "effect"
    figure = style.blank(
        "What refusal heads do, checkpoint by checkpoint"
        if is_effect
        else f"How much refusal heads look at the {heads.segment}",
        f"n = {heads.n_prompts} prompts; mean over {heads.n_chosen} heads chosen at {heads.reference} and "
        f"{heads.n_random} random heads of the same layers; bars are 95 % intervals over prompts"
        + ("; below zero, a head supports refusal" if is_effect else ""),
        xaxis={"title": {"text": "checkpoint"}, "type": "category"},
        yaxis={"title": {"text": "change without the head (nats)"}}
        if is_effect
        else {"title": {"text": "attention from the decision position"}, "tickformat": ".0%", "rangemode": "tozero"},
        height=420,
    )
    x = [style.text(name) for name in heads.table["checkpoint"]]
    for name, suffix, colour, symbol in (
        ("random heads", "_random", style.GREY, "square"),
        ("chosen heads", "", style.BLUE, "circle"),
    ):
        column = f"{quantity}{suffix}"
        rows = heads.table
        figure.add_scatter(
            name=name,
            x=x,
            y=rows[column],
            error_y=style.error_bars(rows[column], rows[f"{column}_low"], rows[f"{column}_high"]),
            mode="markers",
            marker={"color": colour, "symbol": symbol, "size": 9},
            customdata=[hover_of(row, column, is_effect) for _, row in rows.iterrows()],
            hovertemplate=f"{name}<br>%{{customdata}}<extra></extra>",
        )
    return figure


def head_order(heads: SeriesHeads) -> go.Figure:
    """Rank correlation over heads with the reference, for effect and attention, and of the reference's two halves."""
    rows = heads.table[heads.table["checkpoint"] != heads.reference]
    figure = style.blank(
        f"Do heads keep the order that they have at {heads.reference}?",
        f"n = {heads.n_prompts} prompts; Spearman's ρ over {heads.n_chosen + heads.n_random} heads (effect) and "
        f"{heads.n_heads} heads (attention); bars are 95 % intervals over prompts; lines: ρ between halves of the "
        f"prompts at {heads.reference}",
        xaxis={"title": {"text": "checkpoint"}, "type": "category"},
        yaxis={"title": {"text": "ρ over heads"}, "range": [-1.05, 1.05]},
        height=420,
    )
    x = [style.text(name) for name in rows["checkpoint"]]
    for name, colour, symbol in (("effect", style.BLUE, "circle"), ("attention", style.VERMILION, "square")):
        column = f"{name}_rank"
        figure.add_scatter(
            name=name,
            x=x,
            y=rows[column],
            error_y=style.error_bars(rows[column], rows[f"{column}_low"], rows[f"{column}_high"]),
            mode="markers",
            marker={"color": colour, "symbol": symbol, "size": 9},
            hovertemplate=f"{name}: ρ = %{{y:.2f}}<extra></extra>",
        )
        figure.add_hline(y=heads.halves[name], line={"color": colour, "dash": "dot", "width": 1.5})
    return figure


def hover_of(row: pd.Series, column: str, is_effect: bool) -> str:
    """Hover: the value with its interval."""
    value, low, high = (row[f"{column}{end}"] for end in ("", "_low", "_high"))
    unit = "" if is_effect else "%"
    text = style.number(value, sign=True) if is_effect else style.percent(value)
    return f"<b>{style.text(row['checkpoint'])}</b><br>{text} {style.interval(low, high, unit)}"
