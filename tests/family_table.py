"""docs/families.md and the README's sentence on families, written from what the code says now: `make families`.

A cell is "yes", or a letter whose reason stands under the table. `committed()` reads the table back.
"""

import re
import textwrap
from importlib.metadata import version
from pathlib import Path

from matrix import COLUMNS, NAMES, USES, rows

ROOT = Path(__file__).parents[1]
PAGE, README = ROOT / "docs" / "families.md", ROOT / "README.md"
BEGIN, END = "<!-- families -->", "<!-- /families -->"  # `make families` writes what stands between
HEADER = ("family", *COLUMNS, *USES)
INTRO = """# Families

Results of `rim-lens check` and the public functions per architecture, measured on tiny random models built from the
architecture's own config class ({versions}; `make families` writes this page). Every "yes" is
an equality with an independent computation:

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
| head sweep | span attention, `ablation_sweep` and generation without its strongest heads; runs resume mid-model |
| safety neurons | `find_safety_neurons` runs |

A letter stands for a refusal in one sentence, below. Where a model is of another family, `rim-lens check MODEL` prints
the same about it.
"""
HOOKED = """
## Objects that you made with TransformerLens

`load_model` also takes a `TransformerBridge` (3.x and 4.x, plain or in compatibility mode) and, in 3.x, a
`HookedTransformer` with folded or raw weights. Everything then goes through their hooks: the fast way and resumed
sweeps are refused or left out. `make test-compat` compares chats, span attention, refusal scores, ablation sweeps,
generation without heads, neurons and safety neurons with the transformers model of the same weights, under
transformer-lens 3.5.1.

Folding value biases (`fold_value_biases=True`, the default of `HookedTransformer.from_pretrained`) moves them out of
the heads' outputs: zeroing a head then leaves its value bias in place, which is another intervention than in the
unfolded model.
"""


def table_of(cells: dict[str, dict[str, str]]) -> str:
    """The table and its reasons as Markdown."""
    reasons: dict[str, str] = {}
    columns = list(next(iter(cells.values())))
    lines = ["| " + " | ".join(["family", *columns]) + " |", "| " + " | ".join(["---"] * (1 + len(columns))) + " |"]
    for name, row in cells.items():
        shown = [
            "yes" if row[column] == "yes" else reasons.setdefault(row[column], chr(ord("a") + len(reasons)))
            for column in columns
        ]
        lines.append("| " + " | ".join([name, *shown]) + " |")
    return "\n".join([*lines, "", *(f"- {letter}: {reason}" for reason, letter in reasons.items())])


def sentence_of(cells: dict[str, dict[str, str]]) -> str:
    """The README's two sentences: families in which every part works, and those in which some part is refused."""
    whole = [name for name, row in cells.items() if set(row.values()) == {"yes"}]
    other = [name for name in cells if name not in whole]
    lines = [f"Every part works in {', '.join(whole)}."]
    if other:
        lines.append(f"Some part is refused in {', '.join(other)} ([which, and why](docs/families.md)).")
    return textwrap.fill(" ".join(lines), 120, break_long_words=False, break_on_hyphens=False)


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
    cells = dict(rows())
    versions = ", ".join(f"{name} {version(name)}" for name in ("transformers", "transformer-lens", "torch"))
    PAGE.write_text(f"{INTRO.format(versions=versions)}\n{BEGIN}\n{table_of(cells)}\n{END}\n{HOOKED}")
    before, _, rest = README.read_text().partition(BEGIN)
    README.write_text(f"{before}{BEGIN}\n{sentence_of(cells)}\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    write()
