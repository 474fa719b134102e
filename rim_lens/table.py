"""Rows of text for a terminal: the first column whole, so that it can be copied, the others as wide as they need."""

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text


def print_rows(rows: Sequence[Sequence[str]], marked: Sequence[bool] = ()) -> None:
    """Print rows; of several with marks, a marked one has an exclamation mark before it."""
    table = Table(box=box.SIMPLE, show_header=False, pad_edge=False, show_edge=False)
    names = 2 if marked else 1  # columns that are never broken: the mark, and what the row is called
    for i in range(len(rows[0]) + bool(marked)):
        table.add_column(no_wrap=i < names, overflow="fold")
    for i, row in enumerate(rows):
        mark = ["!" if marked[i] else " "] if marked else []
        table.add_row(*(Text(cell) for cell in (*mark, *row)))  # as text: what looks like markup stays
    console = Console()
    with console.capture() as printed:
        console.print(table)
    console.print("\n".join(line.rstrip() for line in printed.get().splitlines()), markup=False, highlight=False)
