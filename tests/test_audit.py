"""The audit on a tiny model with a tiny series: outputs, resuming, and folders that belong to another run."""

import json
import os
import re
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import psutil
import pytest
import torch
from families import tiny_hf, tiny_tokenizer
from kill_runs import forked
from peft import LoraConfig, get_peft_model

from rim_lens import (
    Checkpoints,
    RimLensError,
    ThinkTags,
    load_model,
    load_prompts,
    load_result,
    series_behavior,
)
from rim_lens.audit import neurons as neurons_stage
from rim_lens.audit import patterns as patterns_stage
from rim_lens.audit import stage as stage_module
from rim_lens.audit import stages
from rim_lens.audit.attempt import NotMeasured
from rim_lens.audit.compare import compare_runs
from rim_lens.audit.extent import QUICK
from rim_lens.audit.findings import findings_of
from rim_lens.audit.plan import AuditPlan
from rim_lens.audit.run import new_verdicts, run_audit, write_growing
from rim_lens.audit.show import answer_lines, print_comparison
from rim_lens.audit.stage import Context
from rim_lens.audit.stages import STAGES
from rim_lens.model.lens_model import LensModel
from rim_lens.results import Manifest


@pytest.fixture(scope="module")
def plan(tmp_path_factory) -> AuditPlan:
    place = tmp_path_factory.mktemp("audit")
    folder, series = place / "tiny", place / "series"
    tiny_hf("llama", max_position_embeddings=1024).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    for step in range(5):
        torch.manual_seed(step)
        model = get_peft_model(load_model(folder).hf, LoraConfig(r=2, target_modules="all-linear"))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(0, 0.1 * step)
        model.peft_config["default"].base_model_name_or_path = str(folder)
        model.save_pretrained(series / f"step-{step}")
    names = [f"step-{step}" for step in range(5)]
    example = {"request": "add 1 and 2", "cot": "1 + 2", "response": "it is 3"}
    (series / "plain.jsonl").write_text(f"{json.dumps(example)}\n" * 2)
    document = {
        "reference": "step-0",
        "training": {"plain": "plain.jsonl"},
        "checkpoints": [{"name": name, "arm": "plain", "step": i} for i, name in enumerate(names)],
    }
    (series / "series.json").write_text(json.dumps(document))
    return AuditPlan(
        model=str(folder),
        checkpoints=str(series),
        prefilled=("neutral",),
        max_new_tokens=2,
        cot_budget=3,
        n_controls=20,
        maths_tokens=4,
    )


@pytest.fixture(scope="module")
def audit(plan, tmp_path_factory):
    return run_audit(plan, tmp_path_factory.mktemp("out") / "run")


@pytest.mark.slow
def test_every_output_is_there(audit, plan):
    document = json.loads((audit.folder / "results.json").read_text())
    assert document["plan"]["model"] == plan.model
    assert set(document["results"]) == set(audit.results) >= {"behavior", "series", "ablation", "head_test"}
    assert document["manifest"]["versions"]["rim_lens"]
    stages = {"behavior", "patterns", "series", "heads", "neurons", "thinking_neurons"}
    assert document["manifest"]["seconds"].keys() == stages
    assert all(finding["n"] for finding in document["findings"])
    for name, result in audit.results.items():
        assert len(pd.read_csv(audit.folder / "tables" / f"{name}.csv")) == len(result.to_dataframe())
    assert audit.report.read_text().lstrip().lower().startswith("<!doctype html>")


@pytest.mark.slow
def test_what_a_model_does_not_allow_is_said(audit):
    document = json.loads((audit.folder / "results.json").read_text())
    missing = [name for name, result in audit.results.items() if isinstance(result, NotMeasured)]
    told = [finding["what"] for finding in document["findings"] if finding["chapter"] == "Not measured"]
    assert "probe" in missing  # a random model refuses nothing
    assert len(told) == len(missing)
    assert "refused and" in audit.report.read_text()


