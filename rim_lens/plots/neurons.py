"""Figures of safety-critical neurons, their activation shift and their RAS."""

from __future__ import annotations

from typing import TYPE_CHECKING

import plotly.graph_objects as go

from rim_lens.plots import style

if TYPE_CHECKING:
    from rim_lens.training_time.neuron_table import NeuronTable
    from rim_lens.training_time.ras import Ras
    from rim_lens.training_time.safety_neurons import SafetyNeurons
    from rim_lens.training_time.shift import ActivationShift

BLUE_DOT = {"color": style.BLUE, "size": 9}
ON_DOT = {"color": style.VERMILION, "symbol": "square", "size": 8}


def neurons_by_layer(neurons: SafetyNeurons) -> go.Figure:
    """In which layers the set's neurons lie."""
    layers = neurons.rows[:, 0]
    low, high = neurons.jaccard_interval
    figure = style.blank(
        "Safety-critical neurons by layer",
        f"n = {len(neurons)} neurons of {neurons.n_all} from {neurons.sample}{neurons.chance}; "
        f"Jaccard under resampling {neurons.jaccard:.2f} [{low:.2f}, {high:.2f}]",
        xaxis={"title": {"text": "layer"}, "range": [-0.5, neurons.base.shape[0] - 0.5], "zeroline": False},
        yaxis={"title": {"text": "neurons of the set"}},
        height=320,
        bargap=0.15,
    )
    figure.add_histogram(
        x=layers,
        xbins={"start": -0.5, "end": neurons.base.shape[0] - 0.5, "size": 1},
        marker={"color": style.BLUE},
        hovertemplate="layer %{x}: %{y} neurons<extra></extra>",
    )
    return figure


def shift_by_layer(shift: ActivationShift) -> go.Figure:
    """Relative change of the set's activation in each layer, beside the control sets' mean and spread."""
    rows = shift.table[shift.table["scope"] != "all"]
    layers = [int(scope.removeprefix("L")) for scope in rows["scope"]]
    figure = style.blank(
        f"Activation shift of safety neurons by layer, {' → '.join(shift.states)}",
        f"n = {shift.n_prompts} prompts, {len(shift.neurons)} neurons; bars are 95 % intervals"
        + (f"; grey: mean ± 1 sd of {shift.n_controls} matched random sets" if shift.n_controls else ""),
        xaxis={"title": {"text": "layer"}, "zeroline": False},
        yaxis={"title": {"text": "change of mean activation"}, "tickformat": "+.0%"},
        height=400,
    )
    if shift.n_controls:
        figure.add_scatter(
            name="matched random neurons",
            x=[layer + 0.15 for layer in layers],
            y=rows["control_change"],
            error_y={"type": "data", "array": rows["control_sd"], "thickness": 1.6, "width": 4},
            mode="markers",
            marker={"color": style.GREY, "symbol": "square", "size": 8},
            hoverinfo="skip",
        )
    hover = [
        f"<b>{row['scope']}</b>, {row['n_neurons']} neurons<br>{style.percent(row['change'], sign=True)} "
        f"{style.interval(row['low'], row['high'], '%')}"
        + (
            f"<br>controls {style.percent(row['control_change'], sign=True)}, {style.p_value(row['p'])}"
            if shift.n_controls
            else ""
        )
        for _, row in rows.iterrows()
    ]
    figure.add_scatter(
        name="safety neurons",
        x=[layer - 0.15 for layer in layers],
        y=rows["change"],
        error_y=style.error_bars(rows["change"], rows["low"], rows["high"]),
        mode="markers",
        marker={"color": style.BLUE, "size": 9},
        customdata=hover,
        hovertemplate="%{customdata}<extra></extra>",
    )
    return figure


def neuron_means(table: NeuronTable) -> go.Figure:
    """Mean activation of the leading neurons at the decision position, thinking off and on."""
    rows = table.table
    sides = [("thinking off", "off", BLUE_DOT)] + ([("thinking on (own CoT)", "on", ON_DOT)] if table.n_on else [])
    y = list(range(len(rows)))
    n_on = f", {table.n_on} with thinking on" if table.n_on else ""
    figure = style.blank(
        "The leading safety neurons at the decision position",
        f"n = {table.n_off} prompts with thinking off{n_on}; mean activation, with its sign; the first {len(rows)} "
        f"of {table.n_set} neurons",
        xaxis={"title": {"text": "mean activation"}},
        yaxis={"tickvals": y, "ticktext": [style.text(name) for name in rows["neuron"]], "showgrid": False}
        | {"range": [len(y) - 0.5, -0.5], "zeroline": False},
        height=150 + 24 * len(y),
    )
    for name, column, marker in sides:
        figure.add_scatter(
            name=name,
            x=rows[column],
            y=y,
            mode="markers",
            marker=marker,
            customdata=[
                f"<b>{style.text(row['neuron'])}</b><br>promotes {style.text(row['promoted'])}"
                for _, row in rows.iterrows()
            ],
            hovertemplate=f"%{{customdata}}<br>{name}: %{{x:.3g}}<extra></extra>",
        )
    return figure


def ras_variants(ras: Ras) -> go.Figure:
    """RAS with every mean, over neurons first or of each neuron first, beside the control sets."""
    y = list(range(len(ras.table)))
    labels = [
        f"{row['mean']}, {'set' if row['averaging'] == 'set' else 'each neuron'}" for _, row in ras.table.iterrows()
    ]
    figure = style.blank(
        "RAS and its variants",
        f"n = {ras.n_neurons} neurons, {ras.n_safety} safety and {ras.n_task} task prompts; bars are 95 % intervals; "
        f"grey: mean ± 1 sd of {ras.n_controls} matched random sets",
        xaxis={"title": {"text": "RAS"}, "rangemode": "tozero"},
        yaxis={"tickvals": y, "ticktext": labels, "range": [len(y) - 0.5, -0.5], "showgrid": False, "zeroline": False},
        height=150 + 34 * len(y),
    )
    figure.add_scatter(
        name="matched random sets",
        x=ras.table["control_mean"],
        y=[one + 0.18 for one in y],
        error_x={"type": "data", "array": ras.table["control_sd"], "thickness": 1.6, "width": 4},
        mode="markers",
        marker={"color": style.GREY, "symbol": "square", "size": 8},
        hoverinfo="skip",
    )
    hover = [
        f"<b>{label}</b><br>{style.number(row['ras'])} {style.interval(row['low'], row['high'])}<br>controls "
        f"{style.number(row['control_mean'])}, percentile {row['percentile']:.0f}, {style.p_value(row['p'])}"
        for label, (_, row) in zip(labels, ras.table.iterrows(), strict=True)
    ]
    figure.add_scatter(
        name="safety neurons",
        x=ras.table["ras"],
        y=[one - 0.18 for one in y],
        error_x=style.error_bars(ras.table["ras"], ras.table["low"], ras.table["high"]),
        mode="markers",
        marker={"color": style.BLUE, "size": 9},
        customdata=hover,
        hovertemplate="%{customdata}<extra></extra>",
    )
    return figure
