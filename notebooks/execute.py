"""Run the notebooks from top to bottom and keep their outputs.

The command is `make notebooks` or `python notebooks/execute.py [NOTEBOOK ...]`.

The kernel is this Python. Every plotly figure is kept twice, as itself (hover and zoom in JupyterLab and VS Code) and
as a PNG (for viewers without scripts). Progress lines are left out, and an output that names a folder of this machine
is an error.
"""

import base64
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat
import plotly.graph_objects as go
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from jupyter_core.utils import run_sync
from nbclient import NotebookClient

from rim_lens.plots import image_bytes

HERE = Path(__file__).resolve().parent
FIGURE, PNG = "application/vnd.plotly.v1+json", "image/png"
PARAMETERS = "parameters"
WIDGET = "application/vnd.jupyter.widget-view+json"
BAR = re.compile(r"\d+%\||\dit \[")  # how a progress bar reads as text
LONGEST_CELL = 600  # seconds


@contextmanager
def kernel_of_this_python() -> Iterator[AsyncKernelManager]:
    """A kernel that runs this interpreter, whatever kernels are installed; figures come as plotly's own output."""
    os.environ["PLOTLY_RENDERER"] = "plotly_mimetype"
    manager = AsyncKernelManager(kernel_name="python3")
    launcher = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", "--log-level=ERROR"]
    manager._kernel_spec = KernelSpec(argv=launcher, language="python", display_name="Python 3 (ipykernel)")
    try:
        yield manager
    finally:
        if manager.has_kernel:
            run_sync(manager.shutdown_kernel)()


def with_parameters(notebook: nbformat.NotebookNode, values: Mapping[str, Any]) -> nbformat.NotebookNode:
    """The notebook with a cell after its parameters that sets other values. An unknown parameter is an error."""
    tagged = [i for i, cell in enumerate(notebook.cells) if PARAMETERS in cell.metadata.get("tags", [])]
    (place,) = tagged
    known = {line.split("=")[0].strip() for line in notebook.cells[place].source.splitlines()}
    if unknown := set(values) - known:
        raise KeyError(
            f"The notebook has no parameter {', '.join(sorted(unknown))}; it has {', '.join(sorted(known))}."
        )
    source = "\n".join(f"{name} = {value!r}" for name, value in values.items())
    notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(source))
    return notebook


def executed(path: Path, kernel: AsyncKernelManager, values: Mapping[str, Any] | None = None) -> nbformat.NotebookNode:
    """The notebook with the outputs of a run in its own folder; a kernel that ran another one forgets its names first.

    Raises:
        CellExecutionError: a cell failed.
    """
    notebook = nbformat.read(path, as_version=4)
    if values:
        notebook = with_parameters(notebook, values)
    if kernel.has_kernel:
        notebook.cells.insert(0, nbformat.v4.new_code_cell("%reset -f"))
    where = {"metadata": {"path": str(path.parent)}}
    NotebookClient(notebook, km=kernel, timeout=LONGEST_CELL, record_timing=False, resources=where).execute()
    return notebook


def figures(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    """Data of the outputs that hold a figure, in order."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return [output.data for output in outputs if FIGURE in output.get("data", {})]


def is_progress(output: nbformat.NotebookNode) -> bool:
    """Whether an output is a progress bar or a message of a library, not a result."""
    data = output.get("data", {})
    return output.get("name") == "stderr" or (WIDGET in data and bool(BAR.search(data.get("text/plain", ""))))


def cleaned(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Without progress lines, with a PNG beside each figure and neutral metadata."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if not is_progress(output)]
    found = figures(notebook)
    images = image_bytes([go.Figure(dict(data[FIGURE])) for data in found], scale=1.5) if found else []
    for data, image in zip(found, images, strict=True):
        data[PNG] = base64.b64encode(image).decode()
        data.pop("text/html", None)
    kernel = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}
    notebook.metadata = nbformat.from_dict({"kernelspec": kernel, "language_info": {"name": "python"}})
    return notebook


def machine_paths(text: str) -> list[str]:
    """Folders of this machine that a text names."""
    folders = {
        str(HERE.parent),
        str(Path.home()),
        sys.prefix,
        tempfile.gettempdir(),
        os.environ.get("RIM_LENS_CACHE", ""),
    }
    return sorted(folder for folder in folders if len(folder) > 1 and f"{folder}/" in text)


def processor_seconds() -> float:
    """Processor time of the kernels that have ended."""
    times = os.times()
    return times.children_user + times.children_system


def main(names: Sequence[str]) -> None:
    """Execute the named notebooks, or all of them, in place."""
    for path in [Path(name) for name in names] or sorted(HERE.glob("*.ipynb")):
        start, used = time.perf_counter(), processor_seconds()
        with kernel_of_this_python() as kernel:
            notebook = executed(path, kernel)
        wall, processor = time.perf_counter() - start, processor_seconds() - used
        text = nbformat.writes(cleaned(notebook)) + "\n"
        if found := machine_paths(text):
            raise SystemExit(f"{path.name} names folders of this machine in its outputs: {', '.join(found)}")
        path.write_text(text, encoding="utf-8")
        took = f"{wall:.0f} s ({processor:.0f} s of processor time)"
        print(f"{path.name}: {took}, {len(figures(notebook))} figures, {len(text) / 1e6:.2f} MB", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