@pytest.mark.slow
def test_every_kind_of_given_cot_is_asked_once(audit):
    behavior, costs = audit.results["behavior"].answers, audit.results["pattern_costs"]
    assert set(behavior.query("set == 'harmful'")["condition"]) == {"off", "on"}
    assert set(behavior.query("set == 'harmless'")["condition"]) == {"off", "on", "neutral"}
    asked = costs.answers.groupby("condition")
    assert set(asked.groups) == {"off", "neutral", "irrelevant", "careful", "confirmatory", "heuristic", "deviation"}
    assert (asked["prompt"].nunique() == 32).all()
    assert (asked["wording"].nunique().drop("off") >= 8).all()
    off = behavior.query("set == 'harmful' and condition == 'off'")["response"].tolist()
    assert costs.answers.query("condition == 'off'")["response"].tolist() == off
    patterns = audit.results["training_patterns"].table.query("arm == 'plain' and pattern == 'any'").iloc[0]
    assert (patterns["k"], patterns["n_cots"]) == (0, 2)
    told = [finding.what for finding in audit.findings if finding.chapter == "Effort-minimizing reasoning"]
    assert "Refusal lost with any pattern against careful text" in told
    assert "What each pattern costs" in audit.report.read_text()


@pytest.mark.slow
def test_without_the_patterns_stage_the_behaviour_stage_asks_given_cots(plan, tmp_path):
    by_name = {stage.name: stage for stage in STAGES}
    without = replace(plan, patterns=False)
    assert by_name["patterns"].wanted(plan)
    assert not by_name["patterns"].wanted(without)
    behavior = by_name["behavior"].measure(Context(without))["behavior"]
    assert set(behavior.answers.query("set == 'harmful'")["condition"]) == {"off", "on", "neutral"}


@pytest.mark.slow
def test_patterns_that_cannot_be_measured_are_told(audit, plan, tmp_path):
    series = tmp_path / "series"
    shutil.copytree(Path(plan.checkpoints), series)
    (series / "plain.jsonl").write_text('{"request": "a", "response": "b", "thinking": "off"}\n')
    context = Context(replace(plan, checkpoints=str(series)))
    behavior = audit.results["behavior"]
    context.results = {"behavior": replace(behavior, answers=behavior.answers.assign(cot=""))}
    context.model = LensModel("bare", tiny_tokenizer(), hf=tiny_hf("llama"), tags=ThinkTags("", ""))
    found = patterns_stage.measure_patterns(context)
    assert {name: type(result) for name, result in found.items()} == dict.fromkeys(
        ("pattern_costs", "training_patterns", "own_patterns"), NotMeasured
    )
    assert "without think tags" in found["pattern_costs"].reason
    assert "The arm plain has no CoT" in found["training_patterns"].reason


@pytest.mark.slow
def test_the_neurons_stages_measure_every_part(audit, plan, monkeypatch):
    monkeypatch.setattr(neurons_stage, "CHOICE", {**neurons_stage.CHOICE, "top": 8})
    monkeypatch.setattr(neurons_stage, "SHIFT_CONTROLS", 50)
    context = Context(plan)
    context.results = {"behavior": audit.results["behavior"]}
    context.results |= stages.measure_checkpoints(context)
    context.results |= neurons_stage.measure_neurons(context)
    context.results |= neurons_stage.measure_thinking_neurons(context)
    parts = {"safety_neurons", "neuron_shift", "forgetting", "series_heads", "neuron_test", "prediction"}
    parts |= {"neuron_table", "thinking_shift"}
    missing = {name: context.results[name].reason for name in parts if isinstance(context.results[name], NotMeasured)}
    assert missing == {}
    test = context.results["neuron_test"].table.set_index("measure")
    assert test.loc["refusal score, harmful", "n_controls"] == 20
    assert {"refused, harmful", "complied, harmful", "log-likelihood of maths answers"} <= set(test.index)
    assert context.results["series_heads"].table["checkpoint"].tolist() == [f"step-{step}" for step in range(5)]
    assert context.results["prediction"].table["checkpoint"].tolist() == [f"step-{step}" for step in range(1, 5)]
    table = context.results["neuron_table"]
    assert (table.n_off, table.n_on) == (32, 32)
    told = {finding.what for finding in findings_of(context.results)}
    assert any("without the" in what for what in told)
    assert any("thinking off → thinking on" in what for what in told)


@pytest.mark.slow
def test_an_empty_set_of_neurons_is_told(audit, plan):
    context = Context(plan)
    context.model, context.results = LensModel("bare", tiny_tokenizer(), hf=tiny_hf("llama")), dict(audit.results)
    none = audit.results["safety_neurons"]
    context.results["safety_neurons"] = replace(none, table=none.table.assign(n_groups=0))
    for stage in (neurons_stage.measure_neurons, neurons_stage.measure_thinking_neurons):
        for missing in stage(context).values():
            assert isinstance(missing, NotMeasured)
            assert "top of every group" in missing.reason


