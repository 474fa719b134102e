"""Prompt files of the user: every kind, every way to be broken, and fuzzed contents."""

import csv
import json
import warnings

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rim_lens.data import load_prompts
from rim_lens.data.schemas import final_answer
from rim_lens.errors import RimLensError


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


ROWS = [{"Goal": "Bake a cake, please", "Category": "food"}, {"Goal": "Sing “la”\nloud", "Category": "music"}]


@pytest.mark.parametrize("kind", ["jsonl", "json", "json-lines", "csv", "tsv", "parquet"])
def test_local_files_of_every_kind_give_the_same_prompts(tmp_path, kind):
    table = pd.DataFrame(ROWS)
    path = tmp_path / f"own.{kind.removesuffix('-lines')}"
    if kind in ("jsonl", "json-lines"):
        write(path, ROWS)
    elif kind == "json":
        path.write_text(json.dumps(ROWS, indent=1))
    elif kind == "parquet":
        table.to_parquet(path)
    else:
        table.to_csv(path, index=False, sep="\t" if kind == "tsv" else ",", encoding="utf-8-sig")
    prompts = load_prompts(str(path))
    assert prompts.texts == [row["Goal"] for row in ROWS]
    assert [p.category for p in prompts] == ["food", "music"]
    assert [p.id for p in prompts] == ["own-0001", "own-0002"]
    assert (prompts.name, prompts.source, prompts.licence) == ("own", str(path), None)


@pytest.mark.parametrize(
    "content", ['["Say hi", "Say ho"]', '{"data": [{"text": "Say hi"}, {"text": "Say ho"}], "version": 2}']
)
def test_json_lists_of_texts_and_lists_in_an_object(tmp_path, content):
    (tmp_path / "own.json").write_text(content)
    assert load_prompts(tmp_path / "own.json").texts == ["Say hi", "Say ho"]


def test_a_named_column_wins_over_the_usual_ones(tmp_path):
    path = write(tmp_path / "own.jsonl", [{"prompt": "no", "Frage": "yes", "final_answer": 4, "id": 7}])
    (prompt,) = load_prompts(path, column="Frage")
    assert (prompt.text, prompt.answer, prompt.id) == ("yes", "4", "7")


def test_a_path_wins_over_a_built_in_name_when_written_as_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "harmful.jsonl", [{"prompt": "mine"}])
    assert load_prompts("harmful.jsonl").texts == ["mine"]
    assert len(load_prompts("harmful")) == 96


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        ("48/2 = 24\n48+24 = 72\n#### 72", "72"),
        ("#### 1,234,567", "1234567"),
        ("so it is\n#### -3.5 ", "-3.5"),
        (r"thus \boxed{\frac{1}{2}} and done", r"\frac{1}{2}"),
        (r"first \boxed{1}, then \boxed{(2, 3)}", "(2, 3)"),
        (r"never closed \boxed{1", r"never closed \boxed{1"),
        ("  14 ", "14"),
    ],
)
def test_final_answers_of_worked_solutions(solution, answer):
    assert final_answer(solution) == answer


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.jsonl", None, "There is no prompt file"),
        ("own.txt", b"Say hi", "must end in"),
        ("own.jsonl", b" \n\n", "is empty"),
        ("own.csv", b"prompt\n", "holds no prompts"),
        ("own.json", b"[]", "holds no prompts"),
        ("own.jsonl", b'{"foo": "x", "bar": "y"}', "'foo', 'bar'.*column="),
        ("own.jsonl", b'{"prompt": "x"}\n{"prompt": "  "}', "row 2 .*is blank"),
        ("own.csv", b"prompt,category\nhi,a\n,b\n", "row 2 .*is blank"),
        ("own.jsonl", b'{"prompt": 3}', "row 1 .*is int"),
        ("own.jsonl", b'{"turns": ["a", "b"]}', "row 1 .*is list"),
        ("own.jsonl", '{"prompt": "ok"}\n{"prompt": "ä"}'.encode("latin-1"), "not UTF-8 at line 2"),
        ("own.jsonl", b'{"prompt": "ok"}\n{"prompt": "x"', "malformed JSON at line 2"),
        ("own.json", b'[\n{"prompt": "x"},\n{"prompt" "y"}]', "malformed JSON at line 3"),
        ("own.json", b'{"a": ["x"], "b": ["y"]}', "'a', 'b'"),
        ("own.json", b"3", "not one int"),
        ("own.jsonl", b"[1]", "line 1 is list"),
        ("own.csv", b"prompt,category\nhi, there,a\n", "line 2 has 3 fields, the header 2"),
        ("own.csv", b'prompt\n"open', "malformed CSV"),
        ("own.parquet", b"PAR1 no", "not a readable Parquet file"),
        ("own.jsonl", b'{"prompt": "a", "id": 1}\n{"prompt": "b", "id": 1}', "'1' stands in rows 1 and 2"),
        ("own.jsonl", b'{"prompt": "\\ud800"}', "surrogate"),
        ("own.jsonl", b"[" * 100_000, "cannot be read as JSON|malformed"),
    ],
)
def test_broken_files_end_in_one_sentence(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(RimLensError, match=message) as raised:
        load_prompts(tmp_path / name)
    assert len(str(raised.value).replace(str(tmp_path), "")) < 400


def test_folders_and_absent_columns_are_named(tmp_path):
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(RimLensError, match="is a folder"):
        load_prompts(tmp_path / "folder.csv")
    path = write(tmp_path / "own.jsonl", [{"prompt": "x"}])
    with pytest.raises(RimLensError, match="no column 'Frage'; it has 'prompt'"):
        load_prompts(path, column="Frage")
    for odd in ("", "\0", "a" * 5000):
        with pytest.raises(RimLensError):
            load_prompts(odd)


def test_repeated_prompts_are_kept_and_reported(tmp_path):
    path = write(tmp_path / "own.jsonl", [{"prompt": "a"}, {"prompt": "b"}, {"prompt": "a"}])
    with pytest.warns(UserWarning, match="1 prompts repeat"):
        assert load_prompts(path).texts == ["a", "b", "a"]


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
rows = st.lists(st.dictionaries(st.sampled_from(["prompt", "Goal", "answer", "id", "pair", "x"]), values), max_size=4)
FUZZ = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None
)


