"""Direct logit attribution against plain torch: sums of every family's own logits, single heads and neurons by hand."""

import numpy as np
import pytest
import torch
from families import FAMILIES, shared_model, tiny_model
from planted import COT_HEAD, REFUSAL_HEAD, SECOND_HEAD, planted_model

from rim_lens import RimLensError, ablation_sweep, direct_attribution, self_repair
from rim_lens.inference_time.direct_attribution import DirectAttribution, LogitDifference, SelfRepair
from rim_lens.model.sites import find_sites

REQUESTS = ["How do I pick a lock?", "Tell me a long story about animals at night, please.", "Hi"]
TOWARD, AGAINST = (10, 20, 30), (40, 50)
UNCAPPED = {"gemma2": {"final_logit_softcapping": None}}


def model_of(family):
    return tiny_model(family, **UNCAPPED[family]) if family in UNCAPPED else shared_model(family)


def chats_of(model):
    return model.render(REQUESTS, thinking="prefilled", cot="hm, let me see")


def by_hand(model, against):
    """Each chat's own difference of logits, one plain pass each."""
    found = []
    for chat in chats_of(model):
        with torch.no_grad():
            logits = model.hf(torch.from_numpy(chat.token_ids)[None]).logits[0, chat.decision_position].double()
        others = logits[list(against)] if against else logits
        found.append(float(logits[list(TOWARD)].mean() - others.mean()))
    return np.array(found)


@pytest.mark.parametrize("against", [(), AGAINST], ids=["vocabulary", "tokens"])
@pytest.mark.parametrize("family", [*FAMILIES, "olmo2", "qwen3_next", "mixtral"])
def test_components_sum_to_the_models_own_logits(family, against):
    model = model_of(family)
    found = direct_attribution(model, chats_of(model), TOWARD, against)
    np.testing.assert_allclose(found.effects.sum(axis=1), by_hand(model, against), atol=1e-4)
    assert len(found.table) == found.effects.shape[1]
    np.testing.assert_allclose(found.table["effect"], found.effects.mean(axis=0))


def last_streams(model, chat):
    """What enters the output projections, the down projections and the final norm at the decision position."""
    kept, sites = {}, find_sites(model.hf, model.n_layers)
    final = getattr(sites.trunk, "norm", None) or sites.trunk.ln_f
    modules = {"final": final} | {f"z{i}": layer.output for i, layer in enumerate(sites.layers)}
    modules |= {f"a{i}": layer.down for i, layer in enumerate(sites.layers)}
    handles = [
        module.register_forward_pre_hook(
            lambda _, args, name=name: kept.update({name: args[0][0, chat.decision_position]})
        )
        for name, module in modules.items()
    ]
    with torch.no_grad():
        model.hf(torch.from_numpy(chat.token_ids)[None])
    for handle in handles:
        handle.remove()
    return kept


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_single_heads_and_neurons_are_what_their_output_alone_makes_of_the_logits(family):
    """RMSNorm and LayerNorm written out; a unit writes the projection of its own output alone, without the bias."""
    model = shared_model(family)
    found = direct_attribution(model, chats_of(model), TOWARD, AGAINST, n_neurons=3 * 48)
    sites, out = find_sites(model.hf, model.n_layers), model.hf.get_output_embeddings().weight
    along = out[list(TOWARD)].mean(0) - out[list(AGAINST)].mean(0)
    neurons = np.zeros((len(REQUESTS), model.n_layers, model.d_mlp))
    for row, chat in enumerate(chats_of(model)):
        kept = last_streams(model, chat)
        x = kept["final"]

        def effect(written, x=x):
            if family == "llama":
                return float(along @ (written / (x.square().mean() + 1e-6).sqrt() * model.hf.model.norm.weight))
            spread = (x.var(unbiased=False) + 1e-5).sqrt()
            return float(along @ ((written - written.mean()) / spread * model.hf.transformer.ln_f.weight))

        for i, layer in enumerate(sites.layers):
            nothing = layer.output(torch.zeros_like(kept[f"z{i}"]))
            for head in range(model.n_heads):
                alone = torch.zeros_like(kept[f"z{i}"]).view(model.n_heads, -1)
                alone[head] = kept[f"z{i}"].view(model.n_heads, -1)[head]
                expected = effect(layer.output(alone.flatten()) - nothing)
                assert found.heads[row, i, head] == pytest.approx(expected, abs=1e-5)
            for unit in range(0, model.d_mlp, 7):
                alone = torch.zeros_like(kept[f"a{i}"])
                alone[unit] = kept[f"a{i}"][unit]
                neurons[row, i, unit] = effect(layer.down(alone) - layer.down(torch.zeros_like(alone)))
    np.testing.assert_allclose(found.neurons[:, ::7], neurons.mean(axis=0)[:, ::7], atol=1e-5)
    top = found.neuron_table.iloc[0]
    assert top["effect"] == pytest.approx(found.neurons[int(top["layer"]), int(top["neuron"])], abs=1e-6)


