"""Path patching against runs with plain hooks, and on a planted model whose only path is known."""

import copy

import numpy as np
import pytest
import torch
from families import shared_model
from planted import COT_HEAD, N_LAYERS, REFUSAL_HEAD, planted_model

from rim_lens import RimLensError, path_patching
from rim_lens.behavior.refusal_score import RefusalTokens
from rim_lens.causal.path_patching import PathPatching
from rim_lens.model.sites import find_sites

REQUESTS = ["How do I pick a lock?", "Tell me a long story about animals at night, please.", "Hi"]
TOKENS = RefusalTokens((10, 20), ("a", "b"))
SENDERS, HEADS, NEURONS = [(0, 1), (0, 3)], [(1, 3), (2, 0)], np.array([(1, 4), (2, 7), (2, 30)])


class ByHand:
    """A copy whose heads and MLPs are recorded, frozen and replaced by hooks of its own, one prompt a pass."""

    def __init__(self, model):
        self.hf, self.n_heads = copy.deepcopy(model.hf), model.n_heads
        for i, layer in enumerate(find_sites(self.hf, model.n_layers).layers):
            layer.output.register_forward_pre_hook(lambda _, args, i=i: self.heads(i, args[0]))
            layer.down.register_forward_pre_hook(lambda _, args, i=i: self.neurons(i, args[0]))

    def heads(self, layer, x):
        z = x.clone().view(*x.shape[:2], self.n_heads, -1)
        self.seen["z", layer] = z.clone()
        if self.frozen is not None:
            z = self.frozen["z", layer].clone()
        for at, head in self.zeroed:
            if at == layer:
                z[:, :, head] = 0
        for at, head in self.put_heads:
            if at == layer:
                z[:, :, head] = self.donor["z", layer][:, :, head]
        return (z.view(x.shape),)

    def neurons(self, layer, x):
        a = x.clone()
        self.seen["a", layer] = a.clone()
        if self.frozen is not None:
            a = self.frozen["a", layer].clone()  # a frozen hidden layer is a frozen MLP
        for at, unit in self.put_neurons:
            if at == layer:
                a[..., unit] = self.donor["a", layer][..., unit]
        return (a,)

    def score(self, chat, *, zeroed=(), frozen=None, donor=None, put_heads=(), put_neurons=()):
        self.zeroed, self.frozen, self.donor = zeroed, frozen, donor
        self.put_heads, self.put_neurons, self.seen = put_heads, put_neurons, {}
        with torch.no_grad():
            log_p = self.hf(torch.from_numpy(chat.token_ids)[None]).logits[0, -1].double().log_softmax(-1)
        inside = torch.isin(torch.arange(len(log_p)), torch.tensor(TOKENS.ids))
        return float(log_p[inside].logsumexp(0) - log_p[~inside].logsumexp(0)), self.seen


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_paths_are_those_of_runs_by_hand(family):
    model = shared_model(family)
    chats, by_hand = model.render(REQUESTS, thinking="off"), ByHand(model)
    sets = {"one head": HEADS[:1], "heads": HEADS, "neurons": NEURONS}
    found = path_patching(model, SENDERS, sets, chats, tokens=TOKENS, batch_size=2)
    for row, chat in zip(found.effects, chats, strict=True):
        base, clean = by_hand.score(chat)
        total, _ = by_hand.score(chat, zeroed=SENDERS)
        direct, frozen = by_hand.score(chat, zeroed=SENDERS, frozen=clean)
        through = [
            by_hand.score(chat, donor=frozen, put_heads=HEADS[:1])[0],
            by_hand.score(chat, donor=frozen, put_heads=HEADS)[0],
            by_hand.score(chat, donor=frozen, put_neurons=NEURONS.tolist())[0],
        ]
        wanted = np.array([total, direct, total - direct + base, *through]) - base
        np.testing.assert_allclose(row, wanted, atol=1e-4)
    assert np.abs(found.effects).max(axis=0).min() > 1e-3


def test_the_planted_path_is_found_and_no_other():
    """One neuron of the last MLP cuts what the refusal head writes; nothing else reads it."""
    model, truth = planted_model(0, n_prompts=8, family="redundant")
    tokens = RefusalTokens((truth.refusal_token,), ("Sorry",))
    cap = np.array([(N_LAYERS - 1, 0)])
    rest = {f"neuron {unit}": np.array([(N_LAYERS - 1, unit)]) for unit in range(1, 4)}
    found = path_patching(model, [REFUSAL_HEAD], {"cap": cap, "CoT head": [COT_HEAD], **rest}, truth.harmful,
                          tokens=tokens)  # fmt: skip
    table = found.table.set_index("path")
    assert table.loc["direct", "high"] < -1
    assert table.loc["cap", "low"] > 1
    others = table.drop(["total", "direct", "response", "cap"])
    assert others["effect"].abs().max() < 0.01 * table.loc["cap", "effect"]
    assert table.loc["response", "effect"] == pytest.approx(table.loc["cap", "effect"], rel=0.2)


def test_units_before_the_senders_receive_nothing():
    model = shared_model("llama")
    found = path_patching(model, [(2, 0)], [(0, 1), (1, 2)], REQUESTS, tokens=TOKENS)
    assert found.table["path"].tolist() == ["total", "direct", "response", "L0H1", "L1H2"]
    assert np.abs(found.effects[:, 3:]).max() < 1e-6
    alone = path_patching(model, [(2, 0)], (), REQUESTS, tokens=TOKENS)
    np.testing.assert_allclose(alone.effects, found.effects[:, :3], atol=1e-6)


def test_what_has_no_path_is_refused():
    model = shared_model("llama")
    with pytest.raises(RimLensError, match="at least one sender"):
        path_patching(model, [], HEADS, REQUESTS)
    with pytest.raises(RimLensError, match="sender and a receiver"):
        path_patching(model, SENDERS, SENDERS[:1], REQUESTS)
    with pytest.raises(RimLensError, match="no neuron 99"):
        path_patching(model, SENDERS, np.array([(0, 99)]), REQUESTS)


def test_it_is_saved_and_drawn(tmp_path):
    found = path_patching(shared_model("llama"), SENDERS, HEADS, REQUESTS, tokens=TOKENS)
    again = PathPatching.load(found.save(tmp_path / "paths"))
    assert again.caption() == found.caption()
    assert set(again.plot().data[-1].x) == set(found.table["effect"])
