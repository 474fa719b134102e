"""The section on what the leading neurons do: tokens they promote, prompts that fire them, thinking off and on."""

import pandas as pd

from rim_lens.plots.neurons import neuron_means
from rim_lens.plots.style import interval, number
from rim_lens.report.blocks import Block, Drawing, Grid, Section, Words, excerpt
from rim_lens.training_time.neuron_table import NeuronTable

SHOWN_REQUEST = 90


def section(anchor: str, table: NeuronTable) -> Section:
    """The neurons with their tokens, what fires them, and their activation."""
    blocks: list[Block] = [
        Words(
            "Tokens are those whose logits a neuron raises (promoted) or lowers (suppressed) most when its "
            "activation is positive, on the direct path: its column of the down projection, through the scale of the "
            "final norm, to the unembedding. What later layers make of its output is left out, so a neuron whose "
            "tokens say nothing may still matter. A negative activation swaps both lists."
        ),
        Drawing(neuron_means(table)),
        token_grid(table),
        firing_grid(table),
    ]
    return Section(anchor, "What the leading neurons do", in_short(table), blocks)


def in_short(table: NeuronTable) -> list[str]:
    """How many of the shown neurons change with thinking."""
    if not table.n_on:
        return []
    rows = table.table
    moved = rows[(rows["change_low"] > 0) | (rows["change_high"] < 0)]
    return [
        f"At the decision position {len(moved)} of the {len(rows)} leading neurons have another mean activation with "
        f"thinking on than off (95 % interval without zero, not corrected for {len(rows)} neurons; n = {table.n_on} "
        "requests)."
    ]


def token_grid(table: NeuronTable) -> Grid:
    """Neurons with their tokens and activations."""
    cells = []
    for _, row in table.table.iterrows():
        row_cells = [row["neuron"], row["promoted"], row["suppressed"], number(row["off"])]
        if table.n_on:
            row_cells += [
                number(row["on"]),
                f"{number(row['change'], sign=True)} {interval(row['change_low'], row['change_high'])}",
            ]
        cells.append(row_cells)
    on = ["mean a, on", "change"] if table.n_on else []
    return Grid(
        "Neurons and their tokens",
        ["neuron", "promoted", "suppressed", "mean a, off", *on],
        cells,
        f"The first {len(cells)} of {table.n_set} neurons; n = {table.n_off} prompts off, {table.n_on} on; a is the "
        "activation at the decision position.",
        open=True,
    )


def firing_grid(table: NeuronTable) -> Grid:
    """The prompts that fire each neuron most, and where."""
    cells = [
        [
            row["neuron"],
            number(row["activation"], sign=True),
            place(row),
            row["token"],
            excerpt(row["request"], SHOWN_REQUEST),
        ]
        for _, row in table.firing.iterrows()
    ]
    note = (
        "The prompts with the largest |a| at one token of request, think part or tags; the position counts from the "
        "decision position."
    )
    return Grid("Prompts that fire each neuron most", ["neuron", "a", "where", "at the token", "request"], cells, note)


def place(row: pd.Series) -> str:
    """Segment, position and thinking mode."""
    return f"{row['segment'].replace('_', ' ')}, {row['position']}, thinking {row['thinking']}".replace("-", "−")
