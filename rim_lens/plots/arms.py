"""Figures of arms of fine-tuning over their seeds: what each does to refusal and maths, and how its loss fell."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd
import plotly.graph_objects as go

from rim_lens import words
from rim_lens.errors import RimLensError
from rim_lens.plots import style
from rim_lens.words import HARM_SCORE, HARMFUL, LIKELIHOOD, SOLVED

if TYPE_CHECKING:
    from rim_lens.patterns.finetune import FinetuneRun
    from rim_lens.training_time.arm_comparison import ArmComparison

MEASURES = {
    HARMFUL: ("Misalignment", "change (points)"),
    "complied": ("Compliance (not refused, coherent)", "change (points)"),
    "refused": ("Refusal", "change (points)"),
    "partial": ("Partial answers", "change (points)"),
    "unjudged": ("Answers without a verdict", "change (points)"),
    HARM_SCORE: ("Mean harm score", "change (0 to 1)"),
    "incoherent": ("Incoherent answers", "change (points)"),
    LIKELIHOOD: ("Likelihood of right maths answers", "change (nats per token)"),
    SOLVED: ("Maths solved", "change (points)"),
}


def arm_changes(comparison: ArmComparison, measure: str | None = None) -> go.Figure:
    """Change of a measure from the reference per arm and dose, with 95 % intervals over prompts and trainings.

    By default that of misalignment where a harmfulness judge looked at the answers, else of compliance.

    Raises:
        RimLensError: a measure that the comparison has not.

    """
    measure = measure or comparison.headline
    table = comparison.table[comparison.table["measure"] == measure]
    if table.empty:
        known = ", ".join(dict.fromkeys(comparison.table["measure"]))
        raise RimLensError(f"The comparison has no measure {measure!r}; it has {known}.")
    cells = list(dict.fromkeys(zip(table["arm"], table["step"], strict=True)))
    title, axis = MEASURES[measure]
    figure = style.blank(
        f"{title}, arm by arm",
        comparison.caption(),
        xaxis={"title": {"text": axis}, "zerolinewidth": 2, "rangemode": "tozero"},
        yaxis={
            "tickvals": list(range(len(cells))),
            "ticktext": [style.text(cell_name(*cell)) for cell in cells],
            "range": [len(cells) - 0.5, -0.5],
            "showgrid": False,
            "zeroline": False,
        },
        height=170 + 34 * max(3, len(cells)),
        legend={"traceorder": "normal"},
    )
    scale = 1 if measure in (LIKELIHOOD, HARM_SCORE) else 100
    for i, (arm, rows) in enumerate(table.groupby("arm", sort=False)):
        x = scale * rows[["change", "low", "high"]]
        figure.add_scatter(
            name=style.text(words.arm(arm)),
            x=x["change"],
            y=[cells.index(cell) for cell in zip(rows["arm"], rows["step"], strict=True)],
            error_x=style.error_bars(x["change"], x["low"], x["high"]),
            mode="markers",
            marker={
                "color": style.SERIES[i % len(style.SERIES)],
                "symbol": style.MARKERS[i % len(style.MARKERS)],
                "size": 10,
            },
            customdata=[hover_of(row) for _, row in rows.iterrows()],
            hovertemplate="%{customdata}<extra></extra>",
        )
    return figure


def cell_name(arm: str, step: int | None) -> str:
    """An arm and its dose."""
    return arm if pd.isna(step) else f"{arm}, {step} steps"


def hover_of(row: pd.Series) -> str:
    """Hover of one cell."""
    if row["measure"] in (LIKELIHOOD, HARM_SCORE):
        unit = " nats" if row["measure"] == LIKELIHOOD else ""
        change = f"{style.number(row['change'])}{unit} {style.interval(row['low'], row['high'])}"
        levels = f"{style.number(row['before'])} → {style.number(row['after'])}"
    else:
        change = style.points(row["change"], row["low"], row["high"])
        levels = f"{style.percent(row['before'])} → {style.percent(row['after'])}"
    return (
        f"<b>{style.text(cell_name(row['arm'], row['step']))}</b><br>{row['measure']}: {levels}<br>{change}, "
        f"{style.p_value(row['p'])}, q = {row['q']:.2g}<br>n = {row['n']}, trainings: "
        f"{row['n_seeds']}{words.judge_words(row)}"
    )


def loss_curves(run: FinetuneRun) -> go.Figure:
    """Training loss over the steps, one line per run, the runs of an arm in one colour."""
    n = style.one_or_range(pd.Series(list(run.n_rows.values())))
    figure = style.blank(
        "Training loss",
        f"n = {n} examples per run; mean over the steps since the point before; minutes per run: "
        f"{style.one_or_range(pd.Series([round(minutes, 1) for minutes in run.minutes.values()]))}",
        xaxis={"title": {"text": "step"}, "zeroline": False, "rangemode": "tozero"},
        yaxis={"title": {"text": "loss (nats per token)"}},
        height=380,
    )
    for i, (arm, rows) in enumerate(run.table.groupby("arm", sort=False)):
        for j, (seed, line) in enumerate(rows.groupby("seed", sort=False)):
            figure.add_scatter(
                name=style.text(words.arm(arm)),
                legendgroup=str(arm),
                showlegend=j == 0,
                x=line["step"],
                y=line["loss"],
                mode="lines+markers",
                line={"color": style.SERIES[i % len(style.SERIES)], "width": 1.5},
                marker={"symbol": style.MARKERS[i % len(style.MARKERS)], "size": 7},
                hovertemplate=f"{style.text(arm)}, seed {seed}<br>step %{{x}}: %{{y:.3f}}<extra></extra>",
            )
    return figure
