"""What becomes of an engine: two side by side, one that is closed, one without memory, hooks, and a whole audit."""

import gc
import json

import pytest
import torch

from rim_lens import RimLensError, load_model
from rim_lens.audit.plan import AuditPlan
from rim_lens.audit.run import run_audit
from rim_lens.behavior.generate import generate
from rim_lens.behavior.refusal_score import RefusalTokens, refusal_score
from rim_lens.intervene.heads import ablate_heads

PROMPTS = ["Name a fruit.", "Why is the sky blue?"]
TOKENS = RefusalTokens((40, 41, 77), ("a", "b", "c"))
OPTIONS = {"max_model_len": 1024}
HEADS = [(0, 0), (1, 3)]


def tiny_engine(folder):
    return load_model(folder, engine="vllm", engine_options=OPTIONS)


def answers(model):
    return [one.response_ids for one in generate(model, PROMPTS, max_new_tokens=6, progress=False)]


@pytest.fixture(scope="module")
def expected(tiny):
    return answers(load_model(tiny))


def lacking(module, args):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")


def test_two_engines_in_one_process_and_one_of_them_closed(tiny, expected):
    one, two = tiny_engine(tiny), tiny_engine(tiny)
    assert answers(one) == answers(two) == expected
    one.close()
    with pytest.raises(RimLensError, match="been closed; load the model anew"):
        answers(one)
    assert answers(two) == expected
    del one, two  # as one that nobody holds any more
    gc.collect()
    assert answers(tiny_engine(tiny)) == expected


def test_a_worker_without_memory_is_one_sentence(tiny, expected):
    model = tiny_engine(tiny)
    module = model.engine.llm.apply_model(lambda inner: inner)[0]
    handle = module.model.layers[1].register_forward_pre_hook(lacking)
    with pytest.raises(RimLensError, match=r"Not even one of the prompts fits .*out of memory") as raised:
        refusal_score(model, PROMPTS, TOKENS)
    assert "\n" not in str(raised.value)
    handle.remove()
    assert refusal_score(model, PROMPTS, TOKENS) == pytest.approx(refusal_score(load_model(tiny), PROMPTS, TOKENS))
    assert answers(model) == expected
    handle = module.model.layers[1].register_forward_pre_hook(lacking)
    with pytest.raises(RimLensError, match=r"ran out of memory while it wrote .*max_num_seqs") as raised:
        answers(model)
    assert "\n" not in str(raised.value)
    handle.remove()


def test_a_model_that_does_not_fit_is_one_sentence(tiny, monkeypatch):
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "100000")
    with pytest.raises(RimLensError, match="cannot load") as raised:
        tiny_engine(tiny)
    assert "\n" not in str(raised.value)


def test_no_hook_stays_after_a_block_that_fails(tiny):
    model = tiny_engine(tiny)
    with pytest.raises(KeyboardInterrupt), ablate_heads(model, HEADS):
        interrupted(model)
    assert model.engine.call("lens_hooks") == [0]
    assert model.active_taps == []


def interrupted(model):
    """Two answers under the active taps, interrupted when the shorter one is there."""
    from rim_lens.behavior.limits import limits_for
    from rim_lens.behavior.sampling import Sampling
    from rim_lens.behavior.through_engine import changes_of, dialogue

    chats = model.render(PROMPTS)
    changes = changes_of(model, chats)
    dialogues = [
        dialogue(model, chat, row, limits_for(model, chats, 4 + 20 * row, 1), Sampling(), 0, int, changes[row])
        for row, chat in enumerate(chats)
    ]
    for _ in model.engine.run(dialogues):
        raise KeyboardInterrupt


@pytest.mark.timeout(600)
def test_an_audit_writes_through_the_engine(tiny, tmp_path):
    plan = AuditPlan(model=tiny, quick=True, max_new_tokens=2, cot_budget=3, n_controls=19, engine="vllm")
    audit = run_audit(plan, tmp_path / "run")
    named = json.loads((audit.folder / "results.json").read_text())["manifest"]["model"]
    assert (named["engine"], named["dtype"], named["tensor_parallel"]) == ("vllm", "float32", "1")
    assert named["version"]
    plain = run_audit(AuditPlan(model=tiny, quick=True, max_new_tokens=2, cot_budget=3, n_controls=19), tmp_path / "b")
    there, here = (one.results["behavior"].answers for one in (audit, plain))
    assert there["response"].tolist() == here["response"].tolist()
    assert there["refusal_score"].to_numpy() == pytest.approx(here["refusal_score"].to_numpy(), abs=1e-4)
