"""Data of the page's linked neuron views: every listed neuron's row in every table, and its activation over checkpoints."""

from collections.abc import Iterator, Mapping
from typing import Any

from rim_lens.plots.style import number, percent
from rim_lens.report.neurons import SHOWN_NEURONS
from rim_lens.results import Result
from rim_lens.training_time.neuron_sets import neuron_names
from rim_lens.training_time.safety_neurons import SafetyNeurons
from rim_lens.training_time.shift import ActivationShift

LISTED = 500  # neurons that a page has views of


def linked_neurons(results: Mapping[str, Result]) -> dict[str, Any] | None:
    """What the page's neuron views need; None where no result is about single neurons."""
    tables = [table for name, result in results.items() for table in neuron_facts(name, result)]
    return {"tables": tables} if tables else None


def neuron_facts(anchor: str, result: Result) -> Iterator[dict[str, Any]]:
    """A result's tables by neuron."""
    if isinstance(result, SafetyNeurons):
        rows = result.table.head(min(LISTED, max(SHOWN_NEURONS, len(result))))
        cells = {
            row["neuron"]: [
                "yes" if rank <= len(result) else "no",
                f"{rank} of {len(result.table)}",
                f"{row['n_groups']} / {result.n_groups}",
                number(row["difference"], sign=True),
                f"{number(row['f_harmful'])} → {number(row['f_forced'])}",
                percent(row["chosen_again"]),
            ]
            for rank, (_, row) in enumerate(rows.iterrows(), start=1)
        }
        columns = ["in the set", "rank", "groups", "mean difference", "harmful → refusal forced", "chosen again"]
        yield {"section": anchor, "title": "Safety-critical neurons", "columns": columns, "rows": cells}
    elif isinstance(result, ActivationShift):
        table = result.neurons
        where = table[[name for name in ("layer", "expert", "unit") if name in table]].to_numpy()
        cells = {
            name: [f"{number(row['f_before'])} → {number(row['f_after'])}", percent(row["change"], sign=True)]
            for name, (_, row) in zip(neuron_names(where), table.iterrows(), strict=True)
        }
        yield {"section": anchor, "title": "Activation shift", "columns": ["before → after", "change"], "rows": cells}
