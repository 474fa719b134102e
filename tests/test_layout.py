"""The layout is a promise: a module imports only from its left, importing the package is quick, nothing is pickled."""

import ast
import functools
import importlib
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import networkx
import pytest

import rim_lens

ROOMS = (
    "errors",
    "lazy",
    "atomic",
    "units",
    "cache",
    "processes",
    "progress",
    "table",
    "stats",
    "words",
    "plots",
    "results",
    "data",
    "chat",
    "engine",
    "model",
    "organisms",
    "capture",
    "intervene",
    "behavior",
    "causal",
    "inference_time",
    "training_time",
    "patterns",
    "claims",
    "check",
    "report",
    "explore",
    "audit",
    "serve",
    "evals",
    "cli",
)
PACKAGE = Path(rim_lens.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    """The room that a file belongs to; results_store.py and the like belong to results."""
    first = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return first if first in ROOMS else first.split("_")[0]


def name_of(path: Path) -> str:
    """A file's dotted name inside the package; a room's `__init__` has the room's name."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {name_of(path): path for path in MODULES if path != PACKAGE / "__init__.py"}


def modules_meant(dotted: str, members: list[str]) -> set[str]:
    """The package's modules that `from dotted import members` reaches; "" stands for the package itself."""
    submodules = {f"{dotted}.{member}".lstrip(".") for member in members} & NAMES.keys()
    return submodules or ({dotted} & NAMES.keys())


def name_at_end(node: ast.expr) -> str | None:
    """`name` of the expressions `name` and `room.name`."""
    return getattr(node, "attr", getattr(node, "id", None))


def imported_modules(path: Path) -> set[str]:
    """Modules that a file imports at run time: at the top, inside functions, by name, and as the figure of a result."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "rim_lens":
            dotted = node.module.removeprefix("rim_lens").lstrip(".")
            found |= modules_meant(dotted, [alias.name for alias in node.names])
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("rim_lens."):
                    found |= modules_meant(alias.name.removeprefix("rim_lens."), [])
        elif isinstance(node, ast.Call) and name_at_end(node.func) == "import_module" and node.args:
            start = ast.unparse(node.args[0]).strip("f'\"").split("{")[0]
            room = start.removeprefix("rim_lens.").rstrip(".") if start.startswith("rim_lens.") else ""
            found |= {name for name in NAMES if room and (name == room or name.startswith(f"{room}."))}
        elif isinstance(node, ast.AnnAssign) and name_at_end(node.target) == "figure" and node.value is not None:
            figure = ast.literal_eval(node.value).split(":")[0]
            found |= {f"plots.{figure}"} if figure else set()
    return found - {name_of(path)}


@functools.cache
def imports() -> dict[str, set[str]]:
    """The modules that each module imports."""
    return {name: imported_modules(path) for name, path in NAMES.items()}


def test_modules_import_only_from_their_left():
    rooms = {name: room_of(path) for name, path in NAMES.items()}
    assert set(rooms.values()) <= set(ROOMS)
    place = {name: ROOMS.index(room) for name, room in rooms.items()}
    to_the_right = [
        f"{name} imports {other}"
        for name, others in imports().items()
        for other in sorted(others)
        if place[other] > place[name]
    ]
    assert to_the_right == []


def test_no_module_imports_in_a_circle():
    graph = networkx.DiGraph((name, other) for name, others in imports().items() for other in others)
    circles = [sorted(part) for part in networkx.strongly_connected_components(graph) if len(part) > 1]
    assert circles == []


def test_figures_exist():
    for name, path in NAMES.items():
        for figure in re.findall(r'figure: ClassVar(?:\[str\])? = "([\w:]+)"', path.read_text()):
            module, function = figure.split(":")
            assert callable(getattr(importlib.import_module(f"rim_lens.plots.{module}"), function)), (name, figure)


def test_everything_public_can_be_imported():
    for name in rim_lens.__all__:
        assert getattr(rim_lens, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        rim_lens.nothing  # noqa: B018


ROOMS_WITH_NAMES = [path.parent.name for path in sorted(PACKAGE.glob("*/__init__.pyi"))]


def test_the_top_level_stays_small():
    assert len(rim_lens.__all__) <= 50  # about forty, with room for what a new kind of question needs


@pytest.mark.parametrize("room", ROOMS_WITH_NAMES)
def test_a_room_gives_the_names_of_its_stub_and_no_module_in_their_place(room):
    package = importlib.import_module(f"rim_lens.{room}")
    for name in package.__all__:
        offered = getattr(package, name)
        assert not inspect.ismodule(offered)
        assert not (PACKAGE / room / f"{name}.py").exists(), f"the module {name}.py would hide the name"
        assert name in dir(package)
        if room in rim_lens._ROOMS:
            assert getattr(rim_lens, name) is offered  # where it stood before


def test_names_that_have_become_others_still_lead_there():
    assert rim_lens.test_neurons is rim_lens.ablation_test


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, rim_lens; print([m for m in ('torch', 'pandas', 'transformers', 'plotly') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_wandb_is_never_imported():
    code = (
        "import sys, rim_lens.model.load, rim_lens.model.lens_model, rim_lens.audit.run; print('wandb' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ})
    assert done.stdout.strip() == "False"
