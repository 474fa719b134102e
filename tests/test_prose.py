"""Prose keeps to what exists and to plain English: names, commands, options, targets, and a short list of phrases."""

import ast
import builtins
import functools
import importlib
import re
import tokenize
from pathlib import Path

import pytest
import typer.main

import rim_lens
from rim_lens.cli import app

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "rim_lens"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
SOURCES = sorted(PACKAGE.rglob("*.py"))
FENCED = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
CODE = re.compile(r"`([^`\n]+)`")

# What readers stumbled over, with what to write instead.
UNIT = r"(?:row|token|line|value|entry|column|label)s?"
COUNTED = r"(?:chats|requests|wordings|heads|cells|problems|trainings|measurements|CoTs|neurons|prompts|samples)"
EACH = (
    r"(?:pass|class|request|checkpoint|prompt|head|layer|row|category|mode|arm|seed|step|sample|stage|model|run|kind)"
)
DIALECT = {
    rf"\b(?:one|1) {UNIT} an? (?!time\b)\w+": 'write "per": one row per checkpoint',
    rf"\b{COUNTED} an? {EACH}\b(?! (?:has|needs|takes|is|must|of|that|may|can|looks|was|does|reads)\b)": 'write "per"',
    r"(?<![Tt]here )\b(?:is|are|was|were) no (?!longer|more|less|better|smaller|other|such|need|doubt)\w+": (
        'write "is not a"'
    ),
    r"\b(?:models?|tables?|figures?|results?|prompts?|heads?|numbers?|tests?|pages?) (?:knows?|thinks that|tells)\b": (
        "say what a person reads in it"
    ),
}


