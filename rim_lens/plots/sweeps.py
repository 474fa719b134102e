"""Figures of the sweeps: what ablating, patching or exchanging each head does to the score at the decision position."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from rim_lens.plots import style
from rim_lens.plots.head_map import head_map
from rim_lens.units import Head

if TYPE_CHECKING:
    from rim_lens.inference_time.interchange import InterchangeSweep
    from rim_lens.inference_time.patching import PatchingSweep
    from rim_lens.inference_time.sweep import AblationSweep

DIRECTIONS = {
    "into_harmful": "Outputs of the harmless twin put into the harmful request",
    "into_harmless": "Outputs of the harmful request put into its harmless twin",
}
RINGS = "rings: q < 0.05"


def ablation_map(sweep: AblationSweep) -> go.Figure:
    """Effect of zeroing each head alone; below zero the head supports refusal.

    Heads that were screened out are hatched, with their estimate on hover.
    """
    n_heads = sweep.effect.shape[1] * sweep.effect.shape[2]
    return head_map(
        sweep.table,
        "effect",
        [hover_of(row) for _, row in sweep.table.iterrows()],
        title="Effect of ablating each head on refusal",
        caption=f"n = {len(sweep.clean)} prompts; {len(sweep.table)} of {n_heads} heads measured exactly; {RINGS}",
        unit=f"change of the {quantity(sweep.metric)} (below 0: the head supports refusal)",
        marked=significant(sweep.table),
        shape=(sweep.effect.shape[1], sweep.effect.shape[2]),
        missing=estimates(sweep),
    )


def estimates(sweep: AblationSweep) -> dict[Head, str]:
    """What is known of each head that was screened out: its first-order estimate, mean over the prompts."""
    if sweep.estimate is None:
        return {}
    measured = set(Head.from_table(sweep.table))
    n = len(sweep.estimate)
    return {
        Head(*place): f"not measured; first-order estimate {style.number(float(value), sign=True)}, n = {n}"
        for place, value in np.ndenumerate(sweep.estimate.mean(axis=0))
        if Head(*place) not in measured and np.isfinite(value)
    }


def patching_map(sweep: PatchingSweep) -> go.Figure:
    """Effect of giving each head its think-off output with thinking on; above zero refusal returns."""
    return head_map(
        sweep.table,
        "effect",
        [
            f"{hover_of(row)}<br>{style.percent(row['returned'], sign=True)} of the gap "
            f"{style.interval(row['returned_low'], row['returned_high'], '%')}"
            for _, row in sweep.table.iterrows()
        ],
        title="Refusal that returns with each head's think-off output",
        caption=f"n = {len(sweep.score_on)} prompts; score off {style.number(sweep.score_off.mean())}, on "
        f"{style.number(sweep.score_on.mean())}; {RINGS}",
        unit=f"change of the {quantity(sweep.metric)} (above 0: refusal returns)",
        marked=significant(sweep.table),
    )


def patching_together(sweep: PatchingSweep) -> go.Figure:
    """Share of the gap between thinking off and on that the first heads return together."""
    rows = sweep.together
    figure = style.blank(
        "Refusal that the first heads return together",
        f"n = {style.one_or_range(rows['n'])} prompts; bars are 95 % intervals; the last point is all heads; heads "
        "were chosen on these prompts, which flatters them",
        xaxis={"title": {"text": "heads patched"}, "type": "category"},
        yaxis={"title": {"text": "share of the gap off − on"}, "tickformat": ".0%", "rangemode": "tozero"},
    )
    figure.add_scatter(
        x=[str(k) for k in rows["k"]],
        y=rows["returned"],
        error_y=style.error_bars(rows["returned"], rows["returned_low"], rows["returned_high"]),
        mode="markers",
        marker={"color": style.BLUE, "size": 9},
        customdata=[
            f"<b>{row['k']:.0f} heads</b><br>{style.percent(row['returned'], sign=True)} of the gap "
            f"{style.interval(row['returned_low'], row['returned_high'], '%')}"
            for _, row in rows.iterrows()
        ],
        hovertemplate="%{customdata}<extra></extra>",
        showlegend=False,
    )
    return figure


def interchange_map(
    sweep: InterchangeSweep, direction: Literal["into_harmful", "into_harmless"] = "into_harmful"
) -> go.Figure:
    """Effect of exchanging each head's output between a harmful request and its harmless twin."""
    rows = sweep.table[sweep.table["direction"] == direction]
    return head_map(
        rows,
        "effect",
        [hover_of(row) for _, row in rows.iterrows()],
        title=DIRECTIONS[direction],
        caption=f"n = {len(sweep.score_harmful)} pairs; {RINGS}",
        unit=f"change of the {quantity(sweep.metric)}",
        marked=significant(rows),
    )


def hover_of(row: pd.Series) -> str:
    """Hover of a head: effect with its interval, p and q."""
    effect = f"{style.number(row['effect'], sign=True)} {style.interval(row['low'], row['high'])}"
    return f"<b>{row['name']}</b><br>{effect}, n = {row['n']}<br>{style.p_value(row['p'])}, q = {row['q']:.2g}"


def significant(table: pd.DataFrame) -> list[Head]:
    """Heads with q < 0.05."""
    rows = table[table["q"] < 0.05]
    return Head.from_table(rows)


def quantity(metric: str) -> str:
    """What a sweep's metric is called on an axis: its first words."""
    return "refusal score (nats)" if metric.startswith("refusal score") else metric
