"""Figures of reasoning patterns: what each costs in refusal, overall and by harm category, and where they are found."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd
import plotly.graph_objects as go

from rim_lens import words
from rim_lens.plots import style
from rim_lens.words import ANY

if TYPE_CHECKING:
    from rim_lens.patterns.arm_distance import ArmDivergence
    from rim_lens.patterns.costs import PatternCosts
    from rim_lens.patterns.own_cots import OwnPatterns

KINDS = (  # legend, classes, colour, marker
    ("patterns", (ANY, *words.PATTERNS), style.VERMILION, "circle"),
    ("other text", None, style.BLUE, "square"),
    ("no CoT", ("off",), style.GREY, "x"),
)
PATTERNS = {
    ANY: (style.VERMILION, "circle"),
    "confirmatory": (style.BLUE, "square"),
    "heuristic": (style.GREEN, "diamond"),
    "deviation": (style.PURPLE, "triangle-up"),
}
LABEL_WIDTH = 16  # characters of a line of a label
ALL_SENTENCES = "any"  # the row of a share table over all patterns


def cost_by_class(costs: PatternCosts) -> go.Figure:
    """Refusal lost with each class of CoT against the reference, with 95 % intervals over prompts and wordings."""
    rows = cost_rows(costs)
    classes = list(rows["class"])
    separated = [words.pattern_class(row["class"]) for _, row in rows.iterrows() if row["q"] < 0.05]
    figure = style.blank(
        f"Refusal lost against {words.pattern_class(costs.reference)}",
        f"n = {style.one_or_range(rows['n_prompts'])} harmful requests; {wordings_words(costs)}; CoTs of "
        f"{costs.tokens_words()} tokens; bars are 95 % intervals over requests and wordings; above zero, refusal is "
        f"lost; q < 0.05 (Benjamini-Hochberg): {', '.join(separated) or 'none'}; judge: {costs.judge}",
        xaxis={"title": {"text": "refusal lost"}, "tickformat": "+.0%", "zerolinewidth": 2},
        yaxis=category_axis([words.pattern_class(name) for name in classes]),
        height=150 + 38 * len(classes),
        hovermode="closest",
    )
    figure.add_vline(x=0, line={"color": style.GREY, "width": 1})
    rest = [name for name in classes if not any(known and name in known for _, known, _, _ in KINDS)]
    for label, known, colour, symbol in KINDS:
        part = rows[rows["class"].isin(rest if known is None else known)]
        if len(part):
            places = [classes.index(name) for name in part["class"]]
            figure.add_trace(cost_points(part, places, label, colour, symbol))
    return figure


def cost_by_category(costs: PatternCosts) -> go.Figure:
    """The same by harm category, for any pattern and each single one."""
    rows = costs.by_category[costs.by_category["class"].isin(PATTERNS)]
    categories = list(dict.fromkeys(rows["category"]))
    counts = rows.groupby("category")["n_prompts"].max()
    classes = [name for name in PATTERNS if (rows["class"] == name).any()]
    n = style.one_or_range(rows["n_prompts"]) if len(rows) else "0"
    figure = style.blank(
        f"Refusal lost against {words.pattern_class(costs.reference)}, by harm category",
        f"n = {n} requests per category{left_out(costs)}; bars are 95 % intervals over requests and wordings; q is "
        f"corrected over all {len(costs.by_category)} comparisons, {int((costs.by_category['q'] < 0.05).sum())} of "
        "them below 0.05",
        xaxis={"title": {"text": "refusal lost"}, "tickformat": "+.0%", "zerolinewidth": 2},
        yaxis=category_axis([f"{name} ({counts[name]})" for name in categories]),
        height=150 + 18 * max(2, len(classes)) * max(1, len(categories)),
        hovermode="closest",
    )
    figure.add_vline(x=0, line={"color": style.GREY, "width": 1})
    for i, name in enumerate(classes):
        part = rows[rows["class"] == name]
        places = [categories.index(one) + (i - (len(classes) - 1) / 2) * 0.19 for one in part["category"]]
        figure.add_trace(cost_points(part, places, name, *PATTERNS[name]))
    return figure


def left_out(costs: PatternCosts) -> str:
    """How many categories have too few requests to be shown, in words."""
    n = costs.answers["category"].dropna().nunique() - costs.by_category["category"].nunique()
    return f", {n} with fewer than {costs.min_prompts} left out" if n else ""


def cost_rows(costs: PatternCosts) -> pd.DataFrame:
    """The table without the reference itself, any pattern first, then the patterns, the controls and no CoT."""
    pooled = costs.contrasts[(costs.contrasts["class"] == ANY) & (costs.contrasts["reference"] == costs.reference)]
    others = costs.table[costs.table["class"] != costs.reference]
    rows = pd.concat([pooled, others], ignore_index=True)
    order = [ANY, *words.PATTERNS, *(name for name in others["class"] if name not in (*words.PATTERNS, "off")), "off"]
    return rows.sort_values("class", key=lambda column: column.map(order.index), kind="stable")


def cost_points(part: pd.DataFrame, places: Sequence[float], label: str, colour: str, symbol: str) -> go.Scatter:
    """Costs as points with their intervals."""
    return go.Scatter(
        name=style.text(label),
        x=part["cost"],
        y=places,
        error_x=style.error_bars(part["cost"], part["low"], part["high"]),
        mode="markers",
        marker={"color": colour, "symbol": symbol, "size": 9},
        customdata=[cost_words(row) for _, row in part.iterrows()],
        hovertemplate="%{customdata}<extra></extra>",
    )


def cost_words(row: pd.Series) -> str:
    """Hover: cost with interval, p and q, the class's own rates, n."""
    head = words.pattern_class(row["class"])
    if isinstance(row.get("category"), str):
        head = f"{row['category']}: {head}"
    q = f", q = {row['q']:.2g}" if pd.notna(row["q"]) else ""
    return "<br>".join(
        [
            f"<b>{style.text(head)}</b>",
            f"{style.points(row['cost'], row['low'], row['high'])}, {style.p_value(row['p'])}{q}",
            *(
                f"{name} {style.percent(row[name])} {style.interval(row[f'{name}_low'], row[f'{name}_high'], '%')}"
                for name in ("refused", "complied", "incoherent")
            ),
            f"n = {row['n']} answers, {row['n_prompts']} requests, {row['n_wordings']} wordings",
        ]
    )


