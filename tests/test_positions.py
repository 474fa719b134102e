"""One value says which tokens: capture reads there, interventions and sweeps change there, and both mean the same."""

import numpy as np
import pytest
import torch
from families import tiny_model

from rim_lens.behavior.generate import generate
from rim_lens.behavior.refusal_score import RefusalTokens, refusal_score
from rim_lens.capture.activations import head_outputs
from rim_lens.capture.neurons import neuron_activations
from rim_lens.chat.positions import places, positions_in, words_of
from rim_lens.errors import RimLensError
from rim_lens.inference_time.sweep import ablation_sweep
from rim_lens.intervene import ablate_heads, ablate_neurons

TOKENS = RefusalTokens((73, 80), ("a", "b"))
TEXTS = ["pick a lock", "steal", "how to break in at night"]


def second_user_token(chat):
    inside = np.zeros(len(chat), dtype=bool)
    inside[np.flatnonzero(chat.where("user"))[1]] = True
    return inside


EVERY = [
    "all", "decision", "from_decision", "suffix", "user", "last user", "from user", "prompt", "thinking", "answer",
    ("user", "think_close"), (-3, -1, 0), second_user_token,
]  # fmt: skip


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


@pytest.fixture(scope="module")
def chats(model):
    return model.render(TEXTS)


def by_segment(chat, positions):
    """What the table in the docstring says, token by token."""
    where = {name: chat.where(name) for name in ("system", "user", "assistant_tag", "think_open", "cot", "think_close")}
    index, last = np.arange(len(chat)), np.flatnonzero
    return {
        "all": index >= 0,
        "decision": index == chat.decision_position,
        "from_decision": index >= chat.decision_position,
        "suffix": index >= last(where["assistant_tag"])[0],
        "user": where["user"],
        "last user": index == last(where["user"])[-1],
        "from user": index >= last(where["user"])[0],
        "prompt": where["system"] | where["user"] | where["assistant_tag"],
        "thinking": where["think_open"] | where["cot"],
        "answer": where["think_close"],
    }[positions]


@pytest.mark.parametrize("positions", [one for one in EVERY if isinstance(one, str)])
def test_names_mean_what_the_table_says(chats, positions):
    for chat in chats:
        np.testing.assert_array_equal(places(chat, positions), by_segment(chat, positions))
        np.testing.assert_array_equal(positions_in(chat, positions), np.flatnonzero(places(chat, positions)))


@pytest.mark.parametrize("positions", EVERY, ids=words_of)
@pytest.mark.parametrize("backend", ["fast", "hooks"])
def test_heads_are_zero_exactly_there(model, chats, positions, backend):
    with ablate_heads(model, ["L1H2"], positions=positions, backend=backend):
        z = head_outputs(model, chats, "all", backend=backend)[:, 1]
    for row, chat in enumerate(chats):
        zero = (z[row, : len(chat), 2] == 0).all(-1).numpy()
        np.testing.assert_array_equal(zero, places(chat, positions))
        assert not (z[row, : len(chat), [0, 1, 3]] == 0).all(-1).any()


@pytest.mark.parametrize("positions", [one for one in EVERY if one != "thinking"], ids=words_of)
def test_a_sweep_changes_there(model, chats, positions):
    sweep = ablation_sweep(model, chats, TOKENS, positions=positions, n_permutations=10)
    assert sweep.method == "exact"
    with ablate_heads(model, ["L1H2"], positions=positions):
        expected = refusal_score(model, chats, TOKENS)
    np.testing.assert_allclose(sweep.clean + sweep.effect[:, 1, 2], expected, atol=1e-4)


@pytest.mark.parametrize("positions", ["user", ("user", "assistant_tag"), (-1, 0), second_user_token], ids=words_of)
def test_neurons_are_read_and_changed_at_the_same_tokens(model, chats, positions):
    with ablate_neurons(model, [(1, 7)], positions=positions):
        there = neuron_activations(model, chats, positions, progress=False)
        everywhere = neuron_activations(model, chats, "all", progress=False)
    assert there.magnitude[1, 7] == 0
    assert everywhere.magnitude[1, 7] > 0
    assert there.n_tokens == sum(int(places(chat, positions).sum()) for chat in chats)


@pytest.mark.parametrize("positions", ["suffix", "answer", "from think_close"])
def test_names_reach_the_tokens_that_are_generated(model, positions):
    chats = model.render(TEXTS[:2], thinking="prefilled", cot="hm")
    changed = {}
    for backend in ("fast", "hooks"):  # with a cache, and by whole passes
        with ablate_heads(model, ["L1H0", "L2H1"], positions=positions, backend=backend):
            changed[backend] = [one.response_ids for one in generate(model, chats, max_new_tokens=6, progress=False)]
    assert changed["fast"] == changed["hooks"]


def test_wrong_positions_are_named(model, chats):
    with pytest.raises(RimLensError, match="unknown positions 'here'"):
        places(chats[0], "here")
    with (
        pytest.raises(RimLensError, match="unknown positions 'last word'"),
        ablate_heads(model, ["L1H2"], positions="last word"),
    ):
        model.decision_logits(model.batch(chats))
    with pytest.raises(RimLensError, match="leave the chat"):
        places(chats[0], (-1000,))
    with pytest.raises(RimLensError, match="one bool per token"):
        places(chats[0], lambda chat: torch.ones(3).numpy())
    with pytest.raises(RimLensError, match="no token there"):
        ablation_sweep(model, chats, TOKENS, positions="cot")