def prose_of(path: Path) -> list[tuple[int, str]]:
    """Numbered lines that people read: a page without its code, a module's docstrings, texts and comments."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        inside, lines = False, []
        for number, line in enumerate(text.splitlines(), 1):
            inside ^= line.startswith("```")
            lines.append((number, "" if inside else line))
        return lines
    with path.open("rb") as file:
        pieces = [
            token for token in tokenize.tokenize(file.readline) if token.type in (tokenize.STRING, tokenize.COMMENT)
        ]
    return [
        (token.start[0] + offset, line) for token in pieces for offset, line in enumerate(token.string.splitlines())
    ]


def test_no_line_uses_a_phrase_that_readers_stumble_over():
    found = [
        f"{path.name}:{number}: {match[0]!r}: {advice}"
        for path in [*PAGES, *SOURCES]
        for number, line in prose_of(path)
        for pattern, advice in DIALECT.items()
        if (match := re.search(pattern, line))
    ]
    assert found == []


@pytest.mark.parametrize(
    "sentence",
    ["one row a checkpoint", "32 requests a category", "this is no head of the model", "the table knows its judge"],
)
def test_the_list_of_phrases_catches_what_it_is_for(sentence):
    assert any(re.search(pattern, sentence) for pattern in DIALECT)


@pytest.mark.parametrize(
    "sentence", ["one row per head", "there is no head L9H0", "one token at a time", "it is no longer"]
)
def test_the_list_of_phrases_lets_plain_english_pass(sentence):
    assert not any(re.search(pattern, sentence) for pattern in DIALECT)


# ---- names ----------------------------------------------------------------------------------------------------------


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def defined_names() -> set[str]:
    """Every function, class, method, parameter, attribute and constant of the package, scripts and tests."""
    names = set(dir(builtins))
    for path in [
        *SOURCES,
        *(ROOT / "benchmarks").rglob("*.py"),
        *(ROOT / "assets").rglob("*.py"),
        *PACKAGE.rglob("*.pyi"),
    ]:
        names |= {path.stem, path.parent.name}
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
                names.add(node.name)
            elif isinstance(node, ast.arg):
                names.add(node.arg)
            elif isinstance(node, ast.Name):
                names.add(node.id)
            elif isinstance(node, ast.Attribute):
                names.add(node.attr)
            elif isinstance(node, ast.keyword) and node.arg:
                names.add(node.arg)
            elif isinstance(node, ast.alias):
                names |= set(node.name.split("."))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
                names.add(node.value)  # columns of tables, modes
    return names


@pytest.mark.slow
def test_every_call_in_backticks_names_a_function_that_exists():
    calls = [
        (page, number, match[1])
        for page in PAGES
        for number, line in prose_of(page)
        for code in CODE.findall(line)
        for match in re.finditer(r"([A-Za-z_][A-Za-z_0-9]*)\(", code)
    ]
    names = defined_names()
    assert calls
    assert [f"{page.name}:{number}: {name}" for page, number, name in calls if name not in names] == []


def exists(dotted: str) -> bool:
    """Whether a dotted name is a module, or a name of the module before its last dot."""
    module, _, name = dotted.rpartition(".")
    try:
        importlib.import_module(dotted)
    except ModuleNotFoundError:
        return hasattr(importlib.import_module(module), name)
    return True


def test_every_dotted_name_of_the_package_exists():
    dotted = [
        (page, number, name)
        for page in PAGES
        for number, line in prose_of(page)
        for name in re.findall(r"`(rim_lens(?:\.\w+)+)`", line)
    ]
    assert dotted
    assert [f"{page.name}:{number}: {name}" for page, number, name in dotted if not exists(name)] == []


NAMES_THAT_SAY_NOTHING = {"told", "gentle", "worth", "unfit"}  # say what the value is: a text, hover texts, chats


def bound_names(path: Path) -> set[str]:
    """Names that a module gives to values, parameters, functions and classes."""
    bound = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            bound.add(node.id)
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            bound.add(node.name)
    return bound


def test_names_say_what_they_hold():
    empty = {path.name: bound_names(path) & NAMES_THAT_SAY_NOTHING for path in SOURCES}
    assert {name: found for name, found in empty.items() if found} == {}


# ---- commands -------------------------------------------------------------------------------------------------------

COMMANDS = typer.main.get_command(app).commands
TARGETS = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_option_and_target_exists(page):
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"(?:^ {4}|^|`)rim-lens ([a-z][\w-]*)([^`\n]*)", text, re.MULTILINE)
    for name, rest in named:
        assert name in COMMANDS, f"{page.name}: rim-lens {name}"
        options = {
            option for parameter in COMMANDS[name].params for option in parameter.opts + parameter.secondary_opts
        }
        unknown = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", rest)) - options - {"--help"}
        assert not unknown, f"{page.name}: rim-lens {name} has no {unknown}"
    targets = re.findall(r"(?:^ {4}|^|`)make ([a-z][\w-]*)", text, re.MULTILINE)
    assert set(targets) <= TARGETS, page.name


# ---- code -----------------------------------------------------------------------------------------------------------


def loaded_and_bound(tree: ast.Module) -> tuple[set[str], set[str]]:
    """Names that a block reads, and names that it binds."""
    read, bound = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            (read if isinstance(node.ctx, ast.Load) else bound).add(node.id)
        elif isinstance(node, ast.alias):
            bound.add((node.asname or node.name).split(".")[0])
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            bound.add(node.name)
    return read, bound


@pytest.mark.parametrize(
    "page", [page for page in PAGES if FENCED.search(page.read_text(encoding="utf-8"))], ids=lambda page: page.name
)
def test_every_name_in_a_page_s_python_is_bound_above_it(page):
    text = page.read_text(encoding="utf-8")
    own = re.search(r"^.*stand for your own\.$", text, re.MULTILINE)  # names that a page says the reader brings
    known = set(dir(builtins)) | set(re.findall(r"`(\w+)`", own[0] if own else ""))
    for block in FENCED.findall(text):
        read, bound = loaded_and_bound(ast.parse(block))
        known |= bound
        assert read <= known, f"{page.name}: {read - known}"


def test_every_public_name_is_documented_in_a_sentence_of_its_own():
    for name in set(rim_lens.__all__) - {"__version__"}:
        document = getattr(rim_lens, name).__doc__
        assert document, name
        assert document.strip().splitlines()[0].rstrip().endswith((".", "?", ":")), (name, document.splitlines()[0])
