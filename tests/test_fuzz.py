"""Hostile input: whatever a prompt file, a request or a saved result holds, the answer is a result or a RimLensError.

`FUZZ_CASES=2000 pytest tests/test_fuzz.py` is the full run, more than 10,000 cases over the six tests; by default it is
short.
"""

import ast
import json
import os
import re
import sys
import warnings
from dataclasses import fields, replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from chat_families import FAMILIES, chat_format
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_heads import made_sweep

import rim_lens
from rim_lens.chat.segments import SEGMENTS
from rim_lens.data import load_prompts
from rim_lens.errors import RimLensError
from rim_lens.results import Manifest, load_result
from rim_lens.results_store import _sealed

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from security import check
from security.check import admitted, advisories, called, pinned, unpinned, unsafe

PACKAGE = Path(rim_lens.__file__).parent
CASES = int(os.environ.get("FUZZ_CASES", "60"))
fuzzed = settings(
    max_examples=CASES,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
SPECIAL = [
    "<|im_start|>", "<|im_end|>", "<think>", "</think>", "<think>\n", "\n\n</think>", "[INST]", "[/INST]", "<s>",
    "</s>", "<start_of_turn>", "<end_of_turn>", "{{ messages }}", "{% raw %}", "\ue000", "\uf8f0", "\u202e", "\x00",
    "\ud83d\ude00", "a\u0301", "  ", "\n", "\r\n", "\t",
]  # fmt: skip
text = st.one_of(
    st.text(max_size=40), st.lists(st.one_of(st.sampled_from(SPECIAL), st.text(max_size=6)), max_size=8).map("".join)
)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), text),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(text, inner, max_size=3)),
    max_leaves=6,
)
names = st.one_of(st.sampled_from(["prompt", "text", "Goal", "category", "answer", "id", "pair", "turns"]), text)
rows = st.lists(st.dictionaries(names, values, max_size=4), max_size=4)


def refused(action):
    """The sentence with which an action was refused, or None; any other exception passes."""
    try:
        action()
    except RimLensError as error:
        return str(error)
    return None


