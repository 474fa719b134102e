"""comparison_page: audits side by side as one self-contained HTML file, a row per run with a link to its own page."""

from collections.abc import Sequence

import pandas as pd
from markupsafe import Markup, escape

from rim_lens.report.page import page_file

PAGE = Markup(
    """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Reasoning-induced misalignment: models side by side</title>
<style>{style}</style>
</head>
<body>
<div class="wide">
<main>
<h1>Does thinking make these models refuse less?</h1>
<p class="lead">{caption}</p>
<div class="scroll" tabindex="0" role="region" aria-label="Models side by side">
<table>
<thead><tr>{head}</tr></thead>
<tbody>
{rows}
</tbody>
</table>
</div>
<p class="quiet">A run that asked otherwise than the first one (other prompts, judge, budget or number of prompts) is
marked in the second column: its rates cannot be compared with the first run's.</p>
</main>
</div>
</body>
</html>
"""
)


def comparison_page(table: pd.DataFrame, caption: str, links: Sequence[str]) -> str:
    """The page.

    Args:
        table: one row per run; the first column is its name.
        caption: a sentence under the heading.
        links: each run's own page, relative to this one.
    """
    head = Markup("").join(Markup('<th scope="col">{}</th>').format(name) for name in table.columns)
    rows = []
    for link, (_, row) in zip(links, table.iterrows(), strict=True):
        first, *rest = row.tolist()
        cells = [Markup('<th scope="row"><a href="{}">{}</a></th>').format(link, first)]
        cells += [Markup('<td class="verdict {}">{}</td>').format(*classed(value)) for value in rest]
        rows.append(Markup("<tr>{}</tr>").format(Markup("").join(cells)))
    return PAGE.format(
        style=Markup(page_file("page.css")), caption=escape(caption), head=head, rows=Markup("\n").join(rows)
    )


def classed(value: object) -> tuple[str, str]:
    """A cell's class, where it is a verdict, and its text."""
    text = str(value)
    return (text if text in ("supported", "excluded", "undecided") else "plain", text)
