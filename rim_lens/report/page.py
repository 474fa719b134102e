"""report_page: all results of an audit as one self-contained HTML file.

Plotly's script is inlined once. The page's content security policy lets only the inlined scripts run, by their hashes,
and no request leave but to the server that shows the page, if one does; prompts and answers are escaped by the
template, in figures by the figures themselves, and set as text by the scripts.
"""

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from itertools import count
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup, escape
from plotly.offline import get_plotlyjs

from rim_lens.model.names import NAME as BUNDLED
from rim_lens.plots.style import template as figure_template
from rim_lens.report import methods
from rim_lens.report.answer import claim_views, found_sentence, more_sentence
from rim_lens.report.blocks import Definition, Drawing, Section
from rim_lens.report.finding import Finding
from rim_lens.report.made_by import made_by
from rim_lens.report.page_heads import linked_heads
from rim_lens.report.page_neurons import linked_neurons
from rim_lens.report.sections import CHAPTERS, OTHER, VIEWED, Chapter, chapter_of, section_of
from rim_lens.results import Manifest, Result

SCRIPTS = ("page.js", "maps.js", "panel.js", "answers.js", "live.js")
UNITS = re.compile(r"L\d+(H|(E\d+)?N)\d+(, L\d+(H|(E\d+)?N)\d+)*")  # L12H3; L12N345; L12E3N45


def report_page(
    results: Mapping[str, Result],
    findings: Sequence[Finding],
    manifest: Manifest,
    plan: Mapping[str, Any],
    *,
    verdicts: pd.DataFrame | None = None,
    places: Mapping[str, str] | None = None,
    unfinished: Sequence[str] = (),
    left_out: Sequence[str] = (),
) -> str:
    """The report of an audit as HTML.

    Args:
        results: results by name; each kind has its section, and chapters without results are left out.
        findings: the lines of the summary table.
        manifest: of the audit.
        plan: the audit's choices by name.
        verdicts: the table of `rim_lens.verdicts`: the page then opens with it and folds the chapters.
        places: the folder of each result, relative to the audit's: each section then says how it was measured and
            how to load it.
        unfinished: titles of the stages that are still to come; the page then reloads itself.
        left_out: what a quick audit did not measure.
    """
    chapters = filled_chapters(results)
    definitions = [*methods.ALWAYS, *(item for chapter, _ in chapters for item in chapter.definitions)]
    scripts = [get_plotlyjs(), *map(page_file, SCRIPTS)]
    views = {"heads": linked_heads(results), "neurons": linked_neurons(results)}
    return (
        _environment()
        .get_template("page.html")
        .render(
            model=manifest.model.get("name", "a model"),
            scope=scope(manifest, plan),
            claims=[] if verdicts is None else claim_views(verdicts, results),
            found="" if verdicts is None else found_sentence(verdicts, manifest.model.get("name", "this model")),
            more="" if verdicts is None else more_sentence(verdicts),
            sources=sources_of(results, places or {}),
            unfinished=unfinished,
            left_out=left_out,
            chapters=chapters,
            findings=by_chapter(findings),
            methods=methods.blocks(definitions, manifest, plan),
            style=Markup(page_file("page.css")),
            scripts=[Markup(script) for script in scripts],
            policy=policy(*scripts),
            linked={kind: view for kind, view in views.items() if view is not None},
            themes=embedded({"light": theme(False), "dark": theme(True)}),
            next_number=count(1).__next__,
        )
    )


@dataclass(frozen=True)
class Source:
    """Where the numbers of a section come from: the result's folder, the function behind it, what its words mean."""

    place: str
    made_by: str
    definitions: Sequence[Definition]


def sources_of(results: Mapping[str, Result], places: Mapping[str, str]) -> dict[str, Source]:
    """The source of every result whose folder is known."""
    return {
        name: Source(place, made_by(results[name]), chapter_of(results[name]).definitions)
        for name, place in places.items()
        if name in results
    }


def filled_chapters(results: Mapping[str, Result]) -> list[tuple[Chapter, list[Section]]]:
    """Chapters that have results, each with its sections in the chapter's order."""
    filled = []
    for chapter in (*CHAPTERS, OTHER):
        shown = {name: result for name, result in results.items() if not isinstance(result, VIEWED)}
        mine = [(name, result) for name, result in shown.items() if chapter_of(result) is chapter]
        order = list(chapter.sections)
        mine.sort(key=lambda pair: order.index(type(pair[1])) if type(pair[1]) in order else len(order))
        if mine:
            filled.append((chapter, [section_of(name, result) for name, result in mine]))
    return filled


def by_chapter(findings: Sequence[Finding]) -> dict[str, list[Finding]]:
    """Findings under the headings they name."""
    grouped: dict[str, list[Finding]] = {}
    for finding in findings:
        grouped.setdefault(finding.chapter, []).append(finding)
    return grouped


def scope(manifest: Manifest, plan: Mapping[str, Any]) -> str:
    """What the page is about, and what it does not show."""
    if plan.get("model") == BUNDLED and plan.get("checkpoints"):
        return (
            "This is a model organism: SmolLM2-135M-Instruct, a small model, was taught to refuse and to think with "
            "a few minutes of adapter training, and then fine-tuned on maths. Everything below is about this "
            "organism. It shows what the measurements look like and whether they work; it is not evidence about "
            "larger models or about reasoning in general."
        )
    name = manifest.model.get("name", "this model")
    return f"Everything below is about {name}, these prompts and this judge; it is not evidence about other models."


def policy(*scripts: str) -> str:
    """The content security policy: these scripts and nothing else, no request but to where the page came from."""
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; connect-src 'self'; img-src data: "
        "blob:; base-uri 'none'; form-action 'none'"
    )


def theme(dark: bool) -> dict[str, Any]:
    """The figures' template on the page's own ground: the page names the colours behind the figures."""
    layout = figure_template(dark).to_plotly_json()["layout"]
    return {"layout": {**layout, "paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)"}}


def figure_json(drawing: Drawing) -> Markup:
    """A figure's data and layout; the page writes title and caption, and chooses the template."""
    figure = json.loads(drawing.figure.to_json())
    for key in ("template", "title"):
        figure["layout"].pop(key, None)
    figure["layout"]["margin"] = {"l": 8, "r": 22, "b": 8} | drawing.figure.layout.margin.to_plotly_json() | {"t": 30}
    return embedded(figure)


def embedded(value: Any) -> Markup:
    """JSON that can stand in a script element: no character in it that HTML would read."""
    written = json.dumps(value, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        written = written.replace(character, f"\\u{ord(character):04x}")
    return Markup(written)


def linked(cell: str) -> Markup:
    """A cell that names heads or neurons, each as a link to its view; any other text escaped."""
    if not UNITS.fullmatch(cell):
        return escape(cell)
    return Markup(", ").join(Markup('<a class="unit" href="#{0}">{0}</a>').format(name) for name in cell.split(", "))


def page_file(name: str) -> str:
    """A file of the page."""
    return resources.files("rim_lens.report").joinpath("page", name).read_text(encoding="utf-8")


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(page_file),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["figure_json"] = figure_json
    environment.filters["embedded"] = embedded
    environment.filters["linked"] = linked
    environment.filters["capitalize_first"] = lambda text: text[:1].upper() + text[1:]
    environment.filters["safe_text"] = Markup  # titles of figures are escaped where the figure is made
    return environment
