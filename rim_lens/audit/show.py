"""What an audit prints: the verdicts, one sentence of what was found, one of what is open, and where the page is."""

from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap

from rim_lens.audit.compare import Comparison, compare_runs
from rim_lens.audit.files import write_text
from rim_lens.audit.run import Audit
from rim_lens.report.answer import found_sentence, more_sentence
from rim_lens.report.comparison import comparison_page

WIDTH = 79


def answer_lines(audit: Audit) -> list[str]:
    """The answer in at most 15 lines of 80 columns."""
    table = audit.verdicts.table
    shorter = (wrap(found_sentence(table, audit.model, longest), WIDTH) for longest in (3, 2, 1))
    return [
        *next((lines for lines in shorter if len(lines) <= 2), wrap(found_sentence(table, audit.model, 1), WIDTH)[:2]),
        *str(audit.verdicts).splitlines(),
        *wrap(more_sentence(table), WIDTH, max_lines=2, placeholder=" …"),
        f"open {audit.report}",
    ]


def print_audits(audits: Sequence[Audit], out: Path) -> None:
    """Print the answer of one audit, or several side by side with their page."""
    if len(audits) == 1:
        print("\n".join(answer_lines(audits[0])))
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