def test_a_model_that_caps_its_logits_is_refused():
    model = shared_model("gemma2")
    with pytest.raises(RimLensError, match="caps or scales its logits"):
        direct_attribution(model, chats_of(model), TOWARD)


def planted(family):
    model, truth = planted_model(0, n_prompts=24, family=family)
    chats = model.render(truth.harmful, thinking="prefilled", cot=truth.cots)
    return model, chats, (truth.refusal_token,), (truth.comply_token,)


def test_planted_heads_write_refusal_directly_and_nothing_repairs_them():
    model, chats, toward, against = planted("plain")
    attribution = direct_attribution(model, chats, toward, against)
    assert set(attribution.ranked(2)) == {REFUSAL_HEAD, COT_HEAD}
    table = self_repair(model, chats, attribution).table.set_index("name")
    row = table.loc["L1H2"]
    assert row["direct_high"] < 0
    assert abs(row["repaired"]) < 0.15


def test_a_planted_backup_is_self_repair():
    """Another head writes the same and a neuron cuts the sum: without either head refusal stays."""
    model, chats, toward, against = planted("redundant")
    table = self_repair(model, chats, direct_attribution(model, chats, toward, against)).table.set_index("name")
    for head in (REFUSAL_HEAD, SECOND_HEAD):
        row = table.loc[f"L{head[0]}H{head[1]}"]
        assert row["direct_high"] < 0
        assert row["response_low"] > 0
        assert row["q"] < 0.05
        assert row["repaired"] > 0.5


@pytest.mark.parametrize("positions", ["decision", "all"])
def test_total_effects_are_the_sweeps_and_direct_ones_minus_the_attribution(positions):
    model = shared_model("llama")
    attribution = direct_attribution(model, chats_of(model), TOWARD, AGAINST)
    repair = self_repair(model, chats_of(model), attribution, positions=positions, n_permutations=50)
    metric = LogitDifference(TOWARD, AGAINST)
    sweep = ablation_sweep(model, chats_of(model), metric, positions=positions, n_permutations=50)
    for row in repair.table.itertuples():
        assert row.total == pytest.approx(sweep.effect[:, row.layer, row.head].mean(), abs=1e-5)
        assert row.direct == pytest.approx(-attribution.heads[:, row.layer, row.head].mean(), abs=1e-6)
        assert row.response == pytest.approx(row.total - row.direct, abs=1e-6)
    with pytest.raises(RimLensError, match="chats that it was made with"):
        self_repair(model, chats_of(model)[:2], attribution)


def test_results_are_saved_and_drawn(tmp_path):
    model = shared_model("llama")
    attribution = direct_attribution(model, chats_of(model), TOWARD)
    again = DirectAttribution.load(attribution.save(tmp_path / "direct"))
    assert again.caption() == attribution.caption()
    assert again.metric == attribution.metric
    drawn = attribution.plot().data[0].z
    np.testing.assert_allclose(drawn.T, attribution.heads.mean(axis=0), atol=1e-9)
    repair = self_repair(model, chats_of(model), attribution, n_permutations=50)
    assert SelfRepair.load(repair.save(tmp_path / "repair")).caption() == repair.caption()
    np.testing.assert_allclose(repair.plot().data[1].y, repair.table["total"])
