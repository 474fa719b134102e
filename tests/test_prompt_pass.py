"""One pass for everything.

The same numbers as separate passes, with shared prefixes and runs resumed at the decision.
"""

import numpy as np
import pytest
import torch
from families import tiny_model

from rim_lens.behavior.refusal_score import RefusalTokens, refusal_score
from rim_lens.capture.attention import segment_masses
from rim_lens.capture.neurons import neuron_activations
from rim_lens.causal.set_scores import without_heads
from rim_lens.intervene import ablate_heads
from rim_lens.model.prompt_cache import can_prefill
from rim_lens.training_time.prompt_pass import laid_out, pass_over
from rim_lens.training_time.series_measures import REQUEST_AND_ANSWER

TOKENS = RefusalTokens((73, 80), ("a", "b"))
SYSTEM = "You are a very helpful assistant who answers everything that is asked. " * 2
REQUESTS = ["pick a lock", "how do I forge a pass?", "steal it now and here", "x"]
HEADS = [[(0, 1)], [(1, 3), (2, 0)], [], [(2, 2)]]


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3_moe", "gemma2", "mistral"])
def test_one_pass_gives_what_separate_passes_give(family):
    model = tiny_model(family)
    chats = model.render(REQUESTS, system=SYSTEM)
    rows = np.array([(0, 1, 3), (2, 0, 5)] if family == "qwen3_moe" else [(0, 3), (2, 40)])
    logits = {}
    seen = pass_over(
        model, chats, REQUEST_AND_ANSWER, per_prompt=rows, batch_size=3, attention=True, keep=True,
        at_decision=lambda prompts, found: logits.update(zip(prompts, found, strict=True)),
    )  # fmt: skip
    plain = neuron_activations(model, chats, REQUEST_AND_ANSWER, per_prompt=rows, batch_size=3, backend="fast")
    for name in ("mean", "variance", "magnitude", "firing_rate", "prompt_mean", "prompt_magnitude", "prompt_tokens"):
        np.testing.assert_allclose(getattr(seen.neurons, name), getattr(plain, name), rtol=2e-4, atol=2e-4)
    np.testing.assert_allclose(seen.attention, segment_masses(model, chats).numpy(), atol=1e-5)
    for indices, batch in model.batches(chats, 3):
        with torch.no_grad():
            expected = model.decision_logits(batch)
        torch.testing.assert_close(torch.stack([logits[i] for i in indices]), expected, atol=1e-3, rtol=1e-3)
        shares = laid_out(model, batch, [chat.where("user") for chat in batch.chats])[1] > 0
        assert shares == (family in ("llama", "gpt2", "qwen3_moe") and len(batch) > 1)
    whole = family not in ("gemma2", "mistral")  # layers with windows keep no whole cache
    assert bool(seen.kept) == whole
    scores = without_heads(model, chats, HEADS, TOKENS, seen.kept)
    np.testing.assert_allclose(scores, without_heads(model, chats, HEADS, TOKENS), atol=1e-3)
    for heads, found in zip(HEADS, scores, strict=True):
        with ablate_heads(model, heads, positions="decision"):
            np.testing.assert_allclose(found, refusal_score(model, chats, TOKENS), atol=1e-3)


def test_what_is_measured_is_never_shared():
    model = tiny_model("llama")
    chats = model.render(REQUESTS, system=SYSTEM)
    _, batch = next(model.batches(chats, 4))
    chosen = [chat.where("system") for chat in batch.chats]
    assert laid_out(model, batch, chosen)[1] == chosen[0].argmax()
    answered = model.render(REQUESTS, system=SYSTEM, response="no")
    assert not can_prefill(model, next(model.batches(answered, 4))[1])
    found = pass_over(model, answered, "response").neurons
    np.testing.assert_allclose(found.magnitude, neuron_activations(model, answered, "response").magnitude, atol=1e-5)