def loads_or_says_why(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            prompts = load_prompts(path)
        except RimLensError:
            return
    assert len(prompts) > 0
    assert all(text.strip() for text in prompts.texts)
    assert len({prompt.id for prompt in prompts}) == len(prompts)


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "tsv", "parquet"])
@FUZZ
@given(content=st.binary(max_size=60) | st.text(alphabet='{}[]",:\\n\nprompt\0é,1', max_size=60).map(str.encode))
def test_arbitrary_bytes_load_or_say_why(tmp_path, suffix, content):
    path = tmp_path / f"fuzz.{suffix}"
    path.write_bytes(content)
    loads_or_says_why(path)


@FUZZ
@given(rows=rows, as_list=st.booleans())
def test_arbitrary_rows_load_or_say_why(tmp_path, rows, as_list):
    path = tmp_path / ("fuzz.json" if as_list else "fuzz.jsonl")
    path.write_text(json.dumps(rows) if as_list else "\n".join(map(json.dumps, rows)))
    loads_or_says_why(path)


@FUZZ
@given(position=st.integers(0, 10_000), byte=st.integers(0, 255))
def test_damaged_parquet_loads_or_says_why(tmp_path, position, byte):
    whole = tmp_path / "whole.parquet"
    if not whole.exists():
        pd.DataFrame(ROWS * 3).assign(id=[*"abcdef"]).to_parquet(whole)
    content = bytearray(whole.read_bytes())
    content[position % len(content)] = byte
    (tmp_path / "fuzz.parquet").write_bytes(content)
    loads_or_says_why(tmp_path / "fuzz.parquet")


@FUZZ
@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1, max_size=5))
def test_texts_survive_json_lines_and_csv_unchanged(tmp_path, texts):
    texts = [text for text in dict.fromkeys(texts) if text.strip()] or ["x"]
    by_json = write(tmp_path / "fuzz.jsonl", [{"prompt": text} for text in texts])
    assert load_prompts(by_json).texts == texts
    if not any("\0" in text for text in texts):
        by_csv = tmp_path / "fuzz.csv"
        pd.DataFrame({"prompt": texts}).to_csv(by_csv, index=False, quoting=csv.QUOTE_ALL)
        assert load_prompts(by_csv).texts == texts