def wordings_words(costs: PatternCosts) -> str:
    """How many wordings a class has, and with how many a request was asked."""
    each = costs.table[costs.table["class"] != "off"]
    a_request = (each["n"] / each["n_prompts"]).round().astype(int)
    return (
        f"{style.one_or_range(costs.lengths['wordings'])} wordings per class, "
        f"{style.one_or_range(a_request)} per request"
    )


def shares_by_arm(arms: ArmDivergence) -> go.Figure:
    """Share of pattern sentences in the CoTs of each arm, with 95 % intervals over CoTs."""
    arm_names = list(dict.fromkeys(arms.table["arm"]))
    figure = style.blank(
        "Effort-minimizing sentences in the fine-tuning data",
        f"n = {style.one_or_range(arms.table['n_cots'])} CoTs per arm, {style.one_or_range(arms.table['n'])} "
        f"sentences; bars are 95 % intervals over CoTs; labelled by {arms.annotator}, which finds fewer than there "
        "are",
        xaxis=share_axis(arms.table),
        yaxis=category_axis([words.arm(name) for name in arm_names]),
        height=150 + 18 * 4 * len(arm_names),
        hovermode="closest",
    )
    for i, name in enumerate(PATTERNS):
        part = arms.table[arms.table["pattern"] == (ALL_SENTENCES if name == ANY else name)]
        places = [arm_names.index(one) + (i - (len(PATTERNS) - 1) / 2) * 0.19 for one in part["arm"]]
        heads = [f"{words.arm(one)}: {words.pattern_class(name)}" for one in part["arm"]]
        figure.add_trace(share_points(part, places, heads, name, *PATTERNS[name]))
    return figure


def own_shares(own: OwnPatterns) -> go.Figure:
    """Share of pattern sentences in the model's own CoTs, with 95 % intervals over CoTs."""
    rows = own.table
    labels = [words.pattern_class(ANY if name == ALL_SENTENCES else name) for name in rows["pattern"]]
    figure = style.blank(
        "Effort-minimizing sentences in the model's own chains of thought",
        f"n = {own.n_cots} CoTs, {style.one_or_range(rows['n'])} sentences; bars are 95 % intervals over CoTs; "
        f"labelled by {own.annotator}, which finds fewer than there are",
        xaxis=share_axis(rows),
        yaxis=category_axis(labels),
        height=150 + 38 * len(rows),
        hovermode="closest",
    )
    figure.add_trace(share_points(rows, list(range(len(rows))), labels, "share of sentences", style.BLUE, "circle"))
    return figure.update_layout(showlegend=False)


def share_points(
    part: pd.DataFrame, places: Sequence[float], heads: list[str], label: str, colour: str, symbol: str
) -> go.Scatter:
    """Shares of sentences as points with their intervals."""
    hover = [
        f"<b>{style.text(head)}</b><br>{row['k']} of {row['n']} sentences, {style.percent(row['share'])} "
        f"{style.interval(row['low'], row['high'], '%')}<br>in {row['cots_with_it']} of {row['n_cots']} CoTs"
        for head, (_, row) in zip(heads, part.iterrows(), strict=True)
    ]
    return go.Scatter(
        name=style.text(label),
        x=part["share"],
        y=places,
        error_x=style.error_bars(part["share"], part["low"], part["high"]),
        mode="markers",
        marker={"color": colour, "symbol": symbol, "size": 9},
        customdata=hover,
        hovertemplate="%{customdata}<extra></extra>",
    )


def share_axis(rows: pd.DataFrame) -> dict[str, object]:
    """From zero to a little beyond the highest end of an interval."""
    highest = max(float(rows["high"].max()), float(rows["share"].max()), 0.05)
    return {"title": {"text": "share of sentences"}, "tickformat": ".0%", "range": [-0.02 * highest, 1.08 * highest]}


def category_axis(labels: list[str]) -> dict[str, object]:
    """One place a label, the first one at the top; long labels in several lines, for narrow screens."""
    lines = [textwrap.wrap(label.replace("_", " "), LABEL_WIDTH) for label in labels]
    return {
        "tickvals": list(range(len(labels))),
        "ticktext": ["<br>".join(map(style.text, parts)) for parts in lines],
        "range": [len(labels) - 0.5, -0.5],
        "zeroline": False,
        "showgrid": False,
    }
