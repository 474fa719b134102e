"""docs/families.md and the README's table of families, written from what the code says now: `make families`.

A cell is "yes", or a letter whose reason stands under the table. `committed()` reads the table back.
"""

import re
from importlib.metadata import version
from pathlib import Path

from matrix import COLUMNS, NAMES, USES, rows

ROOT = Path(__file__).parents[1]
PAGE, README = ROOT / "docs" / "families.md", ROOT / "README.md"
BEGIN, END = "<!-- families: written by `make families` -->", "<!-- end of families -->"
HEADER = ("family", *COLUMNS, *USES)
INTRO = """# Families

What `rim-lens check` and the public functions say about each architecture, measured on tiny random models built from the
architecture's own config class ({versions}). Every "yes" is an equality with an independent computation:

| column | what was compared, by `check_model` unless said otherwise |
| --- | --- |
| segments | every token in one segment, tokens that decode to the rendered text |
| logits | padded batches, and passes that are read, against the plain model on each prompt alone |
| attention | rows of every query against the model's own eager attention |
| head ablation | zeroing the head's slice of the output projection's input by hand |
| neurons | moments against a plain loop over activations (of experts: over tokens and their experts) |
| neuron ablation | zeroing the neuron's column of the down projection's input by hand |
| generation | greedy tokens against transformers' `generate`, also without a head |
| TransformerLens hooks | logits, attention rows and head ablation through a TransformerBridge |
| head sweep | span attention, `ablation_sweep` and generation without its strongest heads run; runs resume at the changed layer |
| safety neurons | `find_safety_neurons` runs |

A letter stands for a refusal in one sentence, below. Where a model is of another family, `rim-lens check MODEL` says the same
about it.
"""


def table_of(cells: dict[str, dict[str, str]]) -> str:
    """The table and its reasons as Markdown."""
    reasons: dict[str, str] = {}
    lines = ["| " + " | ".join(HEADER) + " |", "| " + " | ".join(["---"] * len(HEADER)) + " |"]
    for name, row in cells.items():
        shown = [
            "yes" if row[column] == "yes" else reasons.setdefault(row[column], chr(ord("a") + len(reasons)))
            for column in HEADER[1:]
        ]
        lines.append("| " + " | ".join([name, *shown]) + " |")
    return "\n".join([*lines, "", *(f"- {letter}: {reason}" for reason, letter in reasons.items())])


def committed(text: str) -> dict[str, dict[str, str]]:
    """Cells of the committed table, letters replaced by their reasons."""
    reasons = dict(re.findall(r"^- ([a-z]): (.+)$", text, re.MULTILINE))
    found = {}
    for line in text.splitlines():
        name, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        if name in NAMES.values():
            found[name] = {c: reasons.get(v, v) for c, v in zip(HEADER[1:], cells, strict=True)}
    return found


def block(text: str) -> str:
    """The generated part of a page."""
    return text.partition(BEGIN)[2].partition(END)[0].strip()


def write() -> None:
    """Measure every family and write both pages."""
    table = table_of(dict(rows()))
    versions = ", ".join(f"{name} {version(name)}" for name in ("transformers", "transformer-lens", "torch"))
    PAGE.write_text(f"{INTRO.format(versions=versions)}\n{BEGIN}\n{table}\n{END}\n")
    before, _, rest = README.read_text().partition(BEGIN)
    README.write_text(f"{before}{BEGIN}\n{table}\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    write()
