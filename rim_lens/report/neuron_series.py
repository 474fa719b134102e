"""Sections on what fine-tuning does inside.

Shift of neurons at every checkpoint, the shift predicted before, and heads.
"""

import pandas as pd

from rim_lens.plots.prediction import predicted_against_actual, prediction_by_checkpoint
from rim_lens.plots.series_heads import head_order, heads_by_checkpoint
from rim_lens.plots.series_shift import (
    PROMPTS,
    shift_by_layer_and_checkpoint,
    shift_over_series,
)
from rim_lens.plots.style import correlation, interval, number, p_value, percent
from rim_lens.report.blocks import Block, Drawing, Grid, Section, Words
from rim_lens.report.wording import clearly
from rim_lens.training_time.prediction_check import PredictionCheck
from rim_lens.training_time.series_heads import SeriesHeads
from rim_lens.training_time.series_shift import SeriesShift
from rim_lens.words import arm


def shift_section(anchor: str, shift: SeriesShift) -> Section:
    """Shift at every checkpoint and in every layer, on safety and on maths prompts."""
    sentences, blocks = [], []
    for prompts in ("safety", "task"):
        rows = shift.table[(shift.table["prompts"] == prompts) & (shift.table["scope"] == "all")]
        apart = rows[rows["q"] < 0.05]
        less = int((apart["change"] < apart["control_change"]).sum())
        further = int((rows["p_moved"] < 0.05).sum())
        sentences.append(
            f"On {PROMPTS[prompts]} the safety neurons shift otherwise than matched random neurons at {len(apart)} "
            f"of {len(rows)} checkpoints (q < 0.05; {less} lower, {len(apart) - less} higher), n = "
            f"{int(shift.n_safety if prompts == 'safety' else shift.n_task)} prompts. "
            f"In either direction they move further than matched ones at {further} of {len(rows)} "
            "(p < 0.05, one-sided, not corrected)."
        )
        blocks += [Drawing(shift_over_series(shift, prompts)), Drawing(shift_over_series(shift, prompts, "change"))]
        blocks.append(Drawing(shift_by_layer_and_checkpoint(shift, prompts)))
    cells = [
        [
            row["checkpoint"],
            PROMPTS[row["prompts"]],
            row["scope"],
            f"{row['n_neurons']}",
            f"{percent(row['change'], sign=True)} {interval(row['low'], row['high'], '%')}",
            f"{percent(row['control_change'], sign=True)} ± {percent(row['control_sd'])}",
            p_value(row["p"]),
            f"{row['q']:.2g}",
            f"{percent(row['moved'])} {interval(row['moved_low'], row['moved_high'], '%')}",
            f"{percent(row['control_moved'])} ± {percent(row['control_moved_sd'])}",
            p_value(row["p_moved"]),
        ]
        for _, row in shift.table.iterrows()
    ]
    columns = ["checkpoint", "prompts", "layer", "neurons", "change", "random sets (mean ± sd)", "p", "q"]
    columns += ["movement, Σ|Δf| / Σ|f|", "of random sets", "p"]
    return Section(
        anchor,
        "How fine-tuning shifts safety neurons",
        sentences,
        [*blocks, Grid("All shifts as a table", columns, cells)],
    )


def prediction_section(anchor: str, check: PredictionCheck) -> Section:
    """Predicted against actual shift."""
    rows = check.table
    r = f"{number(rows['r'].min())} to {number(rows['r'].max())}"
    beyond = int((rows["q"] < 0.05).sum())
    text = (
        "What one gradient step on examples of an arm predicts for each safety neuron correlates with what its "
        f"{len(rows)} checkpoints did at r = {r} (n = {rows['n'].iloc[0]} neurons each); at {beyond} of {len(rows)} "
        "it does so more than within matched random sets (q < 0.05)."
    )
    examples = ", ".join(f"{row['n_examples']} examples of {arm(row['arm'])}" for _, row in check.steps.iterrows())
    longest = check.table.groupby("arm", sort=False)["checkpoint"].last()
    blocks: list[Block] = [
        Words(
            f"Before training, the gradient of the loss on {examples} gives the first-order shift of every neuron. "
            "The examples are in the form of the arm's data and need not be the very ones it was trained on; "
            "training takes many steps of another kind than this one, so only the pattern over neurons is compared, "
            "not the size. Neurons depend on each other: intervals over neurons are lower bounds."
        ),
        Drawing(prediction_by_checkpoint(check)),
        *(Drawing(predicted_against_actual(check, name)) for name in longest),
        prediction_grid(check),
    ]
    return Section(anchor, "Is the shift predictable before training?", [text], blocks)


