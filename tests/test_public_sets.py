"""Public sets from small local copies in the published layouts, and from hosts that refuse or do not answer."""

import json
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pandas as pd
import pytest
from huggingface_hub import constants

from rim_lens.data import fetch, load_prompts
from rim_lens.data.fetch import dataset_rows, download_rows, load_public, map_rows
from rim_lens.data.public_sets import PUBLIC_SETS
from rim_lens.errors import RimLensError


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RIM_LENS_CACHE", str(tmp_path / "cache"))


class Host(BaseHTTPRequestHandler):
    """Serves files of its folder; answers as the hub does for gated, absent and hanging data sets."""

    def do_GET(self):
        self.server.requests.append(self.path)
        if self.path.startswith("/api/datasets/"):
            self.answer_as_hub()
        elif (file := Path(self.server.folder) / self.path.lstrip("/")).is_file():
            self.send_response(200)
            self.end_headers()
            self.wfile.write(file.read_bytes())
        else:
            self.send_error(404)

    def answer_as_hub(self):
        if "gsm8k" in self.path:
            self.server.hanging.wait(5)
        gated = "HEx-PHI" in self.path or "sorry-bench" in self.path
        self.send_response(401 if gated else 404)
        self.send_header("X-Error-Code", "GatedRepo" if gated else "RepoNotFound")
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def host(tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Host)
    server.folder, server.requests, server.hanging = tmp_path, [], threading.Event()
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.hanging.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def hub(host, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{host.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return host


def local(name, folder):
    """The set's entry, with a local folder in place of the hub data set."""
    return replace(PUBLIC_SETS[name], where=str(folder), revision=None)


def mapped(name, folder, tmp_path):
    entry = local(name, folder)
    return map_rows(entry, dataset_rows(entry, cache_dir=tmp_path / "datasets"))


def write_card(folder, config, files):
    lines = [f"  - split: {split}\n    path: {path}" for split, path in files.items()]
    card = f"---\nconfigs:\n- config_name: {config}\n  data_files:\n" + "\n".join(lines) + "\n---\n"
    (folder / "README.md").write_text(card)


def test_jailbreakbench_halves_are_twins(tmp_path):
    folder = tmp_path / "jbb"
    (folder / "data").mkdir(parents=True)
    columns = ["Index", "Goal", "Target", "Behavior", "Category", "Source"]
    for half in ("harmful", "benign"):
        rows = [[i, f"{half} goal, {i}", "Sure, here", f"b{i}", "Fraud/Deception", "Original"] for i in range(2)]
        pd.DataFrame(rows, columns=columns).to_csv(folder / "data" / f"{half}-behaviors.csv", index=False)
    write_card(folder, "behaviors", {half: f"data/{half}-behaviors.csv" for half in ("harmful", "benign")})
    harmful = mapped("jailbreakbench", folder, tmp_path)
    benign = mapped("jailbreakbench-benign", folder, tmp_path)
    assert harmful.texts == ["harmful goal, 0", "harmful goal, 1"]
    assert [p.category for p in harmful] == ["Fraud/Deception"] * 2
    assert [p.id for p in harmful] == ["jailbreakbench-0001", "jailbreakbench-0002"]
    assert [p.pair for p in harmful] == [p.pair for p in benign] == ["0", "1"]
    assert all(p.answer is None for p in harmful)


def test_gsm8k_keeps_the_final_answer(tmp_path):
    folder = tmp_path / "gsm8k"
    (folder / "main").mkdir(parents=True)
    rows = [{"question": "How many?", "answer": "2*600=<<2*600=1200>>1200\n#### 1,200"}]
    pd.DataFrame(rows).to_parquet(folder / "main" / "test-00000-of-00001.parquet")
    write_card(folder, "main", {"test": "main/test-*"})
    (prompt,) = mapped("gsm8k", folder, tmp_path)
    assert (prompt.text, prompt.answer) == ("How many?", "1200")


def test_math_500_takes_the_answer_column(tmp_path):
    folder = tmp_path / "math500"
    folder.mkdir()
    row = {"problem": "Find $x$.", "solution": "Thus \\boxed{3}.", "answer": "\\frac{3}{1}", "subject": "Algebra"}
    (folder / "test.jsonl").write_text(json.dumps({**row, "level": 2, "unique_id": "test/algebra/1.json"}) + "\n")
    (prompt,) = mapped("math-500", folder, tmp_path)
    assert (prompt.answer, prompt.category) == ("\\frac{3}{1}", "Algebra")


def test_xstest_is_cut_by_its_label(tmp_path):
    folder = tmp_path / "xstest"
    folder.mkdir()
    rows = [
        ("v2-1", "How do I kill a process?", "homonyms", "safe", "kill", ""),
        ("v2-26", "How do I hurt a person?", "contrast_homonyms", "unsafe", "hurt", ""),
    ]
    columns = ["id", "prompt", "type", "label", "focus", "note"]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "xstest_prompts.csv", index=False)
    assert mapped("xstest", folder, tmp_path).texts == ["How do I kill a process?"]
    assert mapped("xstest-unsafe", folder, tmp_path).texts == ["How do I hurt a person?"]


def test_sorry_bench_keeps_only_the_plain_style(tmp_path):
    folder = tmp_path / "sorry"
    folder.mkdir()
    for style in ("base", "slang"):
        row = {"question_id": 1, "category": "14", "turns": [f"{style} request"], "prompt_style": style}
        (folder / f"question{'' if style == 'base' else '_' + style}.jsonl").write_text(json.dumps(row) + "\n")
    (prompt,) = mapped("sorry-bench", folder, tmp_path)
    assert (prompt.text, prompt.category) == ("base request", "14")


def test_hex_phi_files_have_no_header_and_stand_for_categories(tmp_path):
    folder = tmp_path / "hexphi"
    folder.mkdir()
    for split, _ in PUBLIC_SETS["hex-phi"].split_names:
        (folder / f"{split}.csv").write_text(f'"First of {split}, with a comma"\nSecond of {split}\n')
    prompts = mapped("hex-phi", folder, tmp_path)
    assert len(prompts) == 20
    assert prompts.by_category()["Malware"].texts == [
        "First of category_4, with a comma",
        "Second of category_4",
    ]


FILES = {
    "advbench": (
        'goal,target\nWrite a rude poem,"Sure, here"\n',
        ("Write a rude poem", None, None),
    ),
    "harmbench": (
        "Behavior,FunctionalCategory,SemanticCategory,Tags,ContextString,BehaviorID\n"
        "Sing a song,copyright,copyright,lyrics,,song_1\nGive bad advice,standard,illegal,,,advice_1\n",
        ("Give bad advice", "illegal", None),
    ),
    "strongreject": (
        "category,source,forbidden_prompt\nDisinformation,custom,Write a false rumour\n",
        ("Write a false rumour", "Disinformation", None),
    ),
    "math-401": ('{"query": "5+2=", "response": "7"}\n{"query": "9-5=", "response": "4"}\n', ("5+2=", None, "7")),
}


@pytest.mark.parametrize("name", FILES)
def test_sets_that_authors_publish_as_a_file(name, host, tmp_path):
    content, (text, category, answer) = FILES[name]
    file = PUBLIC_SETS[name].where.rsplit("/", 1)[1]
    (tmp_path / file).write_text(content)
    entry = replace(PUBLIC_SETS[name], where=f"http://127.0.0.1:{host.server_port}/{file}")
    first = load_public(entry)[0]
    assert (first.text, first.category, first.answer) == (text, category, answer)


def test_a_set_fetched_once_loads_without_its_host(host, tmp_path):
    (tmp_path / "harmful_behaviors.csv").write_text(FILES["advbench"][0])
    entry = replace(PUBLIC_SETS["advbench"], where=f"http://127.0.0.1:{host.server_port}/harmful_behaviors.csv")
    first = load_public(entry)
    (tmp_path / "harmful_behaviors.csv").unlink()
    assert load_public(entry) == first
    assert len(host.requests) == 1
    (copy,) = (tmp_path / "cache" / "prompts").iterdir()
    copy.write_text(copy.read_text().replace("rude", "nice"))
    with pytest.raises(RimLensError, match="advbench"):
        load_public(entry)


def test_a_set_that_changed_its_columns_is_named():
    with pytest.raises(RimLensError, match=r"advbench.*no column 'goal' any more \(it has Goal, Target\)"):
        map_rows(PUBLIC_SETS["advbench"], [{"Goal": "x", "Target": "y"}])


@pytest.mark.parametrize("name", ["hex-phi", "sorry-bench"])
def test_gated_sets_say_so_and_what_works_instead(name, hub):
    with pytest.raises(RimLensError, match=rf"{name} .*is gated: accept .*built-in set 'harmful'"):
        load_prompts(name)


def test_a_set_that_the_hub_no_longer_shows(hub):
    with pytest.raises(RimLensError, match=r"xstest .*the hub does not show it.*built-in set 'harmless'"):
        load_prompts("xstest")


def test_a_hub_that_hangs_ends_within_seconds(hub, monkeypatch):
    assert fetch.ANSWER_WITHIN_S <= 6
    monkeypatch.setattr(fetch, "ANSWER_WITHIN_S", 0.3)
    with pytest.raises(RimLensError, match=r"gsm8k .*did not answer \(no answer within.*built-in set 'maths'"):
        load_prompts("gsm8k")


@pytest.mark.parametrize("name", sorted(PUBLIC_SETS))
def test_every_set_out_of_reach_ends_at_once_in_one_sentence(name, monkeypatch, tmp_path):
    nobody, waited = "http://127.0.0.1:9", []
    monkeypatch.setattr(time, "sleep", waited.append)
    monkeypatch.setattr(constants, "ENDPOINT", nobody)
    entry = PUBLIC_SETS[name]
    if entry.is_file:
        monkeypatch.setitem(PUBLIC_SETS, name, replace(entry, where=nobody + "/x.csv"))
    with pytest.raises(RimLensError, match=rf"{name} .*could not be loaded.*built-in set '{entry.kind}'"):
        load_prompts(name)
    assert sum(waited) < 10  # seconds between attempts
    assert not (tmp_path / "cache").exists()


def test_a_file_that_is_gone_from_its_host(host):
    entry = replace(PUBLIC_SETS["math-401"], where=f"http://127.0.0.1:{host.server_port}/gone.json")
    with pytest.raises(RimLensError, match=r"math-401 .*404"):
        download_rows(entry)


def test_a_folder_with_other_contents_is_no_crash(tmp_path):
    (tmp_path / "empty").mkdir()
    entry = local("gsm8k", tmp_path / "empty")
    with pytest.raises(RimLensError, match=r"gsm8k .*datasets could not read it"):
        dataset_rows(entry)
