"""Every command line that README, the documentation and the notebooks print is one that the shell's parser takes."""

import inspect
import itertools
import json
import re
import shlex

import pytest
from test_docs import PAGES, ROOT
from typer.main import get_command

from rim_lens.cli import app

PROGRAMS = ("rim-lens", "inspect", "make", "python")
FENCED = re.compile(r"^```(?:bash|sh)\n(.*?)^```", re.DOTALL | re.MULTILINE)
INDENTED = re.compile(rf"^    ((?:{'|'.join(PROGRAMS)}) .*)$", re.MULTILINE)
INLINE = re.compile(r"`(rim-lens [^`]+|make [a-z-]+)`")


def commands_of(text):
    """Command lines of a page, comments and line breaks taken out; what is optional in brackets is there."""
    text = text.replace("\\\n", " ")
    lines = [line for block in FENCED.findall(text) for line in block.splitlines()]
    lines += INDENTED.findall(text) + INLINE.findall(text)
    found = [shlex.split(re.sub(r"[\[\]]", "", line), comments=True) for line in lines if line.strip()]
    return [words for words in found if words and words[0] in PROGRAMS]


def why_not(words):
    """Why the program would not take the words, or None."""
    program, *arguments = words
    if program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        return None if set(arguments) <= set(targets) else f"no target {arguments}"
    if program == "python":
        script = arguments[1].replace(".", "/") if arguments[0] == "-m" else arguments[0]
        there = [ROOT / script, ROOT / f"{script}.py", ROOT / script / "__main__.py"]
        return None if any(path.exists() for path in there) else f"no script {script}"
    if program == "inspect":
        return why_not_inspect(arguments)
    name, *rest = arguments
    sub = get_command(app).commands.get(name)
    if sub is None:
        return None if name in ("--help", "--version") else f"no command {name}"
    if not rest:
        return None  # named in a sentence, without what it takes
    try:
        sub.make_context(name, rest)
    except Exception as error:
        if not hasattr(error, "format_message"):  # what Click raises, or typer's own copy of it
            raise
        return error.format_message()
    return None


def why_not_inspect(arguments):
    """Whether a task has what -T names, and the provider what -M names."""
    from rim_lens.evals import maths, refusal
    from rim_lens.evals.provider import CHANGING, LOADING

    tasks = {"rim_lens/refusal": refusal, "rim_lens/maths": maths}
    if arguments[0] != "eval":
        return None
    known = {
        "-T": set(inspect.signature(tasks[arguments[1]]).parameters),
        "-M": {*LOADING, *CHANGING, "batch_size", "record"},
    }
    for option, value in itertools.pairwise(arguments):
        if option in known and value.split("=")[0] not in known[option]:
            return f"{option} {value} is unknown"
    return None


def text_of(path):
    """A page's text; of a notebook that of its cells."""
    text = path.read_text(encoding="utf-8")
    return "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"]) if path.suffix == ".ipynb" else text


OTHERS = [ROOT / "CONTRIBUTING.md", ROOT / "assets/organism/MODEL_CARD.md", *sorted(ROOT.glob("notebooks/*.ipynb"))]
TEXTS = {path.name: text_of(path) for path in [*PAGES, *OTHERS]}


@pytest.mark.parametrize("name", [name for name, text in TEXTS.items() if commands_of(text)])
def test_the_parser_takes_every_printed_command(name):
    refused = {" ".join(words): why for words in commands_of(TEXTS[name]) if (why := why_not(words))}
    assert refused == {}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("rim-lens audit MODEL --chekpoints FOLDER", "--chekpoints"),
        ("rim-lens finetune MODEL DATA", "--out"),
        ("rim-lens audti MODEL", "audti"),
        ("make demos", "demos"),
        ("python assets/none.py", "none"),
        ("inspect eval rim_lens/refusal --model rim_lens/x -T thinkin=on", "thinkin"),
    ],
)
def test_a_slip_is_found(line, words):
    (found,) = commands_of(f"```bash\n{line}\n```\n")
    assert words in why_not(found)
