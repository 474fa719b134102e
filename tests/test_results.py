"""Results on disk and on screen: round trips, damage, full disks, manifests."""

import errno
import json
import os
import resource
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rim_lens import results_codec
from rim_lens.errors import RimLensError
from rim_lens.results import Manifest, Result, load_result
from rim_lens.stats import Interval, PairedDifference, Rate, paired_difference


@dataclass(frozen=True, eq=False)
class HeadEffects(Result):
    """Effect of every head on refusal."""

    table: pd.DataFrame
    effect: np.ndarray
    refused: Rate
    notes: object = None


@dataclass(frozen=True, eq=False)
class Plain(Result):
    value: object


class Prompts(list):
    name, sha256 = "harmful", "ab" * 32


class Model:
    name, fingerprint, dtype, device = "tiny", "cd" * 32, torch.float32, torch.device("cpu")


def manifest(**extra):
    return Manifest.collect(Model(), [Prompts(["a", "b"])], seed=7, **extra)


def head_effects(**changes):
    table = pd.DataFrame({"head": ["L0H1", "<b>L2H3</b>"], "effect": [0.5, np.nan], "n": [3, 4]})
    fields = {"table": table, "effect": np.arange(6.0).reshape(2, 3), "refused": Rate(43, 48), "manifest": manifest()}
    return HeadEffects(**(fields | changes))


