"""Sections on the refusal direction: what taking it out does, alone and beside heads and neurons."""

import pandas as pd
import plotly.graph_objects as go

from rim_lens.causal.ablation_comparison import AblationComparison
from rim_lens.causal.ablation_test import AblationTest
from rim_lens.plots.set_effects import compared_effects, in_nats, set_effects
from rim_lens.report.blocks import Block, Drawing, Section, Words
from rim_lens.report.effects import effect_grid, effect_sentence


def test_section(anchor: str, test: AblationTest) -> Section:
    """A direction taken out of all that is written to the stream."""
    words = "The direction is taken out of all that is written to the stream, and so are random directions."
    figures = [] if test.table["measure"].map(in_nats).all() else [set_effects(test)]
    table = test.table.assign(units="the direction")
    return _section(anchor, "What taking this direction out does", words, table, figures)


def comparison_section(anchor: str, comparison: AblationComparison) -> Section:
    """Heads, neurons and direction side by side."""
    words = (
        "Each is ablated on the same prompts and judged against control sets of its own kind: as many heads in each "
        "layer, as many neurons of like activation, or random directions."
    )
    of_nats = comparison.table["measure"].map(in_nats)
    figures = [compared_effects(comparison, nats) for nats in (True, False) if (of_nats == nats).any()]
    return _section(anchor, "Heads, neurons and direction side by side", words, comparison.table, figures)


def _section(anchor: str, title: str, words: str, table: pd.DataFrame, figures: list[go.Figure]) -> Section:
    """Words, figures, and all effects as a table; the first measure as sentences."""
    first = table[table["measure"] == table["measure"].iloc[0]]
    sentences = [effect_sentence(row, f"{row['change'].capitalize()} of {row['units']}") for _, row in first.iterrows()]
    blocks: list[Block] = [Words(words), *map(Drawing, figures), effect_grid(table, ["units", "change"])]
    return Section(anchor, title, sentences, blocks)
