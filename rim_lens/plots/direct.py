"""Figures of direct logit attribution: heads on the direct path, and direct against total effect."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go

from rim_lens.plots import style
from rim_lens.plots.head_map import head_map

if TYPE_CHECKING:
    from rim_lens.inference_time.direct_attribution import DirectAttribution, SelfRepair

N_NAMED = 5


def attribution_map(attribution: DirectAttribution) -> go.Figure:
    """What every head writes to the logit difference by itself."""
    rows = attribution.table[attribution.table["kind"] == "head"]
    hover = [
        f"<b>{row['name']}</b><br>{style.number(row['effect'], sign=True)} nats "
        f"{style.interval(row['low'], row['high'])}"
        for _, row in rows.iterrows()
    ]
    return head_map(
        rows,
        "effect",
        hover,
        title="What heads write to the refusal tokens directly",
        caption=f"n = {len(attribution.logits)} prompts; mean over prompts, norms frozen; {attribution.tokens}",
        unit="direct effect on the logit difference (nats)",
        shape=attribution.heads.shape[1:],  # type: ignore[arg-type]
    )


def direct_against_total(repair: SelfRepair) -> go.Figure:
    """Total effect of zeroing each head against its direct effect; on the line nothing else responds."""
    table = repair.table
    figure = style.blank(
        "Direct against total effect of zeroing a head",
        f"n = {table['n'].iloc[0]} prompts, {len(table)} heads; bars are 95 % intervals; on the line later layers "
        "do not respond, between it and zero they repair",
        xaxis={"title": {"text": "direct effect (nats)"}, "zerolinewidth": 2},
        yaxis={"title": {"text": "total effect (nats)"}, "zerolinewidth": 2},
        height=460,
    )
    ends = np.array([table["direct"].min(), table["direct"].max()])
    line = {"color": style.GREY, "dash": "dash", "width": 1.5}
    figure.add_scatter(x=ends, y=ends, mode="lines", line=line, hoverinfo="skip", showlegend=False)
    figure.add_scatter(
        x=table["direct"],
        y=table["total"],
        error_x=style.error_bars(table["direct"], table["direct_low"], table["direct_high"]),
        error_y=style.error_bars(table["total"], table["total_low"], table["total_high"]),
        mode="markers+text",
        text=[name if rank < N_NAMED else "" for rank, name in enumerate(table["name"])],
        textposition="top center",
        marker={"color": style.BLUE, "size": 7},
        customdata=[
            f"<b>{row['name']}</b><br>direct {style.number(row['direct'], sign=True)} nats "
            f"{style.interval(row['direct_low'], row['direct_high'])}<br>"
            f"total {style.number(row['total'], sign=True)} nats "
            f"{style.interval(row['total_low'], row['total_high'])}<br>"
            f"response {style.number(row['response'], sign=True)} nats "
            f"{style.interval(row['response_low'], row['response_high'])}, q = {row['q']:.2g}"
            for _, row in table.iterrows()
        ],
        hovertemplate="%{customdata}<extra></extra>",
        showlegend=False,
    )
    return figure
