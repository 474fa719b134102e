"""The findings as a table in the terminal, several audits side by side, and where the pages are."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from rim_lens.audit.compare import Comparison, compare_runs
from rim_lens.audit.files import write_text
from rim_lens.audit.run import Audit
from rim_lens.report.comparison import comparison_page


def print_findings(audit: Audit) -> None:
    """Print every finding with its interval, n and p-value, then the report's path."""
    console = Console()
    chapter = None
    table = Table("finding", "figure [95 % interval]", "n", "p", title="Findings")
    for finding in audit.findings:
        if finding.chapter != chapter:
            chapter = finding.chapter
            table.add_section()
            table.add_row(f"[bold]{chapter}[/bold]", "", "", "")
        table.add_row(finding.what, finding.figure, finding.n, "" if finding.p is None else f"{finding.p:.2g}")
    console.print(table)
    console.print(f"open {audit.report}", soft_wrap=True, highlight=False)


def print_audits(audits: Sequence[Audit], out: Path) -> None:
    """Print the findings of one audit, or several side by side with their page."""
    if len(audits) == 1:
        print_findings(audits[0])
        return
    print_comparison(compare_runs([audit.folder for audit in audits]), out)


def print_comparison(comparison: Comparison, out: Path | None) -> None:
    """Print a comparison and, where `out` is given, write its page and its table as CSV, Markdown and LaTeX."""
    print(comparison)
    if out is None:
        return
    write_text(out / "comparison.csv", comparison.table.to_csv(index=False))
    write_text(out / "comparison.md", comparison.to_markdown())
    write_text(out / "comparison.tex", comparison.to_latex())
    write_text(out / "comparison.html", comparison_page(comparison.table, comparison.caption(), comparison.links(out)))
    print(f"open {out / 'comparison.html'}")