def loaded(path):
    """Prompts of a file, or None where it was refused in words."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return None if refused(lambda: load_prompts(path)) else load_prompts(path)


def usable(prompts):
    assert len(prompts) > 0
    assert all(isinstance(p.text, str) and p.text.strip() for p in prompts)
    assert len({p.id for p in prompts}) == len(prompts)
    assert re.fullmatch(r"[0-9a-f]{64}", prompts.sha256)


@fuzzed
@given(content=st.binary(max_size=200), kind=st.sampled_from(["jsonl", "json", "csv", "tsv", "parquet"]))
def test_bytes_as_a_prompt_file(content, kind, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / f"bytes.{kind}"
    path.write_bytes(content)
    if (prompts := loaded(path)) is not None:
        usable(prompts)


@fuzzed
@given(table=rows, kind=st.sampled_from(["jsonl", "json", "csv", "tsv"]), cut=st.integers(0, 400))
@pytest.mark.slow
def test_rows_of_any_shape_as_a_prompt_file(table, kind, cut, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / f"rows.{kind}"
    if kind == "json":
        content = json.dumps(table)
    elif kind == "jsonl":
        content = "".join(json.dumps(row) + "\n" for row in table)
    else:
        mark = "," if kind == "csv" else "\t"
        content = "".join(mark.join(map(str, [*row.keys(), *row.values()])) + "\n" for row in table)
    raw = content.encode("utf-8", "surrogatepass")
    path.write_bytes(raw[:cut] if cut < 200 else raw)
    if (prompts := loaded(path)) is not None:
        usable(prompts)


@fuzzed
@given(data=st.data(), request=text, cot=text, system=st.one_of(st.none(), text))
def test_any_request_is_cut_into_segments_that_cover_it(data, request, cot, system):
    family = data.draw(st.sampled_from(sorted(FAMILIES)))
    thinking = data.draw(st.sampled_from(["off", "on", "prefilled"]))
    extra = {"cot": cot} if thinking == "prefilled" else {}
    formatted = chat_format(family)
    options = {"thinking": thinking, "system": system, **extra}
    if refused(lambda: formatted.render(request, **options)):
        return
    chat = formatted.render(request, **options)
    ids, segments = np.asarray(chat.token_ids), np.asarray(chat.segment_ids)
    assert len(ids) == len(segments) > 0
    assert ((segments >= 0) & (segments < len(SEGMENTS))).all()
    assert chat.decision_position == len(ids) - 1
    assert chat.request == request


MESSAGE = st.one_of(
    st.dictionaries(st.sampled_from(["role", "content", "name"]), values, max_size=3),
    st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant", "tool"]), "content": text}),
)


@fuzzed
@given(messages=st.lists(MESSAGE, max_size=4))
def test_any_conversation_is_rendered_or_refused(messages):
    if refused(lambda: chat_format("smollm2").render(messages)):
        return
    chat = chat_format("smollm2").render(messages)
    assert len(chat.token_ids) == len(chat.segment_ids)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "result"
    replace(made_sweep(), manifest=Manifest.collect()).save(folder)
    return folder


@fuzzed
@given(data=st.data())
def test_bytes_changed_in_a_saved_result(saved, data):
    path = data.draw(st.sampled_from(sorted(saved.iterdir())))
    content = path.read_bytes()
    start = data.draw(st.integers(0, len(content)))
    new = content[:start] + data.draw(st.binary(max_size=8)) + content[start + data.draw(st.integers(0, 8)) :]
    try:
        path.write_bytes(new)
        noticed = refused(lambda: load_result(saved))
        same_words = path.suffix == ".json" and not noticed and json.loads(new) == json.loads(content)  # white space
        assert noticed or new == content or same_words
    finally:
        path.write_bytes(content)


TAGGED = st.dictionaries(
    st.sampled_from(["$float", "$tuple", "$dict", "$table", "$array", "$tensor", "$strings", "$data"]),
    values,
    max_size=1,
)


@fuzzed
@given(data=st.data(), wrong=st.one_of(values, TAGGED))
def test_a_result_that_somebody_wrote_by_hand_with_a_right_checksum(saved, data, wrong):
    """The checksum protects from damage, not from malice: whatever the document says must end in words."""
    path = saved / "result.json"
    content = path.read_bytes()
    document = json.loads(content)
    document.pop("sha256")
    place = document
    for _ in range(data.draw(st.integers(1, 3))):
        key = data.draw(st.sampled_from(sorted(place, key=str)))
        if not isinstance(place[key], dict) or not place[key]:
            break
        parent, place = place, place[key]
    target = place if key in place else parent
    target[key] = wrong
    try:
        try:
            path.write_bytes(_sealed(document))
        except (ValueError, RimLensError):
            return  # NaN is not JSON
        refused(lambda: load_result(saved))
    finally:
        path.write_bytes(content)


PICKLES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
BUILTINS = {"eval", "exec", "compile", "__import__"}  # called by their names
ATTRIBUTES = {"read_pickle", "to_pickle", "system", "popen", "extractall", "unpack_archive", "unsafe_load", "full_load"}
LOADERS = {"torch", "joblib", "yaml", "pickle", "dill"}  # whose `load` runs what a file says


def dangerous(source):
    """Every construct in Python source that unpickles, evaluates, starts a shell or unpacks a whole archive."""
    return [one for node in ast.walk(ast.parse(source)) for one in [*imported(node), *called_by(node)]]


def imported(node):
    """Modules and functions that an import brings in."""
    if not isinstance(node, ast.Import | ast.ImportFrom):
        return []
    modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else [one.name for one in node.names]
    return [
        *(name for name in modules if name.partition(".")[0] in PICKLES),
        *(one.name for one in node.names if one.name in ATTRIBUTES),
    ]


def called_by(node):
    """What a call does that it must not do."""
    if not isinstance(node, ast.Call):
        return []
    function, switches = node.func, {one.arg: one.value for one in node.keywords}
    whole, found = ast.unparse(function), []
    if isinstance(function, ast.Name) and function.id in BUILTINS:
        found.append(whole)
    if isinstance(function, ast.Attribute):
        evaluates = function.attr == "eval" and bool(node.args)  # module.eval() is a switch
        loads = function.attr == "load" and ast.unparse(function.value) in LOADERS
        if function.attr in ATTRIBUTES or evaluates or loads:
            found.append(whole)
        if function.attr == "from_pretrained" and not re.search("Tokenizer|Config|Peft", whole):
            found += [] if {"use_safetensors", "gguf_file"} & set(switches) else [whole]
    for name in ("allow_pickle", "shell", "trust_remote_code"):
        if isinstance(switches.get(name), ast.Constant) and switches[name].value is True:
            found.append(f"{name}=True")
    return found


@pytest.mark.slow
def test_nothing_is_unpickled_or_evaluated_and_remote_code_is_off_unless_asked():
    found = {str(path.relative_to(PACKAGE)): dangerous(path.read_text()) for path in PACKAGE.rglob("*.py")}
    assert len(found) > 200
    assert {path: names for path, names in found.items() if names} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle", "from dill import loads", "import torch\ntorch.load(f)", "np.load(f, allow_pickle=True)",
        "eval(x)", "frame.eval(x)", "exec(x)", "pd.read_pickle(f)", "subprocess.run(x, shell=True)",
        "archive.extractall()",
        "yaml.load(x)", "Auto.from_pretrained(x, trust_remote_code=True, use_safetensors=True)", "os.system(x)",
        "AutoModel.from_pretrained(x)", "from shutil import unpack_archive",
    ],
)  # fmt: skip
def test_the_search_for_dangerous_code_finds_it(source):
    assert dangerous(source)
    assert not dangerous('"""eval(x)"""\nmodel.eval()  # pickle.load\nAutoTokenizer.from_pretrained(x)\njson.load(f)')


class Evil:
    """Opens a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_pickled_weights_are_refused_unless_the_model_is_trusted(tmp_path):
    import torch
    from families import tiny_hf, tiny_tokenizer

    hf = tiny_hf("llama")
    hf.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(hf.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(RimLensError, match="save it as safetensors, or pass trust_remote_code=True"):
        rim_lens.load_model(tmp_path)
    assert rim_lens.load_model(tmp_path, trust_remote_code=True).n_layers == 3
    torch.save({"a": Evil(tmp_path / "ran")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(RimLensError, match="could not be loaded"):
        rim_lens.load_model(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_model_that_brings_code_is_refused_unless_asked(tmp_path):
    from families import tiny_tokenizer

    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "own", "auto_map": {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"}})
    )
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(RimLensError, match="could not be loaded"):
        rim_lens.load_model(tmp_path)
    assert not (tmp_path / "ran").exists()


class Reader(HTMLParser):
    """Tags and text of a fragment as a browser would take them."""

    def __init__(self, fragment):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(fragment)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        self.tags.append(tag)

    def handle_data(self, data):
        self.text += data


def only_text(fragment):
    """The text of a fragment in which every "<" opens one of the package's own tags."""
    read = Reader(fragment)
    assert not {"script", "img"} & set(read.tags)
    assert fragment.count("<") == len(read.tags)
    return read.text


def test_notebook_and_report_escape_what_a_model_or_a_prompt_says():
    from made_results import HOSTILE, MANIFEST

    from rim_lens.report.page import report_page

    result = replace(made_sweep(), metric=f"score, {HOSTILE}")
    result.table.loc[0, "name"] = HOSTILE
    assert "</script>" in HOSTILE
    assert "<img" in HOSTILE
    assert only_text(result._repr_html_()).count(HOSTILE) == 2  # in the caption and in the table
    assert HOSTILE not in report_page({"ablation": result}, [], MANIFEST, {"model": HOSTILE})


def test_a_chat_in_a_notebook_is_text():
    from made_results import HOSTILE

    chat = chat_format("smollm2").render(HOSTILE, thinking="prefilled", cot=f"so {HOSTILE}")
    assert only_text(chat._repr_html_()).count(HOSTILE) == 2
    decided = replace(chat, decode=lambda ids: HOSTILE)
    assert (
        only_text(decided._repr_html_()).count(HOSTILE.replace("'", "\\'"))
        + only_text(decided._repr_html_()).count(HOSTILE)
        >= 3
    )


def test_linked_views_in_a_notebook_are_text():
    import pandas as pd
    from made_results import HOSTILE

    from rim_lens.explore.answers import Answer
    from rim_lens.explore.markup import answer_html, table_html, tokens_html

    said = Answer(**{field.name: HOSTILE for field in fields(Answer)} | {"score": 1.5})
    assert only_text(answer_html(HOSTILE, said)).count(HOSTILE) == 4  # title, label, CoT, answer
    assert only_text(table_html(HOSTILE, pd.DataFrame({HOSTILE: [HOSTILE]}))).count(HOSTILE) == 3
    tokens = pd.DataFrame({"segment": ["user", "cot"], "weight": [0.2, 0.8], "text": [HOSTILE, "<"]})
    assert only_text(tokens_html(HOSTILE, tokens)).count(HOSTILE) == 2


def test_text_in_figures_is_text():
    from made_results import HOSTILE

    from rim_lens.plots import style

    assert only_text(style.text(HOSTILE)) == HOSTILE
    assert HOSTILE not in style.text(HOSTILE)


def test_the_check_of_dependencies_sees_what_it_is_for():
    known = [{"package": "Jinja2", "fixed_in": "3.1.6", "id": "CVE-2025-27516", "what": "sandbox"}]
    assert unsafe({"jinja2": "3.1.5"}, known) == ["Jinja2 3.1.5: sandbox (CVE-2025-27516); fixed in 3.1.6"]
    assert unsafe({"jinja2": "3.1.6"}, known) == unsafe({"other": "1"}, known) == []
    assert pinned("# a\nTyping_Extensions==4.1  # why\n-e .\n") == {"typing-extensions": "4.1"}
    assert unpinned({"torch": "2.13.0+cpu", "numpy": "2.0"}, {"torch": "2.13.0", "numpy": "2.1"}) == [
        "numpy 2.0 is installed but 2.1 is pinned"
    ]


def test_every_advisory_says_where_it_was_confirmed():
    known, unfixed = advisories()
    for one in known + unfixed:
        assert one["package"], one
        assert re.fullmatch(
            r"((CVE|PYSEC)-\d{4}-\d+|GHSA(-\w{4}){3})(, ((CVE|PYSEC)-\d{4}-\d+|GHSA(-\w{4}){3}))*", one["id"]
        ), one
        assert one["checked"] == one["source"].startswith("https://"), one
    assert len({one["id"] for one in known}) == len(known)


def test_what_an_advisory_without_a_fix_is_about_is_not_called(tmp_path):
    unfixed = [
        {"package": "accelerate", "id": "CVE-1", "what": "reads elsewhere", "calls": ["load_checkpoint_in_model"]}
    ]
    package = tmp_path / "rim_lens"
    package.mkdir()
    (package / "good.py").write_text("# load_checkpoint_in_model is named in words alone\n")
    assert called(package, unfixed) == []
    for bad in (
        "from accelerate import load_checkpoint_in_model as f",
        "import accelerate\naccelerate.load_checkpoint_in_model(m, p)",
    ):
        (package / "bad.py").write_text(bad)
        assert called(package, unfixed) == [
            "rim_lens/bad.py uses load_checkpoint_in_model of accelerate: reads elsewhere (CVE-1); no version fixes it"
        ]


@pytest.mark.slow
def test_the_check_of_dependencies_reads_the_requirements(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(check, "PROJECT", tmp_path / "pyproject.toml")
    written = '[project]\ndependencies = ["jinja2>=3.1"]\n[project.optional-dependencies]\nx = ["pyarrow"]\n'
    (tmp_path / "pyproject.toml").write_text(written)
    assert check.main() == 1
    told = capsys.readouterr().out
    assert "jinja2>=3.1 admits versions with" in told
    assert "pyarrow admits versions with" in told


def test_no_requirement_admits_a_version_without_a_fix(tmp_path):
    known = [
        {"package": "Jinja2", "id": "CVE-1", "what": "a way out", "fixed_in": "3.1.6"},
        {"package": "torch", "id": "CVE-2", "what": "scripts", "fixed_in": "2.13.0", "calls": ["jit"]},
    ]
    (tmp_path / "one.py").write_text("import torch\n")
    assert admitted(["jinja2>=3.1.6", "torch>=2.7", "other"], known, tmp_path) == []
    told = ["jinja2>=3.1 admits versions with a way out (CVE-1); ask for 3.1.6 or newer"]
    assert admitted(["jinja2>=3.1", "torch>=2.13"], known, tmp_path) == told
    assert len(admitted(["jinja2", "jinja2<4"], known, tmp_path)) == 2
    (tmp_path / "two.py").write_text("import torch\ntorch.jit.script(f)\n")
    assert admitted(["torch>=2.7"], known, tmp_path) == [
        "torch>=2.7 admits versions with scripts (CVE-2); ask for 2.13.0 or newer"
    ]