def prediction_grid(check: PredictionCheck) -> Grid:
    """Every checkpoint."""
    cells = [
        [
            row["checkpoint"],
            f"{row['n']}",
            correlation(row["r"], row["r_low"], row["r_high"]),
            correlation(row["rho"], row["rho_low"], row["rho_high"]),
            f"{number(row['control_r'])} {interval(row['control_low'], row['control_high'])}",
            p_value(row["control_p"]),
            f"{row['q']:.2g}",
            f"{percent(row['predicted'], sign=True)} / {percent(row['actual'], sign=True)}",
        ]
        for _, row in check.table.iterrows()
    ]
    columns = [
        "checkpoint",
        "neurons",
        "Pearson's r",
        "Spearman's ρ",
        "random sets",
        "p",
        "q",
        "whole set: predicted / actual",
    ]
    bend = ", ".join(f"{arm(row['arm'])} {number(row['curvature'])}" for _, row in check.steps.iterrows())
    note = (
        f"p: share of {check.n_controls} matched random sets with at least this r. Curvature over the step that the "
        f"slope was taken from: {bend}."
    )
    return Grid("Predictions as a table", columns, cells, note)


def heads_section(anchor: str, heads: SeriesHeads) -> Section:
    """Heads over the series."""
    others = heads.table[heads.table["checkpoint"] != heads.reference]
    blocks: list[Block] = [
        Words(
            f"{heads.n_chosen} heads were chosen at {heads.reference} by how much their zeroing at the decision "
            f"position is estimated to lower the refusal score, on other prompts than these {heads.n_prompts}. At "
            "every checkpoint each is zeroed there, and so are random heads of the same layers. A head that moves "
            "loses its effect while others gain one: then the order over heads changes more than between two halves "
            "of the prompts."
        ),
        Drawing(heads_by_checkpoint(heads, "effect")),
        Drawing(heads_by_checkpoint(heads, "attention")),
        Drawing(head_order(heads)),
        heads_grid(heads),
    ]
    return Section(anchor, "Do refusal heads move during fine-tuning?", in_short(heads, others), blocks)


def in_short(heads: SeriesHeads, others: pd.DataFrame) -> list[str]:
    """The chosen heads' effect at the reference, where it changes, and the order over heads."""
    first = heads.table[heads.table["checkpoint"] == heads.reference].iloc[0]
    weaker = [row for _, row in others.iterrows() if clearly(row["effect_change_low"], row["effect_change_high"])]
    ranks = f"{number(others['effect_rank'].min())} to {number(others['effect_rank'].max())}"
    looks = f"{number(others['attention_rank'].min())} to {number(others['attention_rank'].max())}"
    return [
        f"Without one of the {heads.n_chosen} chosen heads the refusal score of {heads.reference} changes by "
        f"{number(first['effect'], sign=True)} nats {interval(first['effect_low'], first['effect_high'])} on "
        f"average, without a random one by {number(first['effect_random'], sign=True)} "
        f"{interval(first['effect_random_low'], first['effect_random_high'])} (n = {heads.n_prompts} prompts); the "
        f"chosen ones' effect is another at {len(weaker)} of {len(others)} checkpoints (95 % interval without zero, "
        "not corrected).",
        f"The order over heads correlates with {heads.reference}'s at ρ = {ranks} in effect (halves of the prompts: "
        f"{number(heads.halves['effect'])}) and {looks} in attention to the {heads.segment} (halves: "
        f"{number(heads.halves['attention'])}).",
    ]


def heads_grid(heads: SeriesHeads) -> Grid:
    """Every followed head at every checkpoint."""
    cells = [
        [
            row["checkpoint"],
            row["head"],
            "chosen" if row["chosen"] else "random",
            f"{number(row['effect'], sign=True)} {interval(row['effect_low'], row['effect_high'])}",
            f"{percent(row['attention'])} {interval(row['attention_low'], row['attention_high'], '%')}",
        ]
        for _, row in heads.heads.iterrows()
    ]
    columns = ["checkpoint", "head", "kind", "effect (nats)", f"attention to the {heads.segment}"]
    return Grid("Heads as a table", columns, cells, f"n = {heads.n_prompts} prompts each; 95 % intervals over prompts.")
