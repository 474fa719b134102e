"""The bundled model in vLLM and in transformers: the same calls, the same numbers, float32 and greedy.

`make bench-engine` compares more prompts and longer answers.
"""

from contextlib import ExitStack

import numpy as np
import pytest

from rim_lens.behavior.generate import generate
from rim_lens.behavior.measure import measure_rim
from rim_lens.behavior.refusal_score import refusal_score, sequence_refusal_score
from rim_lens.capture.activations import head_outputs, residuals
from rim_lens.capture.neurons import neuron_activations
from rim_lens.causal.ablation_test import ablation_test
from rim_lens.data.prompts import as_prompt_set
from rim_lens.errors import RimLensError
from rim_lens.inference_time.span_attention import span_attention
from rim_lens.intervene.heads import ablate_heads, patch_heads, scale_heads
from rim_lens.intervene.knock_out import knock_out
from rim_lens.intervene.neurons import ablate_neurons, scale_neurons
from rim_lens.intervene.recording import record_heads

HEADS = [(3, 1), (5, 0), (12, 4), (20, 8)]
NEURONS = [(4, 7), (9, 100), (21, 1500)]
SHORT = {"max_new_tokens": 4, "cot_budget": 6}


@pytest.fixture(scope="module")
def prompts():
    sets = (list(as_prompt_set(name, 8, 0, name=name)) for name in ("harmful", "harmless"))
    return [prompt.text for one in sets for prompt in one]


def shown(generation):
    return generation.chat.token_ids.tolist(), list(generation.response_ids), generation.closed, generation.cut


def equal(engine, here, prompts, **options):
    """How many answers are equal, token for token."""
    pairs = zip(generate(engine, prompts, **options), generate(here, prompts, **options), strict=True)
    return sum(shown(a) == shown(b) for a, b in pairs)


CHANGES = {
    "whole": [],
    "heads zeroed": [lambda m: ablate_heads(m, HEADS)],
    "neurons zeroed": [lambda m: ablate_neurons(m, NEURONS)],
    "both, from the decision position": [
        lambda m: ablate_heads(m, HEADS, positions="from_decision"),
        lambda m: scale_neurons(m, NEURONS, 3.0, positions="from_decision"),
    ],
    "at the decision position": [lambda m: scale_heads(m, HEADS, -1.0, positions="decision")],
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=list(CHANGES))
def test_greedy_answers_and_scores_are_equal(engine, here, prompts, change):
    with ExitStack() as stack:
        for one in change:
            stack.enter_context(one(engine))
            stack.enter_context(one(here))
        assert equal(engine, here, prompts, thinking="on", **SHORT) == len(prompts)
        np.testing.assert_allclose(refusal_score(engine, prompts), refusal_score(here, prompts), atol=1e-4)
    assert engine.active_taps == []
    assert engine.engine.call("lens_hooks") == [0]


def test_requests_of_one_batch_have_changes_of_their_own(engine, here, prompts):
    sets = [(HEADS[:2], []), (HEADS[2:], NEURONS), ([], NEURONS[1:]), ([], [])]
    some = prompts[:4]
    rows = [units for units in sets for _ in some]
    with ablate_heads(engine, [heads for heads, _ in rows]), ablate_neurons(engine, [neurons for _, neurons in rows]):
        mixed = [shown(one) for one in generate(engine, [one for _ in sets for one in some], **SHORT)]
    for number, (heads, neurons) in enumerate(sets):
        with ablate_heads(here, heads), ablate_neurons(here, neurons):
            one_by_one = [shown(one) for one in generate(here, some, **SHORT)]
        assert mixed[number * 4 : number * 4 + 4] == one_by_one


def test_numbers_of_a_request_do_not_depend_on_its_batch(engine, prompts):
    with ablate_heads(engine, HEADS):
        together = [shown(one) for one in generate(engine, prompts, **SHORT)]
        assert [shown(generate(engine, [one], **SHORT)[0]) for one in prompts[:3]] == together[:3]
        scores = refusal_score(engine, prompts)[:3]
        np.testing.assert_allclose([refusal_score(engine, [one])[0] for one in prompts[:3]], scores, atol=1e-4)
    masses = span_attention(engine, prompts[:6]).mass
    np.testing.assert_allclose(span_attention(engine, prompts[:1]).mass[0], masses[0], atol=1e-4)


def test_readings_are_equal(engine, here, prompts):
    some = prompts[:6]
    chats = here.render(some, thinking="prefilled", cot="I think about it.")
    a, b = (span_attention(m, chats) for m in (engine, here))
    np.testing.assert_allclose(a.mass, b.mass, atol=1e-4)
    for read in (
        lambda m: neuron_activations(m, some, "all", progress=False).mean,
        lambda m: residuals(m, some).numpy(),
        lambda m: head_outputs(m, some).numpy(),
        lambda m: sequence_refusal_score(m, some[:2]),
    ):
        there, mine = read(engine), read(here)
        np.testing.assert_allclose(there, mine, atol=1e-4 * max(1.0, np.abs(mine).max()))


def test_patching_and_knock_out_are_equal(engine, here, prompts):
    recording = record_heads(here, prompts[:1])
    for change in (
        lambda m: patch_heads(m, HEADS, recording),
        lambda m: knock_out(m, HEADS, "user"),
    ):
        with change(engine), change(here):
            np.testing.assert_allclose(
                refusal_score(engine, prompts[1:5]), refusal_score(here, prompts[1:5]), atol=1e-4
            )


def test_knock_out_while_writing_is_one_sentence(engine, prompts):
    with knock_out(engine, HEADS, "user"), pytest.raises(RimLensError, match="cannot be made while vLLM writes"):
        generate(engine, prompts[:1])


def test_ablation_test_and_measure_rim_are_equal(engine, here, prompts):
    options = {"n_controls": 3, "n_generated_controls": 2, "max_new_tokens": 4}
    a, b = (ablation_test(m, HEADS, prompts[:4], **options) for m in (engine, here))
    np.testing.assert_allclose(a.table["effect"], b.table["effect"], atol=1e-4)
    np.testing.assert_allclose(a.controls["effect"], b.controls["effect"], atol=1e-4)
    a, b = (measure_rim(m, n=3, max_new_tokens=4, maths_tokens=4, cot_budget=4) for m in (engine, here))
    assert a.answers["response"].tolist() == b.answers["response"].tolist()
    np.testing.assert_allclose(a.answers["refusal_score"], b.answers["refusal_score"], atol=1e-4)
    assert a.manifest.model["engine"] == "vllm"
