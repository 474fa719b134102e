"""Figure of `judge_report`: how often a judge is right on a label, model by model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import plotly.graph_objects as go

from rim_lens.errors import RimLensError
from rim_lens.plots import style

if TYPE_CHECKING:
    from rim_lens.behavior.judge_report import JudgeReport

SHARES = {"sensitivity": (style.BLUE, "circle"), "specificity": (style.GREEN, "diamond")}
COUNTS = {"sensitivity": ("hits", "positives"), "specificity": ("rejections", "negatives")}


def judge_errors(report: JudgeReport, label: str = "refused") -> go.Figure:
    """Sensitivity and specificity on a label, overall and per model and source, with 95 % intervals.

    Raises:
        RimLensError: a label that the report has not.

    """
    rows = report.table[report.table["label"] == label]
    if rows.empty:
        raise RimLensError(
            f"The report has no label {label!r}; it has {', '.join(dict.fromkeys(report.table['label']))}."
        )
    groups = [style.text(group) for group in rows["group"]]
    figure = style.blank(
        f"How often “{label}” is judged right",
        f"n = {int(rows['n'].iloc[0])} labelled answers; sensitivity: of those labelled {label}; specificity: of the "
        f"others; bars are 95 % intervals; judge: {report.errors.judge}",
        xaxis=style.percent_axis("share judged right"),
        yaxis={
            "tickvals": list(range(len(groups))),
            "ticktext": groups,
            "range": [len(groups) - 0.5, -0.5],
            "showgrid": False,
            "zeroline": False,
        },
        height=150 + 34 * len(groups),
    )
    for i, (name, (colour, symbol)) in enumerate(SHARES.items()):
        hits, n = COUNTS[name]
        hover = [
            f"<b>{group}</b><br>{name} {style.percent(row[name])} "
            f"{style.interval(row[f'{name}_low'], row[f'{name}_high'], '%')}, {row[hits]} of {row[n]}"
            for group, (_, row) in zip(groups, rows.iterrows(), strict=True)
        ]
        figure.add_scatter(
            name=name,
            x=rows[name],
            y=[place + 0.24 * i - 0.12 for place in range(len(groups))],
            error_x=style.error_bars(rows[name], rows[f"{name}_low"], rows[f"{name}_high"]),
            mode="markers",
            marker={"color": colour, "symbol": symbol, "size": 9},
            customdata=hover,
            hovertemplate="%{customdata}<extra></extra>",
        )
    return figure