def test_a_prompt_longer_than_csvs_own_limit_is_read_whole(tmp_path):
    limit, long = csv.field_size_limit(), "Tell me about bread. " * 7000
    with (tmp_path / "long.csv").open("w", newline="") as out:
        csv.writer(out).writerows([["prompt", "category"], [long, "a"], ["Hi", "b"]])
    assert load_prompts(tmp_path / "long.csv").texts == [long, "Hi"]
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize(
    ("rows", "texts"),
    [
        (  # Alpaca
            [
                {"instruction": "Summarize this text.", "input": "Bread rises.", "output": "Bread."},
                {"instruction": "Name a fruit.", "input": "", "output": "Pear."},
            ],
            ["Summarize this text.\n\nBread rises.", "Name a fruit."],
        ),
        (  # HarmBench
            [
                {"Behavior": "Answer about the text", "Tags": "context", "ContextString": "It is about bread."},
                {"Behavior": "Name a fruit", "Tags": "", "ContextString": ""},
            ],
            ["It is about bread.\n\nAnswer about the text", "Name a fruit"],
        ),
        ([{"goal": "a", "target": "Sure, here is"}], ["a"]),  # AdvBench
        ([{"Index": 1, "Goal": "a", "Target": "Sure", "Behavior": "b", "Category": "c"}], ["a"]),  # JailbreakBench
        ([{"category": "c", "source": "s", "forbidden_prompt": "a"}], ["a"]),  # StrongREJECT
        ([{"id": 1, "prompt": "a", "type": "homonyms", "label": "safe", "focus": "f", "note": ""}], ["a"]),  # XSTest
        ([{"question_id": 1, "category": 3, "turns": ["a"], "prompt_style": "base"}], ["a"]),  # SORRY-Bench
        ([{"prompt": "a", "response": "b", "category": {"x": True}, "is_safe": False}], ["a"]),  # BeaverTails
        (
            [{"id": 0, "risk_area": "r", "types_of_harm": "t", "specific_harm": "s", "question": "a"}],
            ["a"],
        ),  # Do-Not-Answer
        ([{"Category": "c", "Subcategory": "s", "Question": "a"}], ["a"]),  # CategoricalHarmfulQA
        ([{"prompt": "a", "category": "deception"}], ["a"]),  # OR-Bench
        ([{"qid": 1, "question": "a", "source": "s", "1-category": "O1"}], ["a"]),  # SaladBench
    ],
)
def test_files_of_published_sets_load_whole(tmp_path, rows, texts):
    (tmp_path / "set.json").write_text(json.dumps(rows))
    assert load_prompts(tmp_path / "set.json").texts == texts
    pd.DataFrame(rows).to_csv(tmp_path / "set.csv", index=False)
    if "turns" not in rows[0]:
        assert load_prompts(tmp_path / "set.csv").texts == texts


@pytest.mark.parametrize(
    ("row", "answer"),
    [
        ({"question": "q", "answer": "2 + 3 = <<2+3=5>>5\n#### 1,005"}, "1005"),  # GSM8K
        (
            {"problem": "q", "level": "Level 1", "type": "Algebra", "solution": r"So \boxed{\frac{1}{2}}."},
            r"\frac{1}{2}",
        ),
        ({"ID": "2024-I-1", "Problem": "q", "Solution": "So 73.", "Answer": "073"}, "073"),  # AIME
        ({"id": 0, "problem": "q", "answer": 27.0}, "27.0"),  # AMC
        ({"query": "1 + 2 =", "response": "3"}, "3"),  # MATH-401
        ({"question": "q", "solution": ["s"], "final_answer": ["$2$", "$-3$"]}, "$2$, $-3$"),  # OlympiadBench
    ],
)
def test_answers_of_published_maths_sets(tmp_path, row, answer):
    (tmp_path / "set.jsonl").write_text(json.dumps(row) + "\n")
    (prompt,) = load_prompts(tmp_path / "set.jsonl")
    assert prompt.answer == answer


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("two.csv", "prompt,prompt\nHi,Yo\n", "two columns 'prompt'"),
        ("two.jsonl", '{"prompt": "Hi", "prompt": "Yo"}\n', "the field 'prompt' twice"),
        ("wide.csv", "prompt\nHi\n".encode("utf-16"), "is UTF-16"),
        ("wide.jsonl", '{"prompt": "Hi"}\n'.encode("utf-32"), "is UTF-16"),
        ("sheet.csv", "prompt;category\nHi, you;x\n", "quote texts with commas"),
    ],
)
def test_files_that_could_be_read_two_ways_are_one_sentence(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(RimLensError, match=message):
        load_prompts(tmp_path / name)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".json"])
def test_every_line_end_gives_the_same_prompts(tmp_path, encoding, end, suffix):
    texts = ["Was heißt „Ärger“, auf Englisch?", "两行文字", "a; b"]
    if suffix == ".json":
        lines = json.dumps([{"prompt": text} for text in texts], ensure_ascii=False, indent=1).split("\n")
    elif suffix == ".jsonl":
        lines = [json.dumps({"prompt": text}, ensure_ascii=False) for text in texts]
    else:
        mark = "\t" if suffix == ".tsv" else ","
        lines = [f"prompt{mark}category", *('"' + text + f'"{mark}x' for text in texts)]
    path = tmp_path / f"set{suffix}"
    path.write_bytes((end.join(lines) + end).encode(encoding))
    assert load_prompts(path).texts == texts
