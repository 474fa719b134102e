"""Figures of span attention, of its contrast between refused and complied answers, and over the length of the CoT."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from rim_lens.plots import style
from rim_lens.plots.head_map import head_map
from rim_lens.units import Head

if TYPE_CHECKING:
    from rim_lens.inference_time.cot_length import AttentionByLength
    from rim_lens.inference_time.refusal_heads import RefusalHeads
    from rim_lens.inference_time.span_attention import SpanAttention

CONTRASTS = {
    "cot_divergence": "Attention to the CoT: complied against refused answers",
    "empty_span": "Attention to the empty think span: refused against complied answers",
    "tag_to_span": "Attention to the empty think span less the assistant tag: refused against complied answers",
    "empty_span_change": "Attention to the think tags: thinking off against on",
}
SEGMENTS = {
    "cot": "the CoT",
    "think_open": "the opening think tag",
    "think_close": "the closing think tag",
    "user": "the request",
    "system": "the system prompt",
    "assistant_tag": "the assistant tag",
    "response": "the answer",
}


def attention_contrast(heads: RefusalHeads, contrast: str | None = None) -> go.Figure:
    """Head map of one contrast (default: the first tested), candidates ringed.

    Between groups: difference of their mean attention mass. Against an outcome: Spearman's correlation of mass with it.
    Whatever side a contrast tests for, more attention with more refusal is above zero.
    """
    name = contrast or str(heads.table["contrast"].iloc[0])
    rows = heads.of(name)  # type: ignore[arg-type]
    first = rows.iloc[0]
    turned = first["plus"].endswith("complied")
    more, less = (first["minus"], first["plus"]) if turned else (first["plus"], first["minus"])
    sign = -1 if turned else 1
    if by_outcome(heads, name):
        n, values, unit = f"{first['n_plus']} chats", rows["mass_effect"], f"ρ of attention with being {more}"
    else:
        n = f"{first['n_plus']} {first['plus']}, {first['n_minus']} {first['minus']}"
        values, unit = 100 * rows["shift"], f"points of attention, {more} − {less}"
    return head_map(
        rows.assign(shown=sign * values),
        "shown",
        [_contrast_hover(row) for _, row in rows.iterrows()],
        title=contrast_title(heads, name),
        caption=f"n = {n}; {heads.n_permutations} permutations; rings: candidates, q < 0.05 on mass and lift",
        unit=unit,
        marked=heads.candidates(name),  # type: ignore[arg-type]
    )


def by_outcome(heads: RefusalHeads, name: str) -> bool:
    """Whether a contrast compares heads with a number per chat, not between groups of answers."""
    return bool(heads.of(name)["mass_auroc"].isna().all())  # type: ignore[arg-type]


def contrast_title(heads: RefusalHeads, name: str) -> str:
    """What a contrast compares."""
    whole = CONTRASTS.get(name, name)
    return f"{whole.split(':')[0]} and the refusal score" if by_outcome(heads, name) else whole


def _contrast_hover(row: pd.Series) -> str:
    """Hover: mean attention on both sides, effect with interval, AUROC where there are groups, q."""
    area = f"AUROC {row['mass_auroc']:.2f}, " if np.isfinite(row["mass_auroc"]) else ""
    return (
        f"<b>{row['name']}</b><br>{row['plus']} {100 * row['mass_plus']:.1f} %, {row['minus']} "
        f"{100 * row['mass_minus']:.1f} % of attention"
        f"<br>effect {style.number(row['mass_effect'], sign=True)} {style.interval(row['mass_low'], row['mass_high'])}"
        f"<br>{area}q = {row['mass_q']:.2g} (lift: q = {row['lift_q']:.2g})"
    )


def segment_map(spans: SpanAttention, segment: str = "cot") -> go.Figure:
    """Head map of the mean attention mass on one segment."""
    table = spans.to_dataframe()
    rows = table[table["segment"] == segment]
    hover = [
        f"<b>{Head(row['layer'], row['head'])}</b><br>{100 * row['mass_mean']:.1f} % of attention (sd over prompts "
        f"{100 * row['mass_sd']:.1f})<br>{style.number(row['lift_mean'])} times the segment's share of the tokens"
        for _, row in rows.iterrows()
    ]
    return head_map(
        rows.assign(percent=100 * rows["mass_mean"]),
        "percent",
        hover,
        title=f"Attention to {SEGMENTS.get(segment, segment)}",
        caption=f"n = {style.one_or_range(rows['n'])} chats with that segment; queries: {spans.queries} position",
        unit="% of attention, mean over chats",
        signed=False,
    )


def length_curve(by_length: AttentionByLength, quantity: Literal["mass", "lift"] = "mass") -> go.Figure:
    """Attention to each segment over the number of CoT tokens.

    `mass` in percent, or `lift` against the share of tokens.
    """
    table, is_mass = by_length.table, quantity == "mass"
    bins = table.drop_duplicates("cot_tokens")
    figure = style.blank(
        f"Attention by segment over CoT length: {by_length.head}",
        f"n = {bins['n'].sum()} chats, {style.one_or_range(bins['n'])} a point; bars are 95 % intervals; queries: "
        f"{by_length.queries} position",
        xaxis={"title": {"text": "tokens of the CoT"}, "rangemode": "tozero", "zeroline": False},
        yaxis={
            "title": {"text": "% of attention" if is_mass else "attention over the segment's share of tokens"},
            "rangemode": "tozero",
        },
        height=440,
    )
    times, unit = (100.0, " %") if is_mass else (1.0, "×")
    for segment, rows in table.groupby("segment", sort=False):
        colour, symbol = style.SEGMENTS[str(segment)]
        value, low, high = (times * rows[name] for name in (quantity, f"{quantity}_low", f"{quantity}_high"))
        figure.add_scatter(
            name=str(segment),
            x=rows["cot_tokens"],
            y=value,
            error_y=style.error_bars(value, low, high),
            mode="lines+markers",
            line={"color": colour, "width": 1.6},
            marker={"symbol": symbol, "size": 8},
            customdata=[
                f"<b>{segment}</b>, CoT of {row['cot_low']:.0f} to {row['cot_high']:.0f} "
                f"tokens<br>{style.number(value[i])}{unit} {style.interval(low[i], high[i])}, n = {row['n']}"
                for i, row in rows.iterrows()
            ],
            hovertemplate="%{customdata}<extra></extra>",
        )
    return figure
