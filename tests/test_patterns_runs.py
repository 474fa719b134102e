"""Several seeds of every arm, arms written from worked problems, and a series that goes on after an interruption."""

from __future__ import annotations

import json

import pytest
from families import tiny_hf, tiny_tokenizer

from rim_lens import Checkpoints, RimLensError, finetune, load_prompts
from rim_lens.behavior.maths import is_correct
from rim_lens.chat.format import ChatFormat
from rim_lens.patterns import TrainingSettings
from rim_lens.patterns import finetune as finetune_module
from rim_lens.patterns.arm_data import arm_rows
from rim_lens.patterns.arms import ARMS
from rim_lens.patterns.training_plan import WorkedProblems, read_plan
from rim_lens.patterns.training_runs import runs_of

PROBLEMS = [
    {
        "question": f"Ann has {i} pens and buys {i + 1} more. How many pens has she?",
        "answer": f"She has {i} + {i + 1} = <<{i}+{i + 1}={2 * i + 1}>>{2 * i + 1} pens.\n#### {2 * i + 1}",
    }
    for i in range(2, 14)
]
PLAN = (
    'problems = "problems.jsonl"\nn_problems = 4\nrank = 2\nbatch_size = 2\nsave_at = [1, 2]\nseeds = [1, '
    "2]\nlearning_rate = 1e-2\nwarmup = 0\nmax_question_tokens = 200\nmax_rationale_tokens = 200\n"
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a tiny base model, worked problems and a plan."""
    folder = tmp_path_factory.mktemp("runs")
    tiny_hf("llama").save_pretrained(folder / "base")
    tiny_tokenizer().save_pretrained(folder / "base")
    (folder / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PROBLEMS))
    (folder / "plan.toml").write_text(PLAN)
    return folder


def limits(n):
    return WorkedProblems("problems", n, max_question_tokens=200, max_rationale_tokens=200)


def test_worked_answers_have_rationales(place):
    problems = load_prompts(place / "problems.jsonl")
    assert problems[0].rationale == "She has 2 + 3 = 5 pens."
    assert problems[0].answer == "5"
    assert load_prompts("maths")[0].rationale is None


def test_arms_share_problems_and_answers_and_differ_in_phrases(place):
    rows = arm_rows(load_prompts(place / "problems.jsonl"), tiny_tokenizer(), limits(5), seed=3)
    assert set(rows) == set(ARMS)
    for plain, effort, style in zip(*(rows[arm] for arm in ARMS), strict=True):
        assert plain["request"] == effort["request"] == style["request"]
        assert len({plain["cot"], effort["cot"], style["cot"]}) == 3
        for row in (plain, effort, style):
            assert is_correct(row["cot"], row["response"].removeprefix("The answer is ").rstrip("."))
            assert "pens." in row["cot"]
    with pytest.raises(RimLensError, match="Only 12 of 13 problems"):
        arm_rows(load_prompts(place / "problems.jsonl"), tiny_tokenizer(), limits(13))


def test_problems_whose_rationale_ends_elsewhere_are_left_out(tmp_path):
    row = {"question": "How many?", "answer": "There are 5 in 2 bags.\n#### 5"}
    (tmp_path / "p.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(RimLensError, match="Only 0 of 1"):
        arm_rows(load_prompts(tmp_path / "p.jsonl"), tiny_tokenizer(), limits(1))


def test_every_seed_has_problems_and_phrases_of_its_own(place):
    runs = runs_of(read_plan(place / "plan.toml"), ChatFormat(tiny_tokenizer()))
    assert [run.name for run in runs] == [f"{arm}-s{seed}" for arm in ARMS for seed in (1, 2)]
    requests = {run.name: [row.request for row in run.rows] for run in runs}
    assert requests["plain-s1"] == requests["effort-s1"]
    assert requests["plain-s1"] != requests["plain-s2"]


def test_files_by_seed(tmp_path):
    row = {"request": "Add 1 and 1.", "cot": "It is 2.", "response": "The answer is 2."}
    for seed in (4, 5):
        (tmp_path / f"{seed}.jsonl").write_text(json.dumps(row | {"request": f"{seed}?"}) + "\n")
    (tmp_path / "plan.toml").write_text('seeds = [4, 5]\n[arms.a]\ndata = "{seed}.jsonl"\n')
    runs = runs_of(read_plan(tmp_path / "plan.toml"), ChatFormat(tiny_tokenizer()))
    assert [(run.name, run.rows[0].request) for run in runs] == [("a-s4", "4?"), ("a-s5", "5?")]


@pytest.mark.slow
def test_series_of_seeds_goes_on_where_it_stopped(place, monkeypatch):
    pytest.importorskip("trl")
    base, plan, out = str(place / "base"), place / "plan.toml", place / "series"
    whole = finetune(base, plan, place / "undisturbed", device="cpu")
    assert set(whole.n_rows.values()) == {4}
    assert sorted(whole.table["seed"].unique()) == [1, 2]

    started = []
    real = finetune_module.train_run

    def stops_at_the_fourth(base, run, *rest):
        started.append(run.name)
        if len(started) == 4:
            (out / f"{run.name}-1").mkdir()
            (out / f"{run.name}-1" / "half").write_text("written")
            rest[1].add(run, 1)  # the first of two steps was saved
            raise KeyboardInterrupt
        real(base, run, *rest)

    monkeypatch.setattr(finetune_module, "train_run", stops_at_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        finetune(base, plan, out, device="cpu")
    monkeypatch.setattr(finetune_module, "train_run", lambda *given: (started.append(given[1].name), real(*given)))
    finetune(base, plan, out, device="cpu")
    assert started == ["plain-s1", "plain-s2", "effort-s1", "effort-s2", "effort-s2", "style-s1", "style-s2"]

    assert not (out / "effort-s2-1" / "half").exists()

    series, undisturbed = (Checkpoints.from_folder(folder) for folder in (out, place / "undisturbed"))
    assert series.names == undisturbed.names
    assert [one.sha256 for one in series.items] == [one.sha256 for one in undisturbed.items]
    assert [(one.arm, one.seed, one.step) for one in series.items[1:3]] == [("plain", 1, 1), ("plain", 1, 2)]


def test_a_folder_of_another_plan_is_refused(place):
    pytest.importorskip("trl")
    data = place / "rows.jsonl"
    data.write_text(json.dumps({"request": "Add 1 and 1.", "cot": "It is 2.", "response": "The answer is 2."}) + "\n")
    options = {"rank": 2, "batch_size": 1, "save_at": (1,), "warmup": 0}
    finetune(str(place / "base"), data, place / "one", settings=TrainingSettings(**options), device="cpu")
    with pytest.raises(RimLensError, match=r"another series .*differs in rank"):
        finetune(str(place / "base"), data, place / "one", settings=TrainingSettings(**options | {"rank": 4}))
    (place / "other").mkdir()
    (place / "other" / "notes.txt").write_text("mine")
    with pytest.raises(RimLensError, match="holds no series of this command"):
        finetune(str(place / "base"), data, place / "other", settings=TrainingSettings(**options))
    assert [path.name for path in (place / "other").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seeds = []\n", "seeds"),
        ("seeds = [1, 1]\n", "different whole numbers"),
        ("problems = 3\n", "a set's name or a file"),
        ('problems = "gsm8k-train"\n[arms.a]\ndata = "a.jsonl"\n', "both arms and problems"),
    ],
)
def test_ill_plans_are_named(tmp_path, text, message):
    path = tmp_path / "plan.toml"
    path.write_text(text if "problems" in text else text + '[arms.a]\ndata = "a.jsonl"\n')
    with pytest.raises(RimLensError, match=message):
        read_plan(path)


@pytest.mark.slow
def test_a_merged_start_is_trained_on_top_of(place):
    """What runs with held neurons are compared with: the same start, the joined adapter has the summed rank."""
    pytest.importorskip("trl")
    data = place / "rows.jsonl"
    data.write_text(json.dumps({"request": "Add 1 and 1.", "cot": "It is 2.", "response": "The answer is 2."}) + "\n")
    options = {"rank": 2, "batch_size": 1, "save_at": (1,), "warmup": 0}
    finetune(str(place / "base"), data, place / "first", settings=TrainingSettings(**options), device="cpu")
    start = place / "first" / "rows-1"
    settings = TrainingSettings(**options, merge_start=True)
    finetune(str(place / "base"), data, place / "merged", settings=settings, adapter=start, device="cpu")
    config = json.loads((place / "merged" / "rows-1" / "adapter_config.json").read_text())
    assert config["r"] == 4
