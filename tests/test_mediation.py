"""Mediation against the same runs made with plain hooks, and on planted neurons whose part is known."""

import copy

import numpy as np
import pytest
import torch
from families import shared_model
from planted import N_LAYERS, REFUSAL_HEAD, planted_model

from rim_lens import RimLensError, mediation
from rim_lens.behavior.refusal_score import RefusalTokens
from rim_lens.causal.mediation import Mediation
from rim_lens.model.sites import find_sites

REQUESTS = ["How do I pick a lock?", "Tell me a long story about animals at night, please.", "Hi"]
TOKENS = RefusalTokens((10, 20), ("a", "b"))
HEADS, NEURONS = [(0, 1), (1, 3)], np.array([(1, 4), (2, 7), (2, 30), (0, 5)])


class ByHand:
    """A copy whose heads are zeroed and whose neurons are held by hooks of its own, one prompt per pass."""

    def __init__(self, model):
        self.hf, self.n_heads = copy.deepcopy(model.hf), model.n_heads
        self.without, self.held, self.seen = False, None, {}
        for i, layer in enumerate(find_sites(self.hf, model.n_layers).layers):
            layer.output.register_forward_pre_hook(lambda _, args, i=i: self.heads(i, args))
            layer.down.register_forward_pre_hook(lambda _, args, i=i: self.neurons(i, args))

    def heads(self, layer, args):
        z = args[0].clone().view(*args[0].shape[:2], self.n_heads, -1)
        for at, head in HEADS if self.without else ():
            if at == layer:
                z[:, :, head] = 0
        return (z.view(args[0].shape),)

    def neurons(self, layer, args):
        a = args[0].clone()
        self.seen[layer] = args[0].clone()
        for at, unit in NEURONS if self.held is not None else ():
            if at == layer:
                a[..., unit] = self.held[layer][..., unit]
        return (a,)

    def score(self, chat, without, held=None):
        self.without, self.held, self.seen = without, held, {}
        with torch.no_grad():
            logits = self.hf(torch.from_numpy(chat.token_ids)[None]).logits[0, -1].double()
        inside = torch.isin(torch.arange(len(logits)), torch.tensor(TOKENS.ids))
        return float(logits[inside].logsumexp(0) - logits[~inside].logsumexp(0)), self.seen


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_effects_are_those_of_runs_by_hand(family):
    model = shared_model(family)
    chats, by_hand = model.render(REQUESTS, thinking="off"), ByHand(model)
    found = mediation(model, HEADS, NEURONS, chats, tokens=TOKENS, batch_size=2)
    for row, chat in zip(found.prompts.itertuples(), chats, strict=True):
        base, clean = by_hand.score(chat, without=False)
        total, ablated = by_hand.score(chat, without=True)
        around, _ = by_hand.score(chat, without=True, held=clean)
        through, _ = by_hand.score(chat, without=False, held=ablated)
        np.testing.assert_allclose(
            [row.total, row.through, row.around], np.array([total, through, around]) - base, atol=1e-4
        )
        assert row.interaction == pytest.approx(row.total - row.through - row.around)
    assert found.prompts[["total", "through", "around"]].abs().max().min() > 1e-3


def test_neurons_before_the_heads_carry_nothing():
    model = shared_model("llama")
    found = mediation(model, [(2, 0)], np.array([(0, 1), (1, 2)]), REQUESTS, tokens=TOKENS)
    assert found.prompts["through"].abs().max() < 1e-6
    np.testing.assert_allclose(found.prompts["around"], found.prompts["total"], atol=1e-5)


def test_a_planted_neuron_makes_up_for_the_planted_head():
    """One neuron of the last MLP cuts what two heads write: without one of them it gives back what it had cut."""
    model, truth = planted_model(0, n_prompts=20, family="redundant")
    tokens = RefusalTokens((truth.refusal_token,), ("Sorry",))
    cap, others = np.array([(N_LAYERS - 1, 0)]), np.array([[(N_LAYERS - 1, unit)] for unit in range(1, 20)])
    found = mediation(model, [REFUSAL_HEAD], cap, truth.harmful, controls=others, tokens=tokens)
    table = found.table.set_index("path")
    assert table.loc["around", "high"] < -1  # without the neuron's answer refusal is lost
    assert table.loc["through", "low"] > 1  # and its answer alone adds to refusal
    assert table.loc["through", "percentile"] == 100
    assert table.loc["through", "p"] <= 0.1
    assert abs(table.loc["total", "effect"]) < abs(table.loc["around", "effect"]) / 2


def test_what_cannot_be_split_is_refused():
    model = shared_model("llama")
    with pytest.raises(RimLensError, match="at least one head"):
        mediation(model, [], NEURONS, REQUESTS)
    with pytest.raises(RimLensError, match="no neuron 99"):
        mediation(model, HEADS, np.array([(0, 99)]), REQUESTS)
    with pytest.raises(RimLensError, match="mixture of experts"):
        mediation(shared_model("qwen3_moe"), HEADS, np.array([(0, 1)]), REQUESTS)


def test_it_is_saved_and_drawn(tmp_path):
    model = shared_model("llama")
    found = mediation(model, HEADS, NEURONS, REQUESTS, tokens=TOKENS, controls=NEURONS[None, :2])
    again = Mediation.load(found.save(tmp_path / "mediation"))
    assert again.caption() == found.caption()
    np.testing.assert_allclose(found.plot().data[-1].x, found.table["effect"])