def same(a, b):
    """Equality of saved values: kinds, shapes and NaN included."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tolist().__repr__() == b.tolist().__repr__()
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    return repr(a) == repr(b)


arrays = st.one_of(
    hnp.arrays(
        st.sampled_from(["bool", "int8", "uint8", "int16", "int32", "int64", "float16", "float32", "float64"]),
        hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3),
    ),
    st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=4), max_size=3).map(
        lambda words: np.array(words, dtype=object)
    ),
)
keys = st.one_of(
    st.text(max_size=3), st.sampled_from(["$float", "$tuple", "a.b"]), st.integers(), st.tuples(st.integers())
)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), arrays, st.just(Interval(0.1, 0.2))),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.tuples(inner, inner), st.dictionaries(keys, inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values)
@pytest.mark.slow
def test_any_value_comes_back_as_it_was(tmp_path_factory, value):
    folder = tmp_path_factory.mktemp("round") / "trip"
    Plain(value, manifest=manifest()).save(folder)
    assert same(load_result(folder).value, value)


def test_a_result_comes_back_whole(tmp_path):
    paired = paired_difference(np.array([1, 1, 0]), np.array([0, 0, 1]))
    result = head_effects(notes={"paired": paired, (1, 2): torch.ones(2, dtype=torch.bfloat16), "nan": float("nan")})
    result.save(tmp_path / "heads")
    loaded = load_result(tmp_path / "heads")
    assert type(loaded) is HeadEffects
    pd.testing.assert_frame_equal(loaded.table, result.table)
    np.testing.assert_array_equal(loaded.effect, result.effect)
    assert (loaded.refused, loaded.manifest) == (result.refused, result.manifest)
    assert isinstance(loaded.notes["paired"], PairedDifference)
    assert same(loaded.notes, result.notes)
    assert sorted(path.name for path in (tmp_path / "heads").iterdir()) == [
        "result.json", "table.parquet", "tensors.safetensors",
    ]  # fmt: skip
    assert list(tmp_path.iterdir()) == [tmp_path / "heads"]


def test_frames_keep_index_lists_and_categories(tmp_path):
    table = pd.DataFrame(
        {"tokens": [[1, 2], []], "kind": pd.Categorical(["a", "b"]), "text": ["é\n", None]},
        index=pd.Index([5, 9], name="prompt"),
    )
    head_effects(table=table).save(tmp_path / "heads")
    loaded = load_result(tmp_path / "heads").table
    pd.testing.assert_frame_equal(loaded.drop(columns="tokens"), table.drop(columns="tokens"))
    assert [list(tokens) for tokens in loaded["tokens"]] == [[1, 2], []]


def test_arrays_of_any_layout_are_saved_as_they_read(tmp_path):
    base = np.arange(12.0).reshape(3, 4)
    layouts = [base.T, base[::-2, ::-1], base.astype(">f4"), np.float64(3.5) * np.ones(()), np.array(["a", "bc"])]
    shared = torch.arange(4.0)
    Plain([*layouts, shared, shared[1:]], manifest=manifest()).save(tmp_path / "x")
    loaded = load_result(tmp_path / "x").value
    for before, after in zip([*layouts, shared, shared[1:]], loaded, strict=True):
        np.testing.assert_array_equal(np.asarray(after), np.asarray(before))


def test_names_that_differ_only_in_case_or_dots_stay_apart(tmp_path):
    frames = {name: pd.DataFrame({"x": [i]}) for i, name in enumerate(["Off", "off", "o/f", "../off", "a.b"])}
    nested = {"a": {"b": pd.DataFrame({"x": [9]})}, "t": {"a.b": np.zeros(1), "a": {"b": np.ones(1)}}}
    Plain({**frames, **nested}, manifest=manifest()).save(tmp_path / "x")
    loaded = load_result(tmp_path / "x").value
    assert [int(loaded[name]["x"][0]) for name in frames] == [0, 1, 2, 3, 4]
    assert int(loaded["a"]["b"]["x"][0]) == 9
    assert (loaded["t"]["a.b"][0], loaded["t"]["a"]["b"][0]) == (0, 1)
    assert list(tmp_path.iterdir()) == [tmp_path / "x"]


def test_json_is_standard_and_readable(tmp_path):
    Plain([float("nan"), float("-inf"), "→"], manifest=manifest()).save(tmp_path / "x")
    text = (tmp_path / "x/result.json").read_text(encoding="utf-8")

    def refuse(constant):
        raise AssertionError(constant)

    assert json.loads(text, parse_constant=refuse)["manifest"]["model"]["name"] == "tiny"
    assert "→" in text


@pytest.mark.parametrize("name", ["result.json", "table.parquet", "tensors.safetensors"])
def test_every_flipped_byte_is_noticed(tmp_path, name):
    head_effects().save(tmp_path / "heads")
    path = tmp_path / "heads" / name
    content = path.read_bytes()
    for position in np.linspace(0, len(content) - 2, 25).astype(int):
        damaged = bytearray(content)
        damaged[position] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(RimLensError, match=name):
            load_result(tmp_path / "heads")


@pytest.mark.parametrize("name", ["result.json", "table.parquet", "tensors.safetensors"])
def test_a_missing_or_truncated_file_is_named(tmp_path, name):
    head_effects().save(tmp_path / "heads")
    path = tmp_path / "heads" / name
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(RimLensError, match=name):
        load_result(tmp_path / "heads")
    path.unlink()
    with pytest.raises(RimLensError, match=f"{name} is missing"):
        load_result(tmp_path / "heads")


def test_load_checks_the_type(tmp_path):
    head_effects().save(tmp_path / "heads")
    assert type(HeadEffects.load(tmp_path / "heads")) is HeadEffects
    with pytest.raises(RimLensError, match="holds a HeadEffects, not a Plain"):
        Plain.load(tmp_path / "heads")


def test_an_unknown_type_is_said(tmp_path, monkeypatch):
    @dataclass(frozen=True, eq=False)
    class Local(Result):
        value: int

    Local(1, manifest=manifest()).save(tmp_path / "x")
    assert load_result(tmp_path / "x").value == 1
    monkeypatch.delitem(results_codec.registered, results_codec.type_name(Local))
    with pytest.raises(RimLensError, match=r"unknown type .*Local"):
        load_result(tmp_path / "x")


@pytest.mark.parametrize(
    "name", ["os:system", "subprocess:Popen", "rim_lens.nowhere:Thing", "rim_lens.results:load_result", ""]
)
def test_only_dataclasses_are_built(name):
    with pytest.raises(RimLensError, match="unknown type"):
        results_codec.resolve(name)


def test_fields_of_another_version_are_said():
    with pytest.raises(RimLensError, match="another version"):
        results_codec.build(Rate, {"k": 1, "n": 2, "colour": "red"})


@pytest.mark.parametrize(
    "value",
    [
        object(),
        {1, 2},
        np.array([object()]),
        np.array([1j]),
        pd.DataFrame({"a": [object()]}),
        pd.DataFrame({1: [2]}),
    ],
)
def test_what_cannot_be_saved_is_named_and_leaves_nothing(tmp_path, value):
    with pytest.raises(RimLensError, match="value"):
        Plain(value, manifest=manifest()).save(tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_result_is_kept_unless_told(tmp_path):
    head_effects(notes="first").save(tmp_path / "heads")
    with pytest.raises(RimLensError, match="already holds another result"):
        head_effects(notes="second").save(tmp_path / "heads")
    assert load_result(tmp_path / "heads").notes == "first"
    Plain("second", manifest=manifest()).save(tmp_path / "heads", overwrite=True)
    assert load_result(tmp_path / "heads").value == "second"
    assert [path.name for path in (tmp_path / "heads").iterdir()] == ["result.json"]
    assert list(tmp_path.iterdir()) == [tmp_path / "heads"]


def test_a_folder_of_other_files_is_never_replaced(tmp_path):
    head_effects().save(tmp_path / "heads")
    (tmp_path / "heads/thesis.txt").write_text("keep me")
    (tmp_path / "file").write_text("keep me")
    with pytest.raises(RimLensError, match=r"thesis\.txt"):
        head_effects().save(tmp_path / "heads", overwrite=True)
    with pytest.raises(RimLensError, match="is a file"):
        head_effects().save(tmp_path / "file", overwrite=True)
    assert (tmp_path / "heads/thesis.txt").read_text() == "keep me"
    (tmp_path / "empty").mkdir()
    head_effects().save(tmp_path / "empty")
    assert head_effects().save(tmp_path / "deep/er") == tmp_path / "deep/er"


def fail_at(monkeypatch, module, name, call, error):
    """Lets the ``call``-th use of ``module.name`` raise ``error``."""
    real, calls = getattr(module, name), []

    def sometimes(*args, **kwargs):
        calls.append(args)
        if len(calls) == call:
            raise error
        return real(*args, **kwargs)

    monkeypatch.setattr(module, name, sometimes)


full = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(("name", "call"), [("fsync", 1), ("fsync", 3), ("replace", 1), ("replace", 2)])
@pytest.mark.parametrize(("error", "seen"), [(full, RimLensError), (KeyboardInterrupt(), KeyboardInterrupt)])
def test_a_failed_save_changes_nothing(tmp_path, monkeypatch, name, call, error, seen):
    head_effects(notes="first").save(tmp_path / "heads")
    fail_at(monkeypatch, os, name, call, error)
    with pytest.raises(seen, match="No space left" if seen is RimLensError else None):
        head_effects(notes="second").save(tmp_path / "heads", overwrite=True)
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == [tmp_path / "heads"]
    assert load_result(tmp_path / "heads").notes == "first"


def test_a_file_that_cannot_be_written_to_its_end_leaves_nothing(tmp_path):
    """The operating system itself stops the write half way, as a full disk or a quota does."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(RimLensError, match="could not be saved"):
            head_effects(effect=np.zeros(10_000)).save(tmp_path / "heads")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RimLensError, match="could not be saved"):
        head_effects().save(tmp_path / "file/heads")


