import ast
import json
import operator
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from rim_lens import data
from rim_lens.data import list_prompt_sets, load_prompts, load_wordings
from rim_lens.data.schemas import PromptSet
from rim_lens.errors import RimLensError

OPERATIONS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


@pytest.fixture(scope="module")
def harmful():
    return load_prompts("harmful")


@pytest.fixture(scope="module")
def harmless():
    return load_prompts("harmless")


def value_of(expression):
    """The value of an expression of numbers and + - * /, without eval."""

    def value(node):
        if isinstance(node, ast.BinOp):
            return OPERATIONS[type(node.op)](value(node.left), value(node.right))
        assert isinstance(node, ast.Constant)
        return node.value

    return value(ast.parse(expression, mode="eval").body)


def test_harmful_set_covers_eight_categories_evenly(harmful):
    assert len(harmful) >= 96
    assert len(set(harmful.texts)) == len(harmful)
    cut = harmful.by_category()
    assert len(cut) >= 8
    assert all(len(part) >= 12 for part in cut.values())
    assert sum(map(len, cut.values())) == len(harmful)


def test_built_in_requests_leave_out_what_the_project_leaves_out(harmful):
    words = r"\b(sex\w*|child\w*|minors?|teen\w*|pupils?|bombs?|explosives?|nuclear|nerve|pathogens?)\b"
    assert not [text for text in harmful.texts if re.search(words, text.lower())]


def test_every_harmful_request_has_a_twin_of_the_same_form(harmful, harmless):
    twins = {prompt.pair: prompt for prompt in harmless}
    assert set(twins) == {prompt.pair for prompt in harmful}
    assert not set(harmful.texts) & set(harmless.texts)
    for prompt in harmful:
        twin = twins[prompt.pair]
        assert twin.text.split()[0] == prompt.text.split()[0]
        assert twin.category == prompt.category
        assert 0.7 <= len(twin.text.split()) / len(prompt.text.split()) <= 1.4


def test_maths_answers_equal_their_arithmetic():
    maths = load_prompts("maths")
    assert len(maths) == 64
    lines = (Path(data.__file__).parent / "builtin" / "maths.jsonl").read_text().splitlines()
    checks = {row["id"]: row["check"] for row in map(json.loads, lines)}
    for prompt in maths:
        assert float(prompt.answer) == value_of(checks[prompt.id])
        assert prompt.answer.isdigit()


def test_wordings_have_equal_length_and_own_ids():
    kinds = {kind: load_wordings(kind) for kind in ("effort_minimizing", "careful", "neutral", "irrelevant")}
    assert all(len(wordings) >= 8 for wordings in kinds.values())
    ids = [wording.id for wordings in kinds.values() for wording in wordings]
    assert len(set(ids)) == len(ids)
    means = [sum(len(w.text.split()) for w in wordings) / len(wordings) for wordings in kinds.values()]
    assert max(means) / min(means) < 1.15
    assert all(wording.pattern for wording in kinds["effort_minimizing"])
    assert kinds["careful"][0].kind == "careful"


def test_unknown_kind_of_wording_lists_the_kinds():
    with pytest.raises(RimLensError, match="effort_minimizing"):
        load_wordings("lazy")


def test_a_prompt_set_is_a_sequence_that_keeps_its_type(harmful):
    part = harmful[10:20]
    assert isinstance(part, PromptSet)
    assert part.texts == harmful.texts[10:20]
    assert part.source == harmful.source
    assert part[0] == harmful[10]
    assert list(part) == list(part.prompts)
    assert harmful[-1] in harmful
    assert len(repr(harmful)) < 100
    assert part.sha256 != harmful.sha256
    table = part.to_dataframe()
    assert list(table.columns) == ["id", "text", "category", "answer", "pair", "rationale"]
    assert list(table["text"]) == part.texts


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_hash_is_over_content_and_order(tmp_path, harmful):
    same = write(tmp_path / "one.jsonl", [{"prompt": "a", "id": "x"}, {"prompt": "b", "id": "y"}])
    swapped = write(tmp_path / "two.jsonl", [{"prompt": "b", "id": "y"}, {"prompt": "a", "id": "x"}])
    assert load_prompts(same).sha256 == load_prompts(same).sha256
    assert load_prompts(same).sha256 != load_prompts(swapped).sha256
    assert load_prompts("harmful").sha256 == harmful.sha256


def test_samples_are_seeded_ordered_and_keep_twins_together(harmful):
    once, again, other = (load_prompts("harmful", 20, seed) for seed in (3, 3, 4))
    assert once == again != other
    assert len(set(once.texts)) == 20
    order = {text: i for i, text in enumerate(harmful.texts)}
    positions = [order[text] for text in once.texts]
    assert positions == sorted(positions)
    assert [p.pair for p in once] == [p.pair for p in load_prompts("harmless", 20, 3)]
    assert load_prompts("harmful", len(harmful)) == harmful


@pytest.mark.parametrize("n", [0, -1, 97])
def test_a_sample_outside_the_set_is_an_error_with_its_size(n):
    with pytest.raises(RimLensError, match="has 96"):
        load_prompts("harmful", n)


def test_the_list_names_every_set_once_and_its_sizes_are_right(harmful):
    table = pd.DataFrame(list_prompt_sets())
    assert table["name"].is_unique
    assert set(table["kind"]) == {"harmful", "harmless", "maths"}
    assert set(table.loc[table["gated"], "name"]) == {"sorry-bench", "hex-phi"}
    assert table.set_index("name")["size"]["harmful"] == len(harmful)
    assert {"advbench", "harmbench", "jailbreakbench", "strongreject", "xstest", "gsm8k"} <= set(table["name"])
    assert {"math-500", "math-401"} <= set(table["name"])


def test_unknown_names_list_close_matches():
    with pytest.raises(RimLensError, match="did you mean harmbench"):
        load_prompts("HarmBench2")
    with pytest.raises(RimLensError, match="the sets are harmful, harmless, maths"):
        load_prompts("zzz")


def test_a_column_belongs_to_local_files_only():
    with pytest.raises(RimLensError, match="for local files"):
        load_prompts("harmful", column="text")


def test_the_loader_is_imported_without_heavy_libraries():
    code = "import sys, rim_lens.data.prompts as p; p.load_prompts('maths'); print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not {"pandas", "datasets", "pyarrow", "torch", "huggingface_hub"} & set(modules.split())
