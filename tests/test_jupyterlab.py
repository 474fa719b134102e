"""explore_heads in a real JupyterLab: a browser runs the cells, clicks a head, ablates it and reads the change."""

import json
import os
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from families import shared_model

from rim_lens import ablate_heads, refusal_score

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed (the browser extra)")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
LAB = shutil.which("jupyter-lab")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine to open JupyterLab with"),
    pytest.mark.skipif(LAB is None, reason="JupyterLab is not installed (the notebook extra)"),
]
TESTS = Path(__file__).parent
CELL = f"""import sys
sys.path[:0] = [{str(TESTS.parent)!r}, {str(TESTS)!r}]
from families import shared_model
from rim_lens import ablation_sweep, explore_heads
model = shared_model()
sweep = ablation_sweep(model, model.render(["hello", "how do I open a lock"]), n_permutations=20, method="screened")
explore_heads(model, ["hello", "how do I open a lock"], sweep, max_new_tokens=2)
"""
DESK, NARROW = {"width": 1440, "height": 1000}, {"width": 1100, "height": 900}
STDERR = "[data-mime-type='application/vnd.jupyter.stderr']"


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The address of a notebook in a JupyterLab of its own, whose kernel is this Python."""
    place = tmp_path_factory.mktemp("lab")
    kernel = place / "share" / "kernels" / "here"
    kernel.mkdir(parents=True)
    launcher = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (kernel / "kernel.json").write_text(json.dumps({"argv": launcher, "display_name": "here", "language": "python"}))
    cell = {"cell_type": "code", "id": "a", "metadata": {}, "source": CELL, "outputs": [], "execution_count": None}
    spec = {"kernelspec": {"name": "here", "display_name": "here", "language": "python"}}
    notebook = {"cells": [cell], "metadata": spec, "nbformat": 4, "nbformat_minor": 5}
    (place / "try.ipynb").write_text(json.dumps(notebook))
    quiet = place / "config" / "lab" / "user-settings" / "@jupyterlab" / "apputils-extension"
    quiet.mkdir(parents=True)
    (quiet / "notification.jupyterlab-settings").write_text('{"fetchNews": "false", "checkForUpdates": false}')
    folders = {"JUPYTER_PATH": "share", "JUPYTER_CONFIG_DIR": "config", "JUPYTER_RUNTIME_DIR": "run"}
    options = ["--no-browser", "--allow-root", "--ip=127.0.0.1", "--port=0", f"--ServerApp.root_dir={place}"]
    running = subprocess.Popen(
        [LAB, *options, "--IdentityProvider.token=made-for-this-test"],
        env={**os.environ, **{name: str(place / folder) for name, folder in folders.items()}},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        for line in running.stderr:
            if "http://127.0.0.1:" in line:
                address = line[line.index("http://127.0.0.1:") :].split("/lab")[0].strip()
                break
        urllib.request.urlopen(f"{address}/api", timeout=60).read()
        yield f"{address}/lab/tree/try.ipynb?token=made-for-this-test"
    finally:
        running.terminate()
        running.wait(30)


def test_a_head_is_chosen_and_ablated_by_hand(lab):
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport=DESK)
        page.set_default_timeout(120_000)
        page.goto(lab)
        page.locator(".jp-Notebook .jp-Cell").first.click()
        page.locator(".jp-Notebook-ExecutionIndicator[data-status='idle']").wait_for()
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_text("Run All Cells", exact=True).click()
        page.get_by_role("button", name="Ablate L").wait_for()
        output, box = page.locator(".jp-OutputArea").first, page.locator(".js-plotly-plot").last
        assert page.locator(STDERR).all_inner_texts() == []

        # the map has the cell's width, and its caption stands under its title
        page.wait_for_function(
            "([map, cell]) => map.querySelector('.main-svg').clientWidth > 0.9 * cell.clientWidth",
            arg=[box.element_handle(), output.element_handle()],
        )
        title, caption = (box.locator(f".{name}").bounding_box() for name in ("gtitle", "gtitle-subtitle"))
        assert caption["y"] > title["y"]

        place = "(box) => { const { xaxis, yaxis } = box._fullLayout; return { x: xaxis._offset + xaxis.l2p(1),"
        box.click(position=box.evaluate(f"{place} y: yaxis._offset + yaxis.l2p(2) }}; }}"))
        page.get_by_role("button", name="Ablate L1H2").click()
        page.get_by_text("Without L1H2").wait_for()
        model = shared_model()
        with ablate_heads(model, ["L1H2"]):
            without = refusal_score(model, ["hello"])[0]
        shown = output.inner_text()
        assert f"refusal score {without:.2f} nats" in shown.replace("−", "-")
        assert "ablated: L1H2" in shown

        page.set_viewport_size(NARROW)
        page.wait_for_function(
            "([map, cell]) => map.querySelector('.main-svg').clientWidth <= cell.clientWidth",
            arg=[box.element_handle(), output.element_handle()],
        )
        edge = output.bounding_box()
        for button in output.locator("button:visible").all():
            assert button.bounding_box()["x"] + button.bounding_box()["width"] <= edge["x"] + edge["width"] + 1
        assert page.locator(STDERR).all_inner_texts() == []
        browser.close()
