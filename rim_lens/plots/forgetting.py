"""Figures of forgetting over a series.

RAS per checkpoint, forgetting against a predictor, and the predictors compared.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd
import plotly.graph_objects as go

from rim_lens import words
from rim_lens.errors import RimLensError
from rim_lens.plots import style
from rim_lens.plots.set_effects import sentence

if TYPE_CHECKING:
    from rim_lens.training_time.forgetting import Forgetting

PREDICTORS = {
    "ras_safety": "RAS, safety neurons",
    "ras_control": "RAS, control neurons",
    "safety_loss": "safety loss δ⁻",
    "task_gain": "task gain δ⁺",
    "weight_distance": "weight distance",
    "activation_distance": "activation distance",
    "forward_kl": "forward KL, safety prompts (nats)",
    "task_kl": "forward KL, task prompts (nats)",
}
OUTCOMES = {"refusals_lost": "refusals lost (share)", "refusal_drop": "drop of the refusal score (nats)"}


def quantity(name: str) -> str:
    """A predictor or an outcome in words, without its unit, for sentences and titles."""
    return {**PREDICTORS, **OUTCOMES}.get(name, name).removesuffix(" (nats)").removesuffix(" (share)")


def ras_over_series(forgetting: Forgetting) -> go.Figure:
    """RAS of the safety neurons at every checkpoint with its interval, beside the control sets' mean."""
    table = forgetting.table
    x = [style.text(name) for name in table["checkpoint"]]
    figure = style.blank(
        "RAS checkpoint by checkpoint",
        f"n = {forgetting.n_neurons} neurons, {forgetting.n_safety} safety and {forgetting.n_task} task prompts; "
        f"against {forgetting.reference}; bars are 95 % intervals; grey: mean of {forgetting.n_controls} matched "
        "random sets",
        xaxis={"title": {"text": "checkpoint"}, "type": "category"},
        yaxis={"title": {"text": "RAS"}, "rangemode": "tozero"},
        height=420,
    )
    for i, (arm, rows) in enumerate(table.groupby(table["arm"].fillna("checkpoints"), sort=False)):
        figure.add_scatter(
            name=style.text(words.arm(arm)),
            x=[style.text(name) for name in rows["checkpoint"]],
            y=rows["ras_safety"],
            error_y=style.error_bars(rows["ras_safety"], rows["ras_low"], rows["ras_high"]),
            mode="markers",
            cliponaxis=False,
            marker={"color": style.SERIES[i % 4], "symbol": style.MARKERS[i % 4], "size": 10},
            customdata=[_hover(row) for _, row in rows.iterrows()],
            hovertemplate="%{customdata}<extra></extra>",
        )
    figure.add_scatter(
        name="matched random neurons",
        x=x,
        y=table["ras_control"],
        mode="markers",
        marker={"color": style.GREY, "symbol": "line-ew-open", "size": 18, "line": {"width": 2.5}},
        hovertemplate="random sets: mean %{y:.3g}<extra></extra>",
    )
    return figure


def ras_by_layer(forgetting: Forgetting) -> go.Figure:
    """RAS of the set's neurons in each layer at every checkpoint, less the control sets' mean."""
    rows = forgetting.ras_layers
    if rows is None:
        raise RimLensError("This result holds no RAS by layer; measure it anew with measure_series.")
    cells = rows.assign(apart=rows["ras"] - rows["control_mean"]).pivot(
        index="checkpoint", columns="layer", values="apart"
    )
    cells = cells.loc[list(dict.fromkeys(rows["checkpoint"]))]
    x, y = [f"{layer}" for layer in cells.columns], [style.text(name) for name in cells.index]
    hover = rows.assign(hover=rows.apply(_layer_hover, axis=1)).pivot(
        index="checkpoint", columns="layer", values="hover"
    )
    figure = style.blank(
        "RAS of safety neurons less that of random ones, by layer",
        f"n = {forgetting.n_neurons} neurons, {forgetting.n_safety} safety and {forgetting.n_task} task prompts; "
        f"{forgetting.n_controls} matched random sets; {int((rows['q'] < 0.05).sum())} of {len(rows)} cells have q < "
        "0.05",
        coloraxis=style.diverging(cells.to_numpy(), "RAS, difference"),
        xaxis={"title": {"text": "layer"}, "type": "category", "showgrid": False},
        yaxis={"type": "category", "autorange": "reversed", "showgrid": False},
        margin={"b": 48},
        height=190 + 30 * len(y),
    )
    figure.add_heatmap(
        x=x,
        y=y,
        z=style.cells(cells.to_numpy()),
        text=hover.loc[cells.index].to_numpy(),
        coloraxis="coloraxis",
        hovertemplate="%{text}<extra></extra>",
        xgap=1,
        ygap=1,
        hoverongaps=False,
    )
    return figure


def _layer_hover(row: pd.Series) -> str:
    """Hover of a layer at a checkpoint."""
    return (
        f"<b>{style.text(row['checkpoint'])}</b>, layer {row['layer']}, {row['n_neurons']} neurons<br>RAS "
        f"{style.number(row['ras'])} (safety loss {style.percent(row['safety_loss'])}, task gain "
        f"{style.percent(row['task_gain'])})<br>random sets {style.number(row['control_mean'])}, "
        f"{style.p_value(row['p'])}, q = {row['q']:.2g}"
    )


