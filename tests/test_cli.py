"""The command line: it only calls the API, and what the user can mend is one sentence with exit status 2."""

import subprocess
import sys
from itertools import chain
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from families import tiny_hf, tiny_tokenizer
from typer.testing import CliRunner

from rim_lens import RimLensError, ThinkTags
from rim_lens.audit.plan import AuditPlan
from rim_lens.check import doctor
from rim_lens.cli import app, main
from rim_lens.data import list_prompt_sets, load_prompts
from rim_lens.model.names import WHOLE_FAMILIES
from rim_lens.patterns import TrainingSettings
from rim_lens.table import print_rows


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "rim_lens.cli", *arguments], capture_output=True, text=True)


@pytest.fixture
def here(monkeypatch, capsys):
    """`rim-lens` in this process, where torch is imported already: (status, stdout, stderr)."""

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["rim-lens", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, *capsys.readouterr()

    return call


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("cli") / "tiny"
    tiny_hf("llama").save_pretrained(place)
    tiny_tokenizer().save_pretrained(place)
    return place


def test_help_names_every_command():
    done = run("--help")
    assert done.returncode == 0
    for command in ("audit", "chat-segments", "models", "prompts"):
        assert command in done.stdout


def test_a_line_of_the_help_is_whole_at_80_columns():
    shown = CliRunner().invoke(app, ["--help"], terminal_width=80).output
    commands = shown.partition("Commands:")[2].strip().splitlines()
    assert len(commands) >= 11
    assert [line for line in commands if not line.rstrip().endswith(".") or line.rstrip().endswith("...")] == []


def test_families_are_those_of_the_readme():
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    assert f"Every part works in {WHOLE_FAMILIES}." in " ".join(readme.partition("<!-- families -->")[2].split())


def test_models_name_what_is_in_the_cache(here, monkeypatch, tmp_path):
    monkeypatch.setenv("RIM_LENS_CACHE", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setattr("rim_lens.model.cached.hub_models", list)
    assert "nothing" in here("models")[1].partition("In the cache:")[2]
    folder = tmp_path / "gguf" / "0123-2"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "qwen2"}')
    (folder / "model.safetensors").write_bytes(bytes(10**8))
    shown = here("models")[1].partition("In the cache:")[2]
    assert f"{folder} 0.1 GB, qwen2" in " ".join(shown.split())
    assert "smollm2" not in shown


def test_names_and_ids_can_be_copied(here, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    shown = here("prompts")[1]
    names = [one.name for one in list_prompt_sets()]
    assert [line.split()[0] for line in shown.splitlines() if line.split()[0] in names] == names
    for one in load_prompts("harmful", n=5):
        assert f"{one.id} " in here("prompts", "harmful")[1]


def test_what_looks_like_markup_is_printed_as_it_is(capsys):
    print_rows([("[bold]", "[/] <b> [65 %, 91 %]")])
    assert capsys.readouterr().out.split() == ["[bold]", "[/]", "<b>", "[65", "%,", "91", "%]"]


def test_help_imports_nothing_heavy():
    code = (
        "import sys; sys.argv = ['rim-lens', '--help']\n"
        "from rim_lens.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch', 'pandas', 'transformers', 'plotly') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")


def test_version_and_models_and_prompts(here):
    assert run("--version").stdout.strip() == "0.1.0"
    assert "smollm2-135m-instruct" in here("models")[1]
    assert "harmful" in here("prompts")[1]
    assert "2 of 64" in here("prompts", "maths", "--n", "2")[1]


def test_chat_segments_shows_every_segment(folder, here):
    question = "A question with </think> inside"
    status, shown, errors = here("chat-segments", str(folder), question, "--thinking", "prefilled", "--cot", "Hm.")
    assert status == 0, errors
    for segment in ("system", "user", "assistant_tag", "think_open", "cot", "think_close"):
        assert segment in shown


def test_think_tags_of_ones_own(folder, here):
    tags = ("--think-tags", r"<reason>\n", r"\n</reason>\n")
    status, shown, _ = here("chat-segments", str(folder), "Hi", "--thinking", "on", *tags)
    assert status == 0
    assert "<reason>" in shown
    assert "<think>" not in shown
    assert here("chat-segments", str(folder), "Hi", "--think-tags", "<reason>")[0] == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["chat-segments", "./nowhere", "Hi"], "There is no folder or file"),
        (["prompts", "nosuchset"], "nosuchset"),
        (["audit", "./nowhere", "--n", "3"], "use at least 32"),
        (["audit", "./nowhere"], "There is no folder or file"),
        (["audit", "./nowhere", "--device", "cuda:99"], "cuda:99"),
    ],
)
def test_errors_are_one_sentence_and_status_2(arguments, words, here, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, _, errors = here(*arguments)
    assert status == 2
    sentences = [line for line in errors.splitlines() if line.startswith("rim-lens: ")]
    assert len(sentences) == 1
    assert words in sentences[0]


@pytest.mark.slow
def test_an_error_of_a_process_of_its_own_shows_no_traceback():
    done = run("chat-segments", "./nowhere", "Hi")
    assert done.returncode == 2
    assert "There is no folder or file" in done.stderr
    assert "Traceback" not in done.stderr


def test_every_option_of_an_audit_reaches_its_plan(monkeypatch):
    given = {
        "checkpoints": "series", "finetune": "arms.toml", "harmful": "mine.jsonl", "harmless": "kind.jsonl",
        "maths": "sums.jsonl", "n": 40, "seed": 7, "n_controls": 30, "device": "cpu", "dtype": "float16",
        "think_tags": ("<a>", "</a>"),
        "temperature": 0.6, "top_p": 0.95, "samples": 4, "cot_budget": "auto",
    }  # fmt: skip
    seen = []
    monkeypatch.setattr("rim_lens.audit.run.run_audit", lambda plan, out, processes: seen.append((plan, out)))
    monkeypatch.setattr("rim_lens.audit.show.print_audits", lambda audits, out: None)
    words = [["--" + name.replace("_", "-"), *map(str, np.atleast_1d(value))] for name, value in given.items()]
    switches = ["--quick", "--no-patterns", "--no-heads", "--no-neurons"]
    switches += ["--template-variable", "reasoning_effort=low", "--template-variable", "depth=3"]
    done = CliRunner().invoke(app, ["audit", "model", "--out", "here", *switches, *chain.from_iterable(words)])
    assert done.exit_code == 0, done.output
    variables = ("reasoning_effort=low", "depth=3")
    plan = AuditPlan(
        "model", **given, quick=True, patterns=False, heads=False, neurons=False, template_variables=variables
    )
    assert seen == [(plan, Path("here"))]


def test_every_option_of_fine_tuning_reaches_the_run(monkeypatch):
    settings = {
        "full": True, "rank": 3, "learning_rate": 0.5, "batch_size": 2, "epochs": 2.0, "seeds": (1, 2),
        "save_at": (3, 9),
    }  # fmt: skip
    options = {
        "adapter": "start", "freeze_neurons": "held.json", "penalize_shift": 0.5, "direction": "along",
        "penalize_direction": 0.25, "safety_prompts": "mine.jsonl",
        "device": "cpu",
    }  # fmt: skip
    seen = []
    told = Mock(caption=lambda: "done")
    monkeypatch.setattr("rim_lens.patterns.finetune.finetune", lambda *args, **more: seen.append((args, more)) or told)
    words = [
        ["--" + name.replace("_", "-"), ",".join(map(str, value)) if isinstance(value, tuple) else str(value)]
        for name, value in (settings | options).items()
        if value is not True
    ]
    call = [
        "finetune",
        "model",
        "rows.jsonl",
        "--out",
        "here",
        "--full",
        *chain.from_iterable(words),
        "--think-tags",
        "<a>",
        "</a>",
        "--template-variable",
        "depth=3",
    ]
    done = CliRunner().invoke(app, call)
    assert done.exit_code == 0, done.output
    expected = {"settings": TrainingSettings(**settings), "tags": ThinkTags("<a>", "</a>")} | options
    expected["template_variables"] = {"depth": 3}
    assert seen == [(("model", "rows.jsonl", Path("here")), expected)]


def test_a_slip_in_the_built_in_name_is_met_before_anything_is_imported():
    code = (
        "import sys; sys.argv = ['rim-lens', 'check', 'smollm2-135m-instuct']\n"
        "from rim_lens.cli import main\n"
        "try: main()\n"
        "except SystemExit as done: print(done.code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "2 False"
    assert "did you mean 'smollm2-135m-instruct'?" in done.stderr


def test_wrong_usage_is_told():
    done = run("bogus")
    assert done.returncode == 2
    assert "bogus" in done.stderr


def test_several_models_have_a_folder_each(monkeypatch):
    seen = []
    monkeypatch.setattr("rim_lens.audit.run.run_audit", lambda plan, out, processes: seen.append((plan.model, out)))
    monkeypatch.setattr("rim_lens.audit.show.print_audits", lambda audits, out: None)
    done = CliRunner().invoke(app, ["audit", "org/one", "org/two", "--out", "here"])
    assert done.exit_code == 0, done.output
    assert seen == [("org/one", Path("here/one")), ("org/two", Path("here/two"))]
    for wrong in (["org/one", "other/one"], ["a", "b", "--checkpoints", "series"]):
        assert isinstance(CliRunner().invoke(app, ["audit", *wrong]).exception, RimLensError)
    assert len(seen) == 2


def test_doctor_says_what_is_missing_and_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("RIM_LENS_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    whole = CliRunner().invoke(app, ["doctor"])
    assert whole.exit_code == 0, whole.output
    said = " ".join(whole.output.split())
    for words in ("torch", "extra notebook", "processor", "is fetched when", "HF_HUB_OFFLINE"):
        assert words in said
    real = doctor.version
    monkeypatch.setattr(doctor, "version", lambda name: {"torch": "1.0", "einops": None}.get(name, real(name)))
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    broken = CliRunner().invoke(app, ["doctor"])
    assert broken.exit_code == 1
    text = " ".join(broken.output.split())
    for words in ("einops is absent", "torch 1.0, but >=", "pip install --upgrade rim-lens", "install chromium"):
        assert words in text


@pytest.mark.slow
def test_plan_says_what_an_audit_will_do_and_reads_no_weight(folder, monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("weights were read")

    monkeypatch.setattr("transformers.PreTrainedModel.from_pretrained", refuse)
    done = CliRunner().invoke(app, ["plan", str(folder), "--n-controls", "10"])
    assert done.exit_code == 0, done.exception
    text = " ".join(done.output.split())
    for words in ("3 layers", "'<think>", "stage 1 of 3", "96 prompts, 32 asked, 32 others to test on"):
        assert words in text
    assert "these heads carry refusal: 32 prompts find" in text
    assert "RAS" not in text  # no series, so no such claim
    assert "control sets, counted: the smallest p is 0.091" in text
    large = " ".join(CliRunner().invoke(app, ["plan", str(folder), "--n", "64"]).output.split())
    assert "128 are needed: use a larger set or a smaller --n" in large
