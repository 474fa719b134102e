"""Notebooks run from top to bottom with few prompts.

What is committed has outputs, figures that any viewer shows, and no paths.
"""

import base64
import importlib.util
import re
from pathlib import Path

import pytest

pytest.importorskip("nbclient", reason="the extra dev is not installed")
import nbformat

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
FEW = {
    "01_quickstart": {"N": 2, "COT_BUDGET": 4, "ANSWER": 4},
    "02_refusal_heads": {"N": 12, "N_EXACT": 10, "N_CONTROLS": 3, "COT_BUDGET": 6, "ANSWER": 8},
    "03_safety_neurons_and_ras": {
        "N": 4,
        "CHECKPOINTS": ["aligned", "plain-9", "plain-36", "effort-9", "effort-36"],
        "TOP": 0.001,
        "N_CONTROLS": 20,
        "N_ABLATED": 3,
        "ANSWER": 4,
    },
    "04_your_own_model": {"N": 4, "ANSWER": 6},
}
specification = importlib.util.spec_from_file_location("execute", FOLDER / "execute.py")
execute = importlib.util.module_from_spec(specification)
specification.loader.exec_module(execute)


def read(path):
    return nbformat.read(path, as_version=4)


def html_outputs(notebook):
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(output.get("data", {}).get("text/html", "") for output in outputs)


def test_the_four_notebooks_are_there():
    assert [path.stem for path in NOTEBOOKS] == list(FEW)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_outputs_are_complete_small_and_name_no_folder(path):
    notebook, text = read(path), path.read_text(encoding="utf-8")
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))  # run once, in order
    assert len(text) < 2_000_000
    assert execute.machine_paths(text) == []
    assert not re.search(r"(?<![\w.])/(tmp|root|home|work)/", html_outputs(notebook))
    assert execute.WIDGET not in text  # progress bars


@pytest.mark.parametrize("path", NOTEBOOKS[:3], ids=lambda path: path.stem)
def test_those_that_measure_open_with_a_question_and_end_with_its_answer(path):
    assert "**Question: " in read(path).cells[0].source
    code = [cell for cell in read(path).cells if cell.cell_type == "code"]
    said = "".join(output.get("text", "") for output in code[-1].outputs)
    assert re.search(r"\[[^\]]+\]", said)  # an interval
    assert re.search(r"n = \d+|\d+ checkpoints", said)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_figure_is_there_for_viewers_without_scripts(path):
    for data in execute.figures(read(path)):
        assert base64.b64decode(data[execute.PNG]).startswith(b"\x89PNG")
        assert "n = " in data[execute.FIGURE]["layout"]["title"]["subtitle"]["text"]


def test_figures_are_in_the_notebooks_that_measure():
    counts = {path.stem: len(execute.figures(read(path))) for path in NOTEBOOKS}
    assert min(counts[name] for name in list(FEW)[:3]) >= 3


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_answers_are_shown_by_their_first_words_only(path):
    """Tables of answers are not displayed: responses are long, and labels and counts say enough."""
    assert "response</th>" not in html_outputs(read(path))


def test_an_unknown_parameter_is_an_error():
    with pytest.raises(KeyError, match="no parameter M"):
        execute.with_parameters(read(NOTEBOOKS[0]), {"M": 3})


@pytest.fixture(scope="module")
def kernel():
    """One kernel for all notebooks: importing torch takes longer than running some of them."""
    with execute.kernel_of_this_python() as running:
        yield running


@pytest.mark.real_model
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_from_top_to_bottom(path, kernel):
    notebook = execute.executed(path, kernel, FEW[path.stem])
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code)
    assert len(execute.figures(notebook)) == len(execute.figures(read(path)))
