"""An audit whose answers an engine writes: what is asked of it, what is in memory, and a dead engine."""

import json
import shutil
from dataclasses import replace

import pytest
from families import tiny_hf, tiny_tokenizer
from plain_engine import PlainEngine, PlainModel

from rim_lens import RimLensError, load_model
from rim_lens.audit import stage as stage_module
from rim_lens.audit.lanes import worth_two
from rim_lens.audit.plan import AuditPlan
from rim_lens.audit.preview import preview
from rim_lens.audit.run import run_audit
from rim_lens.audit.stage import Context


@pytest.fixture
def plan(tmp_path):
    tiny_hf("llama").save_pretrained(tmp_path / "tiny")
    tiny_tokenizer().save_pretrained(tmp_path / "tiny")
    return AuditPlan(
        model=str(tmp_path / "tiny"),
        quick=True,
        patterns=False,
        neurons=False,
        max_new_tokens=1,
        cot_budget=1,
        n_controls=19,
        engine="vllm",
        tensor_parallel=2,
    )


class Engines:
    """In the place of `load_model`: a plain engine where one is asked for; notes what is opened and closed."""

    def __init__(self):
        self.events, self.options, self.asked, self.dies_after = [], {}, 0, None

    def load_model(self, name, *, engine="transformers", **options):
        model = load_model(name)
        if engine == "transformers":
            self.events.append("transformers")
            return model
        self.events.append("engine")
        self.options = options
        served = PlainModel(model)
        served.engine = Mortal(model, self)
        served.close = lambda: self.events.append("engine closed")
        return served


class Mortal(PlainEngine):
    def __init__(self, model, engines):
        super().__init__(model)
        self.engines = engines

    def reply(self, ask):
        self.engines.asked += 1
        if self.engines.dies_after is not None and self.engines.asked > self.engines.dies_after:
            raise RimLensError("plain stopped while it wrote (a worker was killed); load the model anew.")
        return super().reply(ask)


@pytest.fixture
def engines(monkeypatch):
    made = Engines()
    monkeypatch.setattr(stage_module, "load_model", made.load_model)
    return made


BEHAVIOR = 32 * 4  # harmful requests with thinking off, their CoTs and answers with thinking on, and harmless requests


def test_an_engine_writes_and_the_manifest_names_it(plan, engines, tmp_path):
    audit = run_audit(replace(plan, heads=False), tmp_path / "run")
    assert engines.events == ["engine", "engine closed"]
    assert engines.options["tensor_parallel"] == 2
    assert engines.asked == BEHAVIOR
    document = json.loads((audit.folder / "results.json").read_text())
    assert document["manifest"]["model"] | audit.results["behavior"].manifest.model == document["manifest"]["model"]
    assert document["manifest"]["model"]["engine"] == "plain"
    assert document["manifest"]["model"]["tensor_parallel"] == "1"


@pytest.mark.slow
def test_an_engine_that_dies_is_said_and_the_audit_goes_on(plan, engines, tmp_path):
    engines.dies_after = BEHAVIOR + 5
    with pytest.raises(RimLensError, match="stopped while it wrote"):
        run_audit(plan, tmp_path / "run")
    assert (tmp_path / "run" / "stages" / "behavior").is_dir()
    assert engines.events == ["engine", "engine closed"]
    engines.dies_after, engines.asked, engines.events = None, 0, []
    audit = run_audit(plan, tmp_path / "run")
    assert engines.events == ["engine", "engine closed", "transformers"]  # one after the other, never both
    assert engines.asked == 32 * 3  # the behaviour stage asks nothing again; other requests: off, CoTs and answers
    assert "engine" not in audit.results["ablation"].manifest.model
    plain = run_audit(replace(plan, engine="transformers", tensor_parallel=1), tmp_path / "plain")
    for name in ("behavior", "attention_by_score", "head_test"):
        there, here = (one.results[name].to_dataframe() for one in (audit, plain))
        assert there.round(3).equals(here.round(3)), name


def test_an_engine_has_no_second_lane(plan):
    assert not worth_two(replace(plan, checkpoints="series", device="cpu"))


def test_a_reference_that_changes_the_weights_needs_transformers(plan, engines, tmp_path):
    series = tmp_path / "series"
    shutil.copytree(plan.model, series / "first")
    (series / "series.json").write_text(json.dumps({"reference": "first", "checkpoints": [{"name": "first"}]}))
    with pytest.raises(RimLensError, match="the reference checkpoint first changes"):
        Context(replace(plan, checkpoints=str(series))).writer  # noqa: B018
    assert engines.events == []


def test_wrong_engines_are_one_sentence(plan):
    with pytest.raises(RimLensError, match="no engine 'sglang'"):
        replace(plan, engine="sglang")
    with pytest.raises(RimLensError, match="by vLLM alone"):
        replace(plan, engine="transformers")


def test_the_preview_names_the_engine(plan):
    lines = {line.part: line.words for line in preview(plan)}
    assert "vllm" in lines["engine"]
    assert "2 devices" in lines["engine"]