@pytest.mark.slow
def test_the_answer_is_at_most_15_lines_of_80_columns(audit):
    lines = answer_lines(audit)
    assert len(lines) <= 15
    assert max(map(len, lines[:-1])) <= 80  # the last one is a path
    assert lines[0].startswith(f"On {audit.model}, ")
    assert lines[-1] == f"open {audit.report}"
    for claim in audit.verdicts.table["words"]:
        assert any(claim in line for line in lines)


@pytest.mark.slow
def test_the_page_is_there_after_the_first_stage_and_says_what_is_to_come(audit, plan, tmp_path):
    shutil.copytree(audit.folder / "stages" / "behavior", tmp_path / "stages" / "behavior")
    decided, printed = write_growing(plan, [stage for stage in STAGES if stage.wanted(plan)], tmp_path), set()
    first, thinking = new_verdicts(decided, printed)
    assert (first, printed) == ("so far:", {"thinking"})
    assert "thinking lowers refusal" in thinking
    assert new_verdicts(decided, printed) == []
    page = (tmp_path / "report.html").read_text()
    assert (
        "To come: Effort-minimizing reasoning: what each pattern costs; Refusal and maths over the checkpoints" in page
    )
    assert 'load_result("stages/behavior/behavior")' in page
    assert "data-unfinished=" not in audit.report.read_text()


@pytest.mark.slow
def test_a_quick_audit_decides_the_same_claims_and_names_what_it_left_out(audit, plan, tmp_path):
    quick = run_audit(replace(plan, quick=True), tmp_path / "run")
    behavior = quick.results["behavior"].answers
    assert set(zip(behavior["set"], behavior["condition"], strict=True)) == {
        ("harmful", "off"),
        ("harmful", "on"),
        ("harmless", "off"),
    }
    for name in ("series", "series_maths", "head_test", "attention_by_score"):
        assert type(quick.results[name]) is type(audit.results[name])
    assert not {"probe", "pattern_costs", "neuron_table", "prediction"} & set(quick.results)
    decidable = [set(one.verdicts.table.dropna(subset="effect")["claim"]) for one in (quick, audit)]
    assert decidable[0] == decidable[1] - {"effort_cot"}
    (said,) = re.findall(r"<p class=\"scope\"><strong>What was not measured.*", quick.report.read_text())
    assert all(part.replace("'", "&#39;") in said for part in QUICK.left_out)
    assert "What was not measured" not in audit.report.read_text()