def test_manifest_says_how_it_came_about():
    other = Prompts(["c"])
    other.sha256 = "ef" * 32
    collected = Manifest.collect(Model(), [Prompts(["a", "b"]), other, other], seed=3, thinking="off")
    assert collected.model == {"name": "tiny", "fingerprint": "cd" * 32, "dtype": "float32", "device": "cpu"}
    assert collected.data == {"harmful": {"sha256": "ab" * 32, "n": 2}, "harmful (2)": {"sha256": "ef" * 32, "n": 1}}
    assert set(collected.versions) == {"python", "rim_lens", "torch", "transformers", "transformer_lens", "numpy"}
    assert collected.versions["numpy"] == np.__version__
    assert collected.extra == {"thinking": "off"}
    assert pd.Timestamp(collected.created).tzinfo is not None
    assert collected.with_seconds(judge=1.5).with_seconds(capture=2.0).seconds == {"judge": 1.5, "capture": 2.0}
    assert Manifest.collect(data=Prompts(["a"])).data["harmful"]["n"] == 1


def test_notebook_view_is_escaped_and_says_n():
    html = head_effects()._repr_html_()
    assert "<h4>Head effects</h4>" in html
    assert "&lt;b&gt;L2H3&lt;/b&gt;" in html
    assert "<b>" not in html
    assert "Effect of every head on refusal." in html
    assert "harmful n = 2" in html
    long = pd.DataFrame({"x": range(40)})
    assert "10 of 40 rows" in head_effects(table=long)._repr_html_()
    assert "<table" not in Plain(1, manifest=manifest())._repr_html_()


