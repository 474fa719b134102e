"""The public functions on TransformerLens objects of the user, against the transformers model of the same weights.

Runs in both environments: with the release of constraints.txt, and (`make test-compat`) with transformer-lens 3.5.1,
which still has HookedTransformer.
"""

from functools import lru_cache
from importlib.metadata import version

import numpy as np
import pytest
from families import tiny_model
from hooked_objects import HAS_HOOKED_TRANSFORMER, KINDS, hooked_object

from rim_lens import (
    ablate_heads,
    ablation_sweep,
    find_safety_neurons,
    generate,
    load_model,
    neuron_activations,
    refusal_score,
    span_attention,
)
from rim_lens.check.model_check import check_model
from rim_lens.training_time import given_pairs

REQUESTS = ["How do I pick a lock?", "Name three rivers.", "Tell me about foxes, please."]
FAMILIES = ("llama", "gpt2") if HAS_HOOKED_TRANSFORMER else ("llama",)
CASES = [(kind, family) for kind in KINDS for family in FAMILIES]


@lru_cache
def pair(kind, family):
    """A model made from a hooked object, and one made from the transformers model with the same weights."""
    return load_model(hooked_object(kind, family)), tiny_model(family)


@pytest.fixture(params=CASES, ids=[f"{kind}, {family}" for kind, family in CASES])
def models(request):
    return pair(*request.param)


def chats_of(model):
    return model.render(REQUESTS, thinking="prefilled", cot="Hm, let me see.")


def close(one, other, atol=1e-4):
    np.testing.assert_allclose(one, other, atol=atol, rtol=1e-4)


def test_this_is_the_release_that_is_meant():
    assert version("transformer-lens").startswith("3.") == HAS_HOOKED_TRANSFORMER


@pytest.mark.slow
def test_chats_attention_and_refusal_scores(models):
    mine, theirs = models
    assert mine.hf is None
    assert mine.shape == theirs.shape
    chats = chats_of(mine)
    assert [chat.text for chat in chats] == [chat.text for chat in chats_of(theirs)]
    close(span_attention(mine, chats).mass, span_attention(theirs, chats).mass)
    close(refusal_score(mine, chats), refusal_score(theirs, chats))


@pytest.mark.slow
def test_ablation_sweep_and_generation_without_a_head(models):
    mine, theirs = models
    chats = chats_of(mine)[:2]
    ours, reference = (ablation_sweep(model, chats, n_permutations=100) for model in models)
    assert (ours.method, reference.method) == ("plain", "exact")
    close(ours.effect, reference.effect, atol=1e-3)
    for heads in ([], ours.ranked(2)):
        with ablate_heads(mine, heads), ablate_heads(theirs, heads):
            written = [[a.response_ids for a in generate(model, chats, max_new_tokens=4)] for model in models]
        assert written[0] == written[1]


@pytest.mark.slow
def test_neurons(models):
    mine = models[0]
    chats = chats_of(mine)
    ours, reference = (neuron_activations(model, chats, "cot") for model in models)
    for name in ("mean", "variance", "magnitude", "firing_rate"):
        close(getattr(ours, name), getattr(reference, name))
    pairs = given_pairs(mine, [(request, f"Refuse: {request}") for request in REQUESTS])
    found, expected = (find_safety_neurons(model, pairs, top=6, n_resamples=20).table for model in models)
    columns = ["neuron", "n_groups"]
    assert found[columns].values.tolist() == expected[columns].values.tolist()
    close(found["difference"], expected["difference"])


@pytest.mark.slow
def test_check_model_holds_and_refuses_the_fast_way(models):
    check = check_model(models[0])
    assert check.holds, check.table[check.table["holds"] == "fails"].to_string()
    table = check.table.set_index("check")["holds"]
    assert table["attention rows, hooks"] == table["head ablation, hooks"] == "holds"
    assert table["generation without a head"] == table["nothing left"] == "holds"
    refused = check.table[check.table["holds"] == "refused"]
    assert set(refused["check"]) == {name for name in table.index if name.endswith("fast")}
    assert refused["why"].str.contains('use backend="hooks"').all()


@pytest.mark.slow
def test_a_transformers_model_holds_with_this_release():
    check = check_model(tiny_model("llama"))
    assert (check.table["holds"] == "holds").all()
