"""Data of the page's linked neuron views.

Each listed neuron's rows in every table, over checkpoints, and what fires it.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from rim_lens.plots.style import interval, number, percent
from rim_lens.report.blocks import excerpt
from rim_lens.report.neurons import SHOWN_NEURONS
from rim_lens.report.page_heads import Facts, facts, facts_of_many
from rim_lens.results import Result
from rim_lens.training_time.neuron_table import NeuronTable
from rim_lens.training_time.safety_neurons import SafetyNeurons
from rim_lens.training_time.series_shift import SeriesShift
from rim_lens.training_time.shift import ActivationShift
from rim_lens.units import Neuron

LISTED = 500  # neurons that a page has views of
REQUEST = 120  # characters of a prompt


def linked_neurons(results: Mapping[str, Result]) -> dict[str, Any] | None:
    """What the page's neuron views need; None where no result is about single neurons."""
    tables = [table for name, result in results.items() for table in neuron_facts(name, result)]
    return {"tables": tables} if tables else None


def neuron_facts(anchor: str, result: Result) -> Iterator[Facts]:
    """A result's tables by neuron."""
    if isinstance(result, SafetyNeurons):
        columns: tuple[str, ...] = (
            "in the set",
            "rank",
            "groups",
            f"mean {result.ranking}",
            "compared → refusal forced",
            "chosen again",
        )
        yield facts(anchor, "Safety-critical neurons", columns, safety_rows(result))
    elif isinstance(result, NeuronTable):
        columns = ("promotes", "suppresses", "mean a, thinking off", "change with thinking on")
        cells = {row["neuron"]: token_cells(row) for _, row in result.table.iterrows()}
        yield facts(anchor, f"What it does, n = {result.n_off} prompts", columns, cells)
        firing = [
            [row["neuron"], number(row["activation"], sign=True), row["token"], excerpt(row["request"], REQUEST)]
            for _, row in result.firing.iterrows()
        ]
        yield facts_of_many(anchor, "Prompts that fire it most", ("a", "at the token", "request"), by_name(firing))
    elif isinstance(result, SeriesShift):
        wide = result.neurons.pivot(index=["neuron", "checkpoint"], columns="prompts", values="change")
        order = list(dict.fromkeys(result.neurons["checkpoint"]))
        changes = [
            [name, checkpoint, *(percent(wide.loc[(name, checkpoint), kind], sign=True) for kind in ("safety", "task"))]
            for name in list(dict.fromkeys(result.neurons["neuron"]))[:LISTED]
            for checkpoint in order
        ]
        title = f"Shift against {result.reference}, n = {result.n_safety} safety and {result.n_task} task prompts"
        yield facts_of_many(anchor, title, ("checkpoint", "safety prompts", "task prompts"), by_name(changes))
    elif isinstance(result, ActivationShift):
        table = result.neurons
        cells = {
            name: [f"{number(row['f_before'])} → {number(row['f_after'])}", percent(row["change"], sign=True)]
            for name, (_, row) in zip(map(str, Neuron.from_table(table)), table.iterrows(), strict=True)
        }
        yield facts(anchor, "Activation shift", ("before → after", "change"), cells)


def safety_rows(neurons: SafetyNeurons) -> dict[str, list[str]]:
    """How each of the first neurons got into the set, or not; the set's own come first in the table."""
    rows = neurons.table.head(min(LISTED, max(SHOWN_NEURONS, len(neurons))))
    return {
        row["neuron"]: [
            "yes" if rank <= len(neurons) else "no",
            f"{rank} of {len(neurons.table)}",
            f"{row['n_groups']} / {neurons.n_groups}",
            number(row["difference"], sign=True),
            f"{number(row['f_compared'])} → {number(row['f_forced'])}",
            percent(row["chosen_again"]),
        ]
        for rank, (_, row) in enumerate(rows.iterrows(), start=1)
    }


def token_cells(row: pd.Series) -> list[str]:
    """Tokens by the direct path and mean activation; a dash where no chats with thinking on were read."""
    change = (
        f"{number(row['change'], sign=True)} {interval(row['change_low'], row['change_high'])}"
        if "change" in row
        else "–"
    )
    return [row["promoted"], row["suppressed"], number(row["off"]), change]


def by_name(rows: list[list[str]]) -> dict[str, list[list[str]]]:
    """Rows under the neuron that their first cell names."""
    grouped: dict[str, list[list[str]]] = {}
    for name, *cells in rows:
        grouped.setdefault(name, []).append(cells)
    return grouped
