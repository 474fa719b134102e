"""Figures of the refusal probe and of its reading along the chain of thought."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from rim_lens.plots import style
from rim_lens.plots.head_map import head_map
from rim_lens.units import Head

if TYPE_CHECKING:
    from rim_lens.inference_time.probe import RefusalProbe
    from rim_lens.inference_time.trace import RefusalTrace


def probe_map(probe: RefusalProbe, kind: str = "supervised") -> go.Figure:
    """Cross-validated AUROC of the refusal direction, layers against template positions.

    0.5 is the middle of the scale.
    """
    area = probe.grid("auroc", kind).T
    rows = probe.table[probe.table["kind"] == kind]
    first = rows.iloc[0]
    hover = np.array([_hover(row) for _, row in rows.iterrows()], dtype=object).reshape(area.T.shape).T
    ticks = [-0.5, -0.25, 0.0, 0.25, 0.5]
    scale = style.diverging(np.array([0.5]), "AUROC (0.5: chance)")
    scale["colorbar"] = {**scale["colorbar"], "tickvals": ticks, "ticktext": ["0", "0.25", "0.5", "0.75", "1"]}  # type: ignore[dict-item]
    labels = [token_label(label) for label in probe.positions]
    figure = style.blank(
        "Refusal read from the residual stream, by layer and template token"
        + ("" if kind == "supervised" else f" ({kind})"),
        f"n = {first['n_refused']} refused, {first['n_complied']} complied; {probe.n_folds} folds; 0.5 is chance",
        coloraxis=scale,
        xaxis={"title": {"text": "layer"}, "showgrid": False, "zeroline": False},
        yaxis={
            "tickvals": list(range(len(labels))),
            "ticktext": labels,
            "showgrid": False,
            "zeroline": False,
            "autorange": "reversed",
        },
        margin={"b": 48},
        height=210 + 30 * len(labels),
    )
    figure.add_heatmap(
        z=style.cells(area - 0.5),
        text=hover,
        coloraxis="coloraxis",
        hovertemplate="%{text}<extra></extra>",
        xgap=1,
        ygap=1,
    )
    return figure


def _hover(row: pd.Series) -> str:
    area = f"AUROC {row['auroc']:.3f} {style.interval(row['auroc_low'], row['auroc_high'])}"
    reach = f"d′ {style.number(row['d_prime'])} {style.interval(row['d_prime_low'], row['d_prime_high'])}"
    significance = f", q = {row['q']:.2g}" if pd.notna(row.get("q", np.nan)) else ""
    return f"<b>layer {row['layer']}, {token_label(row['token'])}</b><br>{area}{significance}<br>{reach}"


def token_label(token: str) -> str:
    """A token as an axis can show it: line breaks and other control characters written out."""
    return style.text(token.replace("\n", "↵").replace("\t", "⇥") or "(empty)")


def trace_curve(trace: RefusalTrace) -> go.Figure:
    """Mean reading on the refusal direction along the CoT, over the band of directions fitted to permuted labels."""
    curve = trace.curve
    x = curve["position"].tolist()
    figure = style.blank(
        "Intent to refuse along the chain of thought",
        f"n = {len(trace.chats)} CoTs, layer {trace.layer}; blue band: 95 % interval of the mean; grey band: 95 % of "
        f"{len(trace.control_falls)} directions fitted to permuted labels",
        xaxis={"title": {"text": "place in the CoT"}, "tickformat": ".0%", "range": [0, 1], "zeroline": False},
        yaxis={"title": {"text": "reading (0: midway, 1: one sd towards refusal)"}},
        height=420,
    )
    figure.add_trace(style.band(x, curve["control_low"], curve["control_high"], style.GREY, "permuted labels"))
    figure.add_trace(style.band(x, curve["low"], curve["high"], style.BLUE, "95 % interval"))
    for name, colour, dash in (
        ("mean", style.BLUE, "solid"),
        ("refused", style.GREEN, "dash"),
        ("complied", style.VERMILION, "dot"),
    ):
        if curve[name].notna().any():
            label = "all" if name == "mean" else f"{name} (n = {curve[f'n_{name}'].iloc[0]})"
            line = {"color": colour, "dash": dash, "width": 2}
            figure.add_scatter(name=label, x=x, y=curve[name], mode="lines", line=line, hovertemplate="%{y:.2f}")
    return figure


def cliff_heads(trace: RefusalTrace) -> go.Figure:
    """Head map: how far each head's own contribution falls where the reading falls most steeply."""
    hover = [
        f"<b>{row['name']}</b><br>change {style.number(-row['fall'], sign=True)} sd "
        f"{style.interval(-row['high'], -row['low'])}<br>{style.percent(row['share'], sign=True)} of the whole fall, q "
        f"= {row['q']:.2g}"
        for _, row in trace.table.iterrows()
    ]
    return head_map(
        trace.table.assign(change=-trace.table["fall"]),
        "change",
        hover,
        title="Heads that write the fall",
        caption=f"n = {len(trace.chats)} CoTs; mean over {trace.window} tokens after the steepest fall minus "
        f"{trace.window} before; rings: q < 0.05",
        unit="change of the head's contribution to refusal (sd)",
        marked=Head.from_table(trace.table[trace.table["q"] < 0.05]),
    )