@pytest.mark.slow
def test_runs_side_by_side_say_in_what_they_differ(audit, plan, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(audit.folder, other)
    (other / "plan.json").write_text(json.dumps(json.loads((other / "plan.json").read_text()) | {"cot_budget": 9}))
    compared = compare_runs([audit.folder, other])
    assert compared.table["not comparable"].tolist() == ["", "cot_budget"]
    row = (
        audit.results["behavior"]
        .table.query("set == 'harmful' and condition == 'off' and measure == 'refused'")
        .iloc[0]
    )
    rate = f"{100 * row['rate']:.0f} [{100 * row['low']:.0f}, {100 * row['high']:.0f}]"
    assert compared.table["refused, off"].tolist() == [rate] * 2
    verdict = audit.verdicts.of("thinking")
    assert compared.table[verdict["words"]].tolist() == [verdict["verdict"]] * 2
    print_comparison(compared, tmp_path)
    page = (tmp_path / "comparison.html").read_text()
    assert 'href="other/report.html"' in page
    assert "cot_budget" in (tmp_path / "comparison.md").read_text()
    assert r"\toprule" in (tmp_path / "comparison.tex").read_text()
    with pytest.raises(RimLensError, match="holds no finished audit"):
        compare_runs([audit.folder, tmp_path])
    with pytest.raises(RimLensError, match="two finished audits"):
        compare_runs([audit.folder])


@pytest.mark.slow
def test_the_findings_are_the_tables_rows(audit):
    behavior = load_result(audit.folder / "stages" / "behavior" / "behavior")
    row = behavior.table.query("set == 'harmful' and condition == 'off' and measure == 'refused'").iloc[0]
    finding = next(f for f in audit.findings if f.what == "Harmful requests refused, thinking off")
    assert finding.n == f"{row['k']}/{row['n']}"
    assert finding.figure.startswith(f"{100 * row['rate']:.1f} %")


@pytest.mark.slow
def test_the_reference_checkpoint_is_what_is_measured(audit):
    behavior, series = audit.results["behavior"], audit.results["series"]
    off = behavior.answers.query("set == 'harmful' and condition == 'off'")["response"].tolist()
    first = series.answers.query("checkpoint == 'step-0'")["response"].tolist()
    last = series.answers.query("checkpoint == 'step-4'")["response"].tolist()
    assert off == first != last


@pytest.mark.slow
def test_a_finished_audit_is_loaded_without_its_model(audit, plan, monkeypatch):
    def refuse(*args, **options):
        raise AssertionError("the model was loaded again")

    monkeypatch.setattr(stage_module, "load_model", refuse)
    again = run_audit(plan, audit.folder)
    assert again.findings == audit.findings


@pytest.mark.slow
def test_an_interrupted_audit_goes_on_after_its_last_stage(plan, tmp_path, monkeypatch):
    from rim_lens.audit import run as run_module

    def interrupt(context):
        raise KeyboardInterrupt

    broken = tuple(replace(stage, measure=interrupt) if stage.name == "series" else stage for stage in STAGES)
    monkeypatch.setattr(run_module, "STAGES", broken)
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run_audit(plan, out)
    assert sorted(path.name for path in (out / "stages").iterdir()) == ["behavior", "patterns"]
    assert not (out / "results.json").exists()
    monkeypatch.setattr(run_module, "STAGES", STAGES)
    asked = []
    counted = tuple(
        replace(stage, measure=lambda context, stage=stage: (asked.append(stage.name), stage.measure(context))[1])
        for stage in STAGES
    )
    monkeypatch.setattr(run_module, "STAGES", counted)
    run_audit(plan, out)
    assert "behavior" not in asked
    assert "series" in asked


@pytest.mark.slow
def test_a_folder_of_another_run_is_left_alone(audit, plan, tmp_path):
    with pytest.raises(RimLensError, match=r"holds another run \(it differs in seed\)"):
        run_audit(replace(plan, seed=1), audit.folder)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RimLensError, match="holds no audit"):
        run_audit(plan, tmp_path)
    assert [path.name for path in Path(tmp_path).iterdir()] == ["notes.txt"]


def test_too_few_prompts_are_refused(plan):
    with pytest.raises(RimLensError, match="use at least 32"):
        replace(plan, n=31)


