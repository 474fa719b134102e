"""The refusal direction on a model whose direction is planted, its choice and tests against loops of plain passes."""

import copy
from functools import cache

import numpy as np
import pytest
import torch
from planted import planted_model

from rim_lens import RefusalJudge, RimLensError, refusal_direction
from rim_lens.behavior.refusal_score import RefusalTokens
from rim_lens.inference_time.refusal_direction import RefusalDirection
from rim_lens.plots.direction import direction_map


@cache
def planted():
    """Model, truth, requests that it refuses (no soft words), harmless ones, refusal tokens."""
    model, truth = planted_model(0, n_prompts=60)
    harmful = [one for one, soft in zip(truth.harmful, truth.n_soft, strict=True) if soft == 0]
    harmful = list(dict.fromkeys([*harmful, *(one + " now" for one in harmful)]))[:20]
    tokens = RefusalTokens((truth.refusal_token,), ("Sorry",))
    return model, truth, harmful, truth.harmless[:20], tokens


def found(**options):
    model, _, harmful, harmless, tokens = planted()
    defaults = {"tokens": tokens, "n_controls": 20, "kl_limit": 2.0, "least_induced": -20.0, "last_layer": 1.0}
    return refusal_direction(model, harmful, harmless, **(defaults | options))


@cache
def one_found():
    return found()


def test_the_planted_direction_is_found_where_it_is_written():
    direction, truth = one_found(), planted()[1]
    unit = direction.vector / np.linalg.norm(direction.vector)
    assert abs(unit @ truth.refusal_direction) > 0.9
    assert direction.layer >= 2  # the refusal head is in layer 1
    test = direction.table.set_index(["change", "measure", "controls"])
    for controls in ("random directions", "shuffled labels"):
        out = test.loc[("project_out", "refusal score, harmful", controls)]
        assert out["high"] < 0
        assert out["p"] < 0.1
        added = test.loc[("add", "refusal score, harmless", controls)]
        assert added["low"] > 0
        assert added["p"] < 0.1
    assert test["n"].eq(8).all()


def plain_score(hf, model, requests, token):
    """Log-odds of one token after each request, one plain pass each."""
    scores = []
    for request in requests:
        (chat,) = model.render([request], thinking="off")
        logits = hf(torch.from_numpy(chat.token_ids)[None]).logits[0, -1].double()
        others = torch.cat([logits[:token], logits[token + 1 :]])
        scores.append(float(logits[token] - others.logsumexp(0)))
    return scores


@torch.no_grad()
def test_effects_on_test_prompts_are_those_of_orthogonalized_weights():
    """The same split is drawn here; weights are changed by hand, and no code of the package runs in the passes."""
    model, truth, harmful, _, _ = planted()
    direction = one_found()
    order = np.random.default_rng(0).permutation(len(harmful))
    test = [harmful[i] for i in order[12:]]
    unit = torch.from_numpy(direction.vector / np.linalg.norm(direction.vector)).float()
    hf = copy.deepcopy(model.hf)
    hf.model.embed_tokens.weight -= torch.outer(hf.model.embed_tokens.weight @ unit, unit)
    for layer in hf.model.layers:
        for matrix in (layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight):
            matrix -= torch.outer(unit, unit @ matrix)
    row = direction.table.iloc[0]
    assert row["before"] == pytest.approx(np.mean(plain_score(model.hf, model, test, truth.refusal_token)), abs=1e-4)
    assert row["after"] == pytest.approx(np.mean(plain_score(hf, model, test, truth.refusal_token)), abs=1e-4)


def test_the_chosen_candidate_is_the_lowest_of_those_allowed():
    direction = one_found()
    table = direction.candidates
    allowed = table[(table["kl"] <= 2.0) & (table["induce"] >= -20.0)]
    (chosen,) = table[table["chosen"]].itertuples()
    assert chosen.bypass == allowed["bypass"].min()
    assert (chosen.layer, chosen.position) == (direction.layer, direction.position)
    assert chosen.norm == pytest.approx(np.linalg.norm(direction.vector))
    strict = found(kl_limit=float(allowed["kl"].median()), n_controls=4)
    assert strict.candidates.loc[strict.candidates["chosen"], "kl"].item() <= allowed["kl"].median()


def test_answers_are_judged_where_a_judge_is_given():
    direction = found(judge=RefusalJudge(), n_controls=4, n_generated_controls=2, max_new_tokens=10)
    rows = direction.table.set_index(["change", "measure", "controls"])
    refused = rows.loc[("project_out", "refused, harmful", "random directions")]
    assert refused["before"] == 1.0
    assert refused["after"] == 0.0
    assert refused["n_controls"] == 2
    assert rows.loc[("add", "refused, harmless", "random directions"), "after"] > 0.5


def test_what_has_no_direction_is_refused():
    model, _, harmful, harmless, tokens = planted()
    with pytest.raises(RimLensError, match="at least 4 prompts"):
        refusal_direction(model, harmful[:8], harmless, tokens=tokens)
    with pytest.raises(RimLensError, match="occurs 2 times"):
        refusal_direction(model, [*harmful, harmful[0]], harmless, tokens=tokens)
    with pytest.raises(RimLensError, match="No direction may be chosen"):
        found(least_induced=1e6)


def test_it_is_saved_steers_and_is_drawn(tmp_path):
    direction = one_found()
    again = RefusalDirection.load(direction.save(tmp_path / "direction"))
    np.testing.assert_array_equal(again.vector, direction.vector)
    assert again.caption() == direction.caption()
    figure = direction_map(direction)
    assert (figure.data[1].x[0], figure.data[1].y[0]) == (direction.layer, direction.position)
    assert figure.data[0].z.shape == (len(direction.positions), 4)
    assert "n = 4 harmful" in figure.layout.title.subtitle.text
    bars = direction.plot().data[-1]
    np.testing.assert_allclose(bars.x, direction.table["effect"])
