"""README and documentation.

Code that they show fits the package, links lead somewhere, the site builds and needs no network.
"""

import ast
import importlib
import importlib.util
import inspect
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import rim_lens

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCED = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
LINKS = re.compile(r"\]\(([^)#\s]+)[^)]*\)|src=\"([^\"]+)\"")


def blocks_of(page):
    return FENCED.findall(page.read_text(encoding="utf-8"))


def names_imported(tree):
    """What a block's imports from rim_lens give, by the name they have in the block; every import is carried out."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            for alias in node.names:
                found[alias.asname or alias.name] = getattr(module, alias.name)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                importlib.import_module(alias.name)
    return found


def wrong_calls(tree, known):
    """Calls of known functions whose arguments their signatures do not take."""
    wrong = []
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and callable(known.get(node.func.id))):
            continue
        named = {keyword.arg: None for keyword in node.keywords if keyword.arg}
        try:
            inspect.signature(known[node.func.id]).bind(*[None] * len(node.args), **named)
        except TypeError as error:
            wrong.append(f"{ast.unparse(node)}: {error}")
    return wrong


@pytest.mark.parametrize("page", [page for page in PAGES if blocks_of(page)], ids=lambda page: page.name)
def test_python_of_a_page_imports_and_calls_what_exists(page):
    known = {}  # a page's blocks are read from top to bottom, as a reader types them
    for block in blocks_of(page):
        tree = ast.parse(block)
        known |= names_imported(tree)
        assert wrong_calls(tree, known) == []


def test_the_check_of_calls_finds_a_wrong_argument():
    tree = ast.parse("from rim_lens import load_prompts\nload_prompts('harmful', number=3)")
    (found,) = wrong_calls(tree, names_imported(tree))
    assert "number" in found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_inside_the_repository_lead_somewhere(page):
    for match in LINKS.finditer(page.read_text(encoding="utf-8")):
        target = match.group(1) or match.group(2)
        if not re.match(r"[a-z]+:|(\.\./)*reference/", target):  # the reference is written when the site is built
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site as `make docs` builds it."""
    folder = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(
        build, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_site_builds_without_warnings_and_shows_signatures_with_shapes(site):
    page = (site / "reference" / "inference_time.html").read_text()
    assert 'id="rim_lens.inference_time.refusal_heads.find_refusal_heads"' in page
    text = re.sub(r"<[^>]+>", "", page)
    assert re.search(r"Float\[[^\]]*prompt layer head", text)


@pytest.mark.slow
def test_every_public_name_is_in_the_reference(site):
    pages = "".join(page.read_text() for page in (site / "reference").glob("*.html"))
    shown = {name.rsplit(".", 1)[1] for name in re.findall(r'id="(rim_lens\.[\w.]+)"', pages)}
    assert set(rim_lens.__all__) - {"__version__"} <= shown


@pytest.mark.slow
def test_site_loads_nothing_from_a_network(site):
    loads = re.compile(
        r"<(?:script|img|iframe)[^>]+src=[\"']?(?:https?:)?//|<link[^>]+rel=[\"']?(?:stylesheet|preconnect|icon)[^>]*(?:https?:)?//[a-z]"
    )
    for page in site.rglob("*.html"):
        assert not loads.search(page.read_text()), page.name
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\(\s*[\"']?(?:https?:)?//", sheet.read_text()), sheet.name


@pytest.mark.real_model
def test_first_example_of_the_readme_runs(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    first = blocks_of(ROOT / "README.md")[0]
    assert "n=32" in first
    script = tmp_path / "readme.py"
    script.write_text(first.replace("n=32", "n=2, cot_budget=8, max_new_tokens=4, maths_tokens=4"))
    names = runpy.run_path(str(script))
    assert names["table"].table["n"].eq(2).all()


def numbers_and_words(text):
    """The cells of a printed table: numbers as floats, all else as text."""
    return [float(cell) if re.fullmatch(r"-?[\d.]+(e-?\d+)?", cell) else cell for cell in text.split()]


@pytest.mark.real_model
@pytest.mark.slow
def test_the_readme_s_sweep_prints_what_stands_below_it(monkeypatch, capsys, tmp_path):
    """As printed, on the model of the block above; figures may differ by rounding of another processor."""
    monkeypatch.chdir(ROOT)
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    ((block, output),) = re.findall(r"^```python\n([^`]*)^```\n\n```text\n([^`]*)^```", text, re.MULTILINE)
    first = blocks_of(ROOT / "README.md")[0]
    (loading,) = [line for line in first.splitlines() if "load_model(" in line]
    script = tmp_path / "sweep.py"
    script.write_text(f"from rim_lens import load_model\n{loading}\n{block}")
    runpy.run_path(str(script))
    printed, expected = numbers_and_words(capsys.readouterr().out), numbers_and_words(output)
    assert [cell for cell in printed if isinstance(cell, str)] == [cell for cell in expected if isinstance(cell, str)]
    numbers = [[cell for cell in cells if isinstance(cell, float)] for cells in (printed, expected)]
    assert numbers[0] == pytest.approx(numbers[1], rel=0.02, abs=0.003)


def test_the_measurement_of_your_own_runs_and_is_short(monkeypatch, tmp_path):
    """The worked example of the architecture page, against rows of attention and with either backend."""
    from families import tiny_model

    (example,) = [block for block in blocks_of(ROOT / "docs" / "architecture.md") if "class EntropyTap" in block]
    assert len(example.splitlines()) < 60
    script = tmp_path / "entropy_example.py"
    script.write_text(example)
    monkeypatch.syspath_prepend(str(tmp_path))
    module, model = importlib.import_module("entropy_example"), tiny_model("llama")
    found = module.attention_entropy(model, ["pick a lock", "steal", "hide it"], batch_size=2)
    for prompt, rows in enumerate(rim_lens.attention_rows(model, ["pick a lock", "steal", "hide it"])):
        last = rows[:, :, 0].double().numpy()
        expected = -np.where(last > 0, last * np.log(np.where(last > 0, last, 1)), 0).sum(-1)
        np.testing.assert_allclose(found.entropy[prompt], expected, atol=1e-5)
    assert (found.table["low"] <= found.table["entropy"]).all()
    found.save(tmp_path / "kept")


@pytest.mark.slow
def test_the_picture_of_the_rooms_has_every_room_and_no_arrow_backwards():
    from test_layout import ROOMS

    drawn = runpy.run_path(str(ROOT / "docs" / "rooms.py"))
    graph = drawn["imports"]()
    assert set(graph) <= set(ROOMS)
    assert all(ROOMS.index(before) < ROOMS.index(after) for before, after in graph.edges)
    picture = drawn["picture"](graph)
    assert all(f'<g id="{room}">' in picture for room in graph)