def test_it_prints_as_a_sentence_and_a_short_table():
    long = pd.DataFrame({"head": [f"L0H{i}" for i in range(40)], "effect": np.linspace(0, 1, 40), "text": "word " * 40})
    long = long.assign(**{f"column_{i}": "x" * 30 for i in range(4)})
    printed = str(head_effects(table=long))
    first, second, header, *rows = printed.splitlines()
    assert first == "Head effects: tiny, harmful n = 2"
    assert second == head_effects().caption()
    assert header.split()[:3] == ["head", "effect", "text"]
    assert len(rows) == 11
    assert max(map(len, printed.splitlines()[:-1])) <= 102
    assert rows[-1] == "(10 of 40 rows; more columns: column_1, column_2, column_3)"
    assert "<" not in printed


def test_latex_escapes_what_it_would_carry_out():
    table = pd.DataFrame({"head": ["L0H1", "a & b"], "q_value": [0.123456, np.nan], "odd": ["50 %", r"\input{x}"]})
    written = head_effects(table=table).to_latex()
    assert written.count(r"\toprule") == written.count(r"\bottomrule") == 1
    assert r"q\_value" in written
    assert "0.123" in written
    assert r"a \& b" in written
    assert r"\input{x}" not in written
    assert "q" not in head_effects(table=table).to_latex(columns=["head"]).split("toprule")[1]
    with pytest.raises(RimLensError, match="no column 'nothing'"):
        head_effects(table=table).to_latex(columns=["nothing"])


def test_repr_is_one_short_line():
    assert repr(head_effects()) == "<HeadEffects: 2 rows, tiny, harmful n = 2>"
    assert repr(Plain(np.zeros(9), manifest=manifest())) == "<Plain: tiny, harmful n = 2>"


def test_to_dataframe_is_the_table_or_says_there_is_none():
    result = head_effects()
    assert result.to_dataframe() is result.table
    with pytest.raises(RimLensError, match="no table"):
        Plain(1, manifest=manifest()).to_dataframe()


def test_plot_draws_the_figure_that_the_class_names(monkeypatch):
    import sys
    import types

    figures = types.ModuleType("rim_lens.plots.made_here")
    figures.map_of = lambda result, **options: (result, options)
    monkeypatch.setitem(sys.modules, "rim_lens.plots.made_here", figures)
    monkeypatch.setattr(type(head_effects()), "figure", "made_here:map_of")
    result = head_effects()
    assert result.plot(height=300) == (result, {"height": 300})
    with pytest.raises(RimLensError, match="no figure of a Plain"):
        Plain(1, manifest=manifest()).plot()
