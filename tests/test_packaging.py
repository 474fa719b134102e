"""What is published: a wheel and an sdist that hold all of the package and nothing else, and types for who uses it.

The wheel is built from the unpacked sdist, as pip builds it from there. The build backend is fetched by pip into
a temporary folder, as pip does for every build; without it the tests are skipped.
"""

import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

import rim_lens

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def python(*arguments, cwd, **variables):
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **{name: str(value) for name, value in variables.items()}},
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Paths of the sdist and of the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("built")
    backend = folder / "backend"
    wanted = PROJECT["build-system"]["requires"]
    fetched = python("-m", "pip", "install", "--quiet", "--target", backend, *wanted, cwd=folder)
    if fetched.returncode:
        pytest.skip(f"pip cannot fetch {', '.join(wanted)}, which builds the package: {fetched.stderr.strip()[-200:]}")

    def build(kind, source):
        done = python("-m", "hatchling", "build", "-t", kind, "-d", folder, cwd=source, PYTHONPATH=backend)
        assert done.returncode == 0, done.stderr

    build("sdist", ROOT)
    (sdist,) = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "source", filter="data")
    (source,) = (folder / "source").iterdir()
    build("wheel", source)
    (wheel,) = folder.glob("*.whl")
    return sdist, wheel


def files_of_the_package():
    return {
        str(path.relative_to(ROOT))
        for path in (ROOT / "rim_lens").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_nothing_else(built):
    with zipfile.ZipFile(built[1]) as archive:
        names = set(archive.namelist())
    package = files_of_the_package()
    assert {name for name in names if ".dist-info/" not in name} == package
    assert {"rim_lens/py.typed", "rim_lens/__init__.pyi", "rim_lens/report/page/page.js"} <= names
    assert {"rim_lens/behavior/refusal_weights.safetensors", "rim_lens/data/builtin/harmful.jsonl"} <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)


@pytest.mark.slow
def test_the_sdist_holds_the_package_and_the_pages_that_explain_it_and_no_tests(built):
    with tarfile.open(built[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert files_of_the_package() <= names
    assert {"README.md", "CHANGELOG.md", "CITATION.cff", "LICENSE", "pyproject.toml"} <= names
    assert {name.split("/")[0] for name in names}.isdisjoint({"tests", "benchmarks", "assets", "notebooks", "docs"})


USE = """
import importlib.metadata
import rim_lens
from rim_lens.report.page import page_file
print(rim_lens.__file__, rim_lens.__version__, importlib.metadata.version("rim-lens"))
prompts = rim_lens.load_prompts("harmful", n=2)
(judgement,) = rim_lens.RefusalJudge()(prompts.texts[:1], ["I'm sorry, but I can't help with that."])
assert page_file("page.html") and page_file("page.js") and page_file("page.css")
print(judgement.label, len(prompts), len(rim_lens.__all__))
"""


@pytest.mark.slow
def test_the_unpacked_wheel_works_away_from_the_repository(built, tmp_path):
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    with zipfile.ZipFile(built[1]) as archive:
        archive.extractall(site)
    done = python("-c", USE, cwd=elsewhere, PYTHONPATH=site)
    assert done.returncode == 0, done.stderr
    where, version, installed, label, n, n_names = done.stdout.split()
    assert Path(where).is_relative_to(site)
    assert version == installed == PROJECT["project"]["version"]
    assert (label, n, n_names) == ("refused", "2", str(len(rim_lens.__all__)))
    command = python("-m", "rim_lens.cli", "--help", cwd=elsewhere, PYTHONPATH=site)
    assert "audit" in command.stdout, command.stderr


TYPED_USE = """
from rim_lens import LensModel, ablation_sweep, ablation_test, load_model, load_prompts, measure_rim
from rim_lens.data import PromptSet

def refused(name: str) -> int:
    model: LensModel = load_model(name)
    prompts: PromptSet = load_prompts("harmful", n=2)
    table = measure_rim(model, n=len(prompts.texts))
    sweep = ablation_sweep(model, prompts, method="screened")
    test = ablation_test(model, sweep.ranked(4, "supports"), prompts)
    reveal_type(sweep)
    reveal_type(test)
    return len(table.table)
"""
WRONG_USES = """from rim_lens import ablation_sweep, load_prompts
load_prompts(3)
load_prompts("harmful", number=2)
ablation_sweep("a name", ["a prompt"])
"""
# What rim_lens imports is not checked again: that alone takes two minutes.
SETTINGS = """
[mypy]
strict = True
ignore_missing_imports = True
follow_imports = silent
[mypy-torch.*,transformers.*,transformer_lens.*,peft.*,datasets.*,numpy.*,pandas.*,scipy.*,plotly.*]
follow_imports = skip
"""


@pytest.mark.slow
def test_the_public_interface_is_typed_for_who_uses_it(tmp_path):
    for name, text in (("use.py", TYPED_USE), ("wrong.py", WRONG_USES), ("strict.ini", SETTINGS)):
        (tmp_path / name).write_text(text)
    options = ["--config-file", "strict.ini", "--cache-dir", "cache", "use.py", "wrong.py"]
    done = python("-m", "mypy", *options, cwd=tmp_path, PYTHONPATH=ROOT)
    revealed = [line for line in done.stdout.splitlines() if "Revealed type" in line]
    assert ["AblationSweep" in revealed[0], "AblationTest" in revealed[1]] == [True, True], done.stdout
    errors = [line.split(":")[:2] for line in done.stdout.splitlines() if ": error:" in line]
    assert errors == [["wrong.py", "2"], ["wrong.py", "3"], ["wrong.py", "4"]], done.stdout
