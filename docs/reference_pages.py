"""Writes the API reference while mkdocs builds: one page per room, from the stubs that list the public names.

Nothing is imported: names, modules and result classes are read from the source, so a new public name is in the
reference at once.
"""

import ast
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

PACKAGE = Path(__file__).resolve().parents[1] / "rim_lens"
ROOMS = {
    "model": ("Models and chats", "Anything to a `LensModel`; how a chat template cuts a prompt into segments."),
    "data": ("Prompts", "Built-in prompts and wordings, local files, public sets by name."),
    "capture": ("Reading a pass", "Attention rows and masses, residual stream, head outputs, neurons."),
    "intervene": (
        "Changing a pass",
        "Context managers that ablate, scale, patch or hide. They compose, hold in passes and generation, and "
        "restore the model.",
    ),
    "behavior": ("Behaviour and judges", "Generation with a thinking budget, judges, refusal score, maths accuracy."),
    "check": (
        "Checking a model",
        "Whether a model is read and changed correctly, part by part, before you trust a number.",
    ),
    "inference_time": ("Inference time", "Which heads go with refusal, which carry it, where it can be read."),
    "training_time": ("Training time", "Checkpoints, safety-critical neurons, what a series does to them."),
    "patterns": ("Reasoning patterns", "Effort-minimizing reasoning: taxonomy, annotation, control and target CoTs."),
    "claims": (
        "Claims",
        "A verdict per claim against a smallest effect of interest; what a number of prompts can find.",
    ),
    "explore": ("Looking by hand", "Linked views of heads and neurons in a notebook."),
    "plots": ("Figures", "One function per figure; `result.plot()` calls the one that belongs to a result."),
    "stats": ("Statistics", "Intervals, tests, controls. The same seed gives the same numbers."),
    "results": ("Results and errors", "What a measurement returns, saves and raises."),
}
WHOLE = ("data", "intervene", "plots", "stats")  # rooms with a public list of their own
Members = dict[str, list[str]]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Mkdocs asks here for more files before it lays out the navigation."""
    public = public_names()
    for room, (title, about) in rooms(public).items():
        modules = whole_room(room) if room in WHOLE else modules_of(room, public)
        blocks = [f"::: rim_lens.{module}\n    options:\n      members: {names}\n" for module, names in modules.items()]
        page = "\n".join([f"# {title}\n\n{about}\n", *blocks])
        files.append(File.generated(config, f"reference/{room}.md", content=page))
    files.append(File.generated(config, "reference/index.md", content=overview(rooms(public))))
    return files


def rooms(public: dict[str, str]) -> dict[str, tuple[str, str]]:
    """Title and purpose of every room that holds something public; one that nobody described here has its name."""
    named = {module.split(".")[0] for module in public.values()} - {"errors"}
    return ROOMS | {room: (room.capitalize(), "") for room in sorted(named - set(ROOMS))}


def overview(every: dict[str, tuple[str, str]]) -> str:
    """The first page of the reference."""
    rows = [f"| [{title}]({room}.md) | {about} |" for room, (title, about) in every.items()]
    return "\n".join(
        [
            "# API reference\n",
            "`from rim_lens import ...` gives what most work needs; a name is imported when it is first used.",
            "Each page is one room of the package, in the order in which data flows, and says what `rim_lens.ROOM`",
            "offers besides.\n",
            "| room | what it holds |\n| --- | --- |",
            *rows,
            '\nShapes stand in signatures: `Float[np.ndarray, "prompt layer head segment"]` '
            "has these axes in this order.\n",
        ]
    )


def public_names() -> dict[str, str]:
    """Public name to the module that defines it: the top level's stub, then the stub of every room."""
    stubs = [PACKAGE / "__init__.pyi", *sorted(PACKAGE.glob("*/__init__.pyi"))]
    found: dict[str, str] = {}
    for stub in stubs:
        room = "" if stub.parent == PACKAGE else f"{stub.parent.name}."
        for node in ast.parse(stub.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ImportFrom):
                found |= {alias.name: f"{room}{node.module}" for alias in node.names}
    return found


def modules_of(room: str, public: dict[str, str]) -> Members:
    """The room's modules that define public names, with these and the result classes beside them."""
    found: Members = {}
    for name, module in public.items():
        if module.split(".")[0] == room or (room == "results" and module == "errors"):
            found.setdefault(defining_module(module, name), []).append(name)
    return {
        module: [*names, *(one for one in results_in(module) if one not in names)] for module, names in found.items()
    }


def defining_module(module: str, name: str) -> str:
    """The module itself, or the one that a package's `__init__` imports the name from."""
    for node in parsed(module).body:
        if isinstance(node, ast.ImportFrom) and any(alias.name == name for alias in node.names):
            return (node.module or "").removeprefix("rim_lens.")
    return module


def results_in(module: str) -> list[str]:
    """Classes of a module that are results; in the room of results, the manifest."""
    classes = [node for node in parsed(module).body if isinstance(node, ast.ClassDef)]
    if module == "results":
        return ["Manifest"]
    return [node.name for node in classes if "Result" in map(ast.unparse, node.bases)]


def whole_room(room: str) -> Members:
    """Every module of a room with the names that the room's own `__all__` offers."""
    (offered,) = [
        ast.literal_eval(node.value)
        for node in parsed(room).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    ]
    found: Members = {}
    for path in sorted((PACKAGE / room).glob("[a-z]*.py")):
        kinds = (ast.FunctionDef, ast.ClassDef)
        names = [node.name for node in parsed(f"{room}.{path.stem}").body if isinstance(node, kinds)]
        found[f"{room}.{path.stem}"] = [name for name in names if name in offered]
    return {module: names for module, names in found.items() if names}


def parsed(module: str) -> ast.Module:
    """The syntax tree of a module or of a package's `__init__`."""
    path = PACKAGE / module.replace(".", "/")
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(file.read_text(encoding="utf-8"))
