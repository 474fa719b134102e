"""A model check as a table in the terminal."""

import math

from rich.console import Console
from rich.table import Table

from rim_lens.check.model_check import ModelCheck

STYLE = {"holds": "green", "fails": "bold red", "refused": "yellow"}


def print_check(check: ModelCheck, name: str) -> None:
    """Print every check with its verdict, the worst difference, its tolerance, n and the reason."""
    table = Table("check", "holds", "worst", "tolerance", "n", "why", title=name)
    for row in check.table.itertuples():
        verdict = f"[{STYLE[row.holds]}]{row.holds}[/]"
        n = f"{row.n} {row.counted}" if row.n else ""
        table.add_row(row.check, verdict, _number(row.worst), _number(row.tolerance), n, row.why)
    console = Console()
    console.print(table)
    console.print(check.caption())


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.2g}"
