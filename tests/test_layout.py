"""The layout is a promise: a module imports only from its left, importing the package is quick, nothing is pickled."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import rim_lens

ROOMS = (
    "errors",
    "units",
    "cache",
    "processes",
    "progress",
    "stats",
    "results",
    "data",
    "chat",
    "model",
    "capture",
    "intervene",
    "behavior",
    "inference_time",
    "training_time",
    "patterns",
    "check",
    "plots",
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


def imported_rooms(path: Path) -> set[str]:
    """Rooms that a file's import statements name, whether at the top or inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = [node.module] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for name in names:
            parts = (name or "").split(".")
            if parts[0] == "rim_lens" and len(parts) > 1 and parts[1] != "__version__":
                found.add(parts[1] if parts[1] in ROOMS else parts[1].split("_")[0])
    return found


@pytest.mark.parametrize("path", [p for p in MODULES if p != PACKAGE / "__init__.py"], ids=lambda p: str(p.name))
def test_modules_import_only_from_their_left(path):
    mine = room_of(path)
    assert mine in ROOMS, f"{path.name} stands in no room"
    to_the_right = {room for room in imported_rooms(path) if ROOMS.index(room) > ROOMS.index(mine)}
    assert not to_the_right


def test_everything_public_can_be_imported():
    for name in rim_lens.__all__:
        assert getattr(rim_lens, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        rim_lens.nothing  # noqa: B018


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
