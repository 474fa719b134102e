"""Names that a package offers and imports when they are first used.

The stub beside a package's `__init__.py` lists them, as Scientific Python's `lazy_loader` does it: the same lines serve
type checkers and the import. `import rim_lens` therefore takes milliseconds, and no name stands in two lists.
"""

import ast
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any


def offered_names(init: str) -> dict[str, str]:
    """Each name in the stub beside `init` (an `__init__.py`) with the module it comes from, relative to the package."""
    stub = ast.parse(Path(init).with_suffix(".pyi").read_text(encoding="utf-8"))
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom) and node.level == 1]
    return {alias.name: node.module or "" for node in imports for alias in node.names}


def attach(package: str, init: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """`__getattr__`, `__dir__` and `__all__` of a package whose stub lists what it offers."""
    modules = offered_names(init)

    def get(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{modules[name]}"), name)

    return get, lambda: sorted(modules), list(modules)
