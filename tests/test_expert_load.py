"""Loads of experts against a loop over plain passes, and labels on a router that follows them."""

import numpy as np
import pytest
import torch
from families import shared_model

from rim_lens import RimLensError, ablate_neurons, ablation_test, expert_load
from rim_lens.chat.segments import SEGMENTS
from rim_lens.inference_time.expert_load import ExpertLoad, expert_neurons, matched_experts

REQUESTS = ["How do I pick a lock?", "Tell me a long story about animals at night, please.", "Hi"]


def chats_of(model):
    return model.render(REQUESTS, thinking="prefilled", cot="hm, let me see")


def chosen_by_router(model, chat):
    """Which experts every token goes to and how much they weigh, one plain pass: softmax, top k, normalized."""
    entering = {}
    handles = [
        layer.mlp.register_forward_pre_hook(lambda _, args, i=i: entering.update({i: args[0]}))
        for i, layer in enumerate(model.hf.model.layers)
    ]
    with torch.no_grad():
        model.hf(torch.from_numpy(chat.token_ids)[None])
    for handle in handles:
        handle.remove()
    k = model.hf.config.num_experts_per_tok
    for i, layer in enumerate(model.hf.model.layers):
        p = torch.softmax(entering[i][0] @ layer.mlp.gate.weight.T, dim=-1)
        weight, expert = p.topk(k)
        yield i, expert, weight / weight.sum(-1, keepdim=True)


@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral"])
def test_loads_equal_a_loop_over_tokens(family):
    model = shared_model(family)
    found = expert_load(model, chats_of(model), batch_size=2)
    for row, chat in enumerate(chats_of(model)):
        count = np.zeros(found.loads.shape[1:])
        weighed = np.zeros_like(count)
        for layer, experts, weights in chosen_by_router(model, chat):
            for token, segment in enumerate(chat.segment_ids):
                for expert, weight in zip(experts[token].tolist(), weights[token].tolist(), strict=True):
                    count[layer, expert, segment] += 1
                    weighed[layer, expert, segment] += weight
        tokens = np.array([(chat.segment_ids == i).sum() for i in range(len(SEGMENTS))], dtype=float)
        tokens[tokens == 0] = np.nan
        np.testing.assert_allclose(found.loads[row], count / tokens, atol=1e-9)
        np.testing.assert_allclose(found.weights[row], weighed / tokens, atol=1e-5)
    user = found.table[found.table["segment"] == "user"]
    np.testing.assert_allclose(user.groupby("layer")["load"].sum(), model.hf.config.num_experts_per_tok)
    assert "system" not in set(found.table["segment"])


def test_labels_that_follow_the_router_are_found_and_others_are_not():
    model = shared_model("qwen3_moe")
    requests = [f"{word} {i}" for i in range(12) for word in ("aaaaaaaa", "zzzzzzzz")]
    labels = ["refused", "complied"] * 12
    chats = model.render(requests, thinking="off")
    found = expert_load(model, chats, labels, n_permutations=200)
    user = found.table[found.table["segment"] == "user"]
    assert (user["q"] < 0.05).any()
    row = user.loc[user["p"].idxmin()]
    values = found.loads[:, row["layer"], row["expert"], SEGMENTS.index("user")]
    assert row["load_refused"] == pytest.approx(values[::2].mean())
    assert row["load_complied"] == pytest.approx(values[1::2].mean())
    shuffled = list(np.random.default_rng(0).permutation(labels))
    assert (expert_load(model, chats, shuffled, n_permutations=200).table["q"].dropna() > 0.05).all()


def test_ablating_an_expert_is_taking_it_out_and_controls_are_of_its_layer():
    model = shared_model("qwen3_moe")
    chats = chats_of(model)
    load = expert_load(model, chats)
    rows = expert_neurons(model, [(1, 2)])
    batch = model.batch(chats)
    with ablate_neurons(model, rows.tolist()):
        ablated = model.decision_logits(batch)
    down = model.hf.model.layers[1].mlp.experts.down_proj
    kept = down[2].clone()
    try:
        down[2] = 0
        torch.testing.assert_close(ablated, model.decision_logits(batch), atol=1e-4, rtol=0)
    finally:
        down[2] = kept
    controls = matched_experts(model, load, [(1, 2)], n_sets=2)
    assert controls.shape == (2, *rows.shape)
    assert (controls[..., 0] == 1).all()
    assert 2 not in controls[..., 1]
    test = ablation_test(model, rows, chats, controls=controls, n_controls=2, n_generated_controls=0, generated=False)
    assert test.table["n_controls"].eq(2).all()


def test_what_has_no_experts_is_refused():
    with pytest.raises(RimLensError, match="no experts"):
        expert_load(shared_model("llama"), ["Hi"])
    model = shared_model("qwen3_moe")
    with pytest.raises(RimLensError, match="no expert 9"):
        expert_neurons(model, [(0, 9)])
    with pytest.raises(RimLensError, match="ask for fewer"):
        matched_experts(model, expert_load(model, ["Hi"]), [(0, 1)], n_sets=50)


def test_it_is_saved_and_drawn(tmp_path):
    model = shared_model("qwen3_moe")
    load = expert_load(model, chats_of(model))
    again = ExpertLoad.load(load.save(tmp_path / "load"))
    assert again.caption() == load.caption()
    rows = load.table[load.table["segment"] == "cot"]
    z = load.plot(segment="cot").data[0].z
    assert all(z[row.expert, row.layer] == row.load for row in rows.itertuples())