def forgetting_scatter(
    forgetting: Forgetting, predictor: str = "ras_safety", outcome: str = "refusal_drop"
) -> go.Figure:
    """What each checkpoint forgot against a predictor, with the fitted line and its 95 % band.

    A predictor that is the same at every checkpoint (a RAS of 0, say) has neither correlation nor line; the caption
    says so.
    """
    table = forgetting.table
    rows = forgetting.correlations
    one = rows[(rows["outcome"] == outcome) & (rows["predictor"] == predictor)].iloc[0]
    varies = pd.notna(one["pearson"])
    correlation = (
        f"r = {style.correlation(one['pearson'], one['pearson_low'], one['pearson_high'])}, "
        f"{style.p_value(one['pearson_p'])}; line by least squares with its 95 % band"
        if varies
        else "no correlation: the predictor or the outcome does not vary"
    )
    figure = style.blank(
        f"{style.text(sentence(quantity(outcome)))} against {style.text(quantity(predictor))}",
        f"n = {one['n']} checkpoints; {correlation}",
        xaxis={"title": {"text": PREDICTORS.get(predictor, predictor)}, "zeroline": False},
        yaxis={"title": {"text": OUTCOMES.get(outcome, outcome)}},
        height=420,
    )
    if varies:
        line = forgetting.line(predictor, outcome)
        figure.add_trace(
            style.band(line.x.tolist(), line.low.tolist(), line.high.tolist(), style.GREY, "95 % band of the line")
        )
        look = {"color": style.GREY, "width": 2}
        figure.add_scatter(x=line.x, y=line.y, mode="lines", line=look, hoverinfo="skip", showlegend=False)
    for i, (arm, part) in enumerate(table.groupby(table["arm"].fillna("checkpoints"), sort=False)):
        bars = (
            style.error_bars(part[outcome], part["drop_low"], part["drop_high"]) if outcome == "refusal_drop" else None
        )
        figure.add_scatter(
            name=style.text(words.arm(arm)),
            x=part[predictor],
            y=part[outcome],
            error_y=bars,
            mode="markers",
            marker={"color": style.SERIES[i % 4], "symbol": style.MARKERS[i % 4], "size": 10},
            customdata=[_hover(row) for _, row in part.iterrows()],
            hovertemplate="%{customdata}<extra></extra>",
        )
    return figure


def predictors(forgetting: Forgetting, outcome: str = "refusal_drop") -> go.Figure:
    """Pearson's r of every predictor with the outcome, with intervals; those that do not vary are named below."""
    every = forgetting.correlations[forgetting.correlations["outcome"] == outcome]
    rows = every[every["pearson"].notna()]
    constant = [PREDICTORS.get(name, style.text(name)) for name in every.loc[every["pearson"].isna(), "predictor"]]
    y = list(range(len(rows)))
    figure = style.blank(
        f"What predicts the {style.text(quantity(outcome))}",
        f"n = {style.one_or_range(every['n'])} checkpoints; bars are 95 % bootstrap intervals over checkpoints"
        + (f"; the same at every checkpoint, so without r: {', '.join(constant)}" if constant else ""),
        xaxis={"title": {"text": "Pearson's r"}, "range": [-1.05, 1.05], "zeroline": True},
        yaxis={"tickvals": y, "ticktext": [PREDICTORS.get(name, style.text(name)) for name in rows["predictor"]]}
        | {"range": [len(y) - 0.5, -0.5], "showgrid": False, "zeroline": False},
        height=150 + 32 * len(y),
    )
    hover = [
        f"<b>{PREDICTORS.get(row['predictor'], style.text(row['predictor']))}</b><br>r = "
        f"{style.number(row['pearson'])} {style.interval(row['pearson_low'], row['pearson_high'])}, "
        f"{style.p_value(row['pearson_p'])}<br>ρ = {style.number(row['spearman'])} "
        f"{style.interval(row['spearman_low'], row['spearman_high'])}, {style.p_value(row['spearman_p'])}"
        for _, row in rows.iterrows()
    ]
    figure.add_scatter(
        x=rows["pearson"],
        y=y,
        error_x=style.error_bars(rows["pearson"], rows["pearson_low"], rows["pearson_high"]),
        mode="markers",
        marker={"color": style.BLUE, "size": 9},
        customdata=hover,
        hovertemplate="%{customdata}<extra></extra>",
        showlegend=False,
    )
    return figure


def _hover(row: pd.Series) -> str:
    """Hover of a checkpoint."""
    return (
        f"<b>{style.text(row['checkpoint'])}</b><br>RAS {style.number(row['ras_safety'])} "
        f"{style.interval(row['ras_low'], row['ras_high'])}, {style.p_value(row['ras_p'])} (random sets "
        f"{style.number(row['ras_control'])})<br>refusal score falls by {style.number(row['refusal_drop'])} nats "
        f"{style.interval(row['drop_low'], row['drop_high'])}"
    )