def test_a_wrong_input_leaves_no_folder_behind(plan, tmp_path):
    with pytest.raises(RimLensError, match="no folder or file"):
        run_audit(replace(plan, model="./nowhere", checkpoints=None), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_two_processes_measure_what_one_does(audit, plan, tmp_path):
    both = run_audit(replace(plan, device="cpu"), tmp_path / "run", processes=2)
    assert both.results.keys() == audit.results.keys()
    for name in ("behavior", "series", "head_test", "safety_neurons"):
        one, two = audit.results[name].to_dataframe(), both.results[name].to_dataframe()
        pd.testing.assert_frame_equal(one, two, rtol=1e-4, atol=1e-4)
    assert [finding.what for finding in both.findings] == [finding.what for finding in audit.findings]


@pytest.mark.slow
def test_an_error_in_the_second_process_is_told(plan, tmp_path):
    series = Path(plan.checkpoints)
    broken = tmp_path / "series"
    shutil.copytree(series, broken)
    (broken / "step-3" / "adapter_model.safetensors").write_bytes(b"cut")
    with pytest.raises(RimLensError, match="step-3"):
        run_audit(replace(plan, device="cpu", checkpoints=str(broken)), tmp_path / "run", processes=2)


@pytest.mark.slow
def test_a_killed_audit_leaves_no_process_behind(plan, tmp_path):
    only_two = replace(plan, device="cpu", patterns=False, prefilled=())
    first = forked(lambda: run_audit(only_two, tmp_path / "run", processes=2))
    children = []
    deadline = time.monotonic() + 60
    while not children and time.monotonic() < deadline:
        children = [p for p in psutil.Process(first).children(recursive=True) if "spawn_main" in " ".join(p.cmdline())]
        time.sleep(0.2)
    assert children
    os.kill(first, signal.SIGKILL)
    os.waitpid(first, 0)
    gone, alive = psutil.wait_procs(children, timeout=30)
    assert gone
    assert not alive


def test_think_tags_of_a_plan_reach_its_model(plan):
    told = replace(plan, checkpoints=None, device="cpu", think_tags=(r"<reason>\n", r"\n</reason>\n"))
    chat = Context(told).model.render("Hi", thinking="prefilled", cot="hm")[0]
    assert chat.segment_text("think_open") == "<reason>\n"
    assert chat.segment_text("think_close") == "\n</reason>\n"


def test_template_variables_of_a_plan_reach_every_prompt_and_the_manifest(plan):
    told = replace(plan, checkpoints=None, device="cpu", template_variables=("mood=calm", "depth=3"))
    model = Context(told).model
    model.tokenizer.chat_template = (
        "{{ '[' ~ mood ~ (depth + 1) ~ ']' }}{% for m in messages %}{{ '<' + m.role + '>' + m.content }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
    )
    assert "[calm4]" in model.render("Hi", thinking="off")[0].text
    assert json.loads(Manifest.collect(model).model["template_variables"]) == {"mood": "calm", "depth": 3}
    with pytest.raises(RimLensError, match="A template variable is NAME=VALUE, as reasoning_effort=high, got 'mood'"):
        Context(replace(told, template_variables=("mood",))).model  # noqa: B018


@pytest.mark.slow
def test_an_audit_trains_the_series_that_it_measures(plan, tmp_path):
    """Two arms with two seeds each, trained from the audited model; a second run trains nothing again."""
    pytest.importorskip("trl")
    for arm in ("plain", "effort"):
        rows = [{"request": f"Add {i} and 2.", "cot": f"It is {i + 2}.", "response": f"{i + 2}"} for i in range(4)]
        (tmp_path / f"{arm}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arms = "rank = 2\nbatch_size = 2\nwarmup = 0\nlearning_rate = 1e-2\nseeds = [1, 2]\nsave_at = [1, 2]\n"
    arms += '[arms.plain]\ndata = "plain.jsonl"\n[arms.effort]\ndata = "effort.jsonl"\n'
    (tmp_path / "arms.toml").write_text(arms)
    start = tmp_path / "start"
    shutil.copytree(Path(plan.checkpoints) / "step-3", start)
    trained = replace(
        plan,
        model=str(start),
        checkpoints=None,
        finetune=str(tmp_path / "arms.toml"),
        heads=False,
        neurons=False,
        patterns=False,
        device="cpu",
        think_tags=("<why>", "</why>"),
    )
    done = run_audit(trained, tmp_path / "run")
    recipe = json.loads((tmp_path / "run" / "series" / "series.json").read_text())["recipe"]
    assert recipe["think_tags"] == ["<why>", "</why>"]
    assert list(done.results["finetuning"].n_rows) == ["plain-s1", "plain-s2", "effort-s1", "effort-s2"]
    table = done.results["arms"].table
    assert set(zip(table["arm"], table["step"], strict=True)) == {
        ("plain", 1),
        ("plain", 2),
        ("effort", 1),
        ("effort", 2),
    }
    assert (table["n_seeds"] == 2).all()
    assert len(done.results["series"].table) == 9
    alone = series_behavior(
        load_model(start, tags=trained.tags), Checkpoints([]), load_prompts("harmful", n=32), max_new_tokens=2
    )
    scores = done.results["series"].answers.query("checkpoint == 'start'")["refusal_score"]
    assert scores.tolist() == pytest.approx(alone.answers["refusal_score"].tolist(), abs=1e-4)  # not added twice
    page = done.report.read_text()
    assert "What each arm of fine-tuning changes" in page
    assert "How the arms were trained" in page
    assert any(finding.what.startswith("Harmful requests complied with after 2 steps") for finding in done.findings)

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "series").rglob("*.safetensors")}
    run_audit(trained, tmp_path / "run")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "series").rglob("*.safetensors")} == before
    with pytest.raises(RimLensError, match="not both"):
        run_audit(replace(trained, checkpoints=plan.checkpoints), tmp_path / "other")
    (tmp_path / "arms.toml").write_text('adapter = "elsewhere"\n' + arms)
    with pytest.raises(RimLensError, match="starts from the adapter"):
        run_audit(trained, tmp_path / "third")
    assert not (tmp_path / "third").exists()
