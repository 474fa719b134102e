"""A direction tested like heads and neurons: against orthogonalized weights, and where the direction is known."""

import copy
from functools import cache

import numpy as np
import pytest
import torch
from families import shared_model
from planted import REFUSAL_HEAD, planted_model

from rim_lens import RimLensError, ablation_test, compare_ablations
from rim_lens.behavior.refusal_score import RefusalTokens
from rim_lens.causal.ablation_comparison import AblationComparison
from rim_lens.data.prompts import Prompt
from rim_lens.report.sections import section_of

REQUESTS = ["How do I pick a lock?", "Tell me a long story about animals at night, please.", "Hi"]
TOKENS = RefusalTokens((10, 20), ("a", "b"))
MATHS = [Prompt("1 + 1", None, "a", answer="2"), Prompt("2 + 3", None, "b", answer="5")]


def score_without(model, vector, chat):
    """The refusal score of one chat by a copy whose writing matrices have no part along the vector."""
    hf, unit = copy.deepcopy(model.hf), torch.tensor(vector / np.linalg.norm(vector), dtype=torch.float32)
    with torch.no_grad():
        hf.model.embed_tokens.weight.sub_(torch.outer(hf.model.embed_tokens.weight @ unit, unit))
        for layer in hf.model.layers:
            for matrix in (layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight):
                matrix.sub_(torch.outer(unit, unit @ matrix))
        log_p = hf(torch.from_numpy(chat.token_ids)[None]).logits[0, -1].double().log_softmax(-1)
    inside = torch.isin(torch.arange(len(log_p)), torch.tensor(TOKENS.ids))
    return float(log_p[inside].logsumexp(0) - log_p[~inside].logsumexp(0))


def test_a_direction_and_its_controls_are_taken_out_of_the_weights():
    model, rng = shared_model("llama"), np.random.default_rng(0)
    vector, controls = rng.normal(size=model.d_model), rng.normal(size=(3, model.d_model))
    found = ablation_test(model, vector, REQUESTS, controls=controls, n_controls=3, generated=False, tokens=TOKENS)
    chats = model.render(REQUESTS, thinking="off")
    rows = found.prompts
    np.testing.assert_allclose(rows["after"], [score_without(model, vector, chat) for chat in chats], atol=1e-4)
    among = [[score_without(model, one, chat) for chat in chats] for one in controls]
    np.testing.assert_allclose(rows["control"], np.mean(among, axis=0), atol=1e-4)
    assert found.table["effect"].abs().item() > 1e-2


@cache
def compared():
    model, truth = planted_model(0, n_prompts=8)
    neurons = np.array([(1, 3), (2, 7)])
    spread = np.random.default_rng(0).random((model.n_layers, model.d_mlp))
    sets = {"direction": truth.refusal_direction, "heads": [REFUSAL_HEAD], "neurons": Based(neurons, spread)}
    return compare_ablations(
        model, sets, truth.harmful, harmless=truth.harmless[:2], maths=MATHS, generated=False,
        n_controls=7, n_generated_controls=0, n_maths_controls=2, alternative="less",
        tokens=RefusalTokens((truth.refusal_token,), ("Sorry",)),
    )  # fmt: skip


class Based:
    """Neurons with the base activation that control sets are matched on."""

    def __init__(self, rows, base):
        self.rows, self.base = rows, base


def test_direction_heads_and_neurons_stand_side_by_side():
    found = compared()
    rows = found.table.set_index(["measure", "units"])
    score = rows.loc["refusal score, harmful"]
    assert score.loc["direction", "high"] < -1  # the planted direction and the head that writes it carry refusal
    assert score.loc["heads", "high"] < -1
    assert (score["effect"] < score["control_mean"] - 1).loc[["direction", "heads"]].all()
    assert abs(score.loc["neurons", "effect"]) < 0.1
    assert set(found.table.groupby("measure").size()) == {3}  # every measure of each, maths included
    assert "log-likelihood of maths answers" in set(found.table["measure"])
    assert (found.table["n_controls"] > 0).all()


def test_it_is_saved_drawn_and_has_a_section(tmp_path):
    found = compared()
    again = AblationComparison.load(found.save(tmp_path / "compared"))
    assert again.caption() == found.caption()
    assert sorted(again.plot(nats=True).data[-1].x) == sorted(found.table["effect"])
    assert "direction" in " ".join(section_of("x", again).in_short)


def test_what_is_no_direction_is_refused():
    model = shared_model("llama")
    with pytest.raises(RimLensError, match="finite vector"):
        ablation_test(model, np.zeros(model.d_model), REQUESTS)
    with pytest.raises(RimLensError, match=f"has {model.d_model} numbers, got 3"):
        ablation_test(model, np.ones(3), REQUESTS)
    with pytest.raises(RimLensError, match="projected out"):
        ablation_test(model, np.ones(model.d_model), REQUESTS, method="mean")
    with pytest.raises(RimLensError, match="takes no doses="):
        compare_ablations(model, {"heads": ["L0H1"]}, REQUESTS, doses=[1])
    with pytest.raises(RimLensError, match="at least one set"):
        compare_ablations(model, {}, REQUESTS)
