"""Rows of text for a terminal: columns as wide as they need, the last one wrapped, plain where the output is piped."""

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table


def print_rows(rows: Sequence[Sequence[str]], marked: Sequence[bool] = ()) -> None:
    """Print rows; a marked one has an exclamation mark before it."""
    table = Table(box=box.SIMPLE, show_header=False, pad_edge=False, show_edge=False)
    table.add_column(no_wrap=True)
    for row, mark in zip(rows, marked or [False] * len(rows), strict=True):
        table.add_row("!" if mark else " ", *row)
    Console().print(table, markup=False)
