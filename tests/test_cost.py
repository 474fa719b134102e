"""The count of tokens behind the time that `rim-lens plan` prints, against stages that were measured."""

import pytest

from rim_lens.audit.cost import matrix_speed, seconds_for, stage_tokens
from rim_lens.audit.plan import AuditPlan

LENGTHS = {"harmful": 50.0, "harmless": 50.0, "maths": 66.0}  # of the bundled sets' prompts under SmolLM2's template
# Processor seconds of each stage of the bundled series' five checkpoints, 32 prompts, 50 controls, on one thread.
WHOLE = {"behavior": 198, "patterns": 134, "series": 211, "heads": 189, "neurons": 137, "thinking_neurons": 24}


def test_tokens_go_with_the_time_of_the_stages():
    plan = AuditPlan("smollm2-135m-instruct", checkpoints="series", n_controls=50)
    tokens = stage_tokens(plan, LENGTHS, checkpoints=5)
    assert set(tokens) == set(WHOLE)
    per_token = sum(WHOLE.values()) / sum(tokens.values())
    for stage, seconds in WHOLE.items():
        assert per_token * tokens[stage] == pytest.approx(seconds, rel=0.4), stage


def test_a_quick_audit_costs_less_than_half():
    plan = {"model": "smollm2-135m-instruct", "checkpoints": "series", "n_controls": 50}
    whole = sum(stage_tokens(AuditPlan(**plan), LENGTHS, 5).values())
    assert sum(stage_tokens(AuditPlan(**plan, quick=True), LENGTHS, 5).values()) < whole / 2


def test_an_engine_costs_less_where_it_writes():
    here, engine = (
        stage_tokens(AuditPlan("smollm2-135m-instruct", checkpoints="series", engine=name), LENGTHS, 5)
        for name in ("transformers", "vllm")
    )
    assert all(engine[stage] < here[stage] for stage in ("behavior", "patterns", "heads"))
    assert all(engine[stage] == here[stage] for stage in ("series", "neurons", "thinking_neurons"))


def test_seconds_are_those_of_the_products():
    assert seconds_for(100, 10**6, 1e9) == pytest.approx(100 * 2e6 / (0.95 * 1e9))
    assert matrix_speed(0.05) > 1e8
