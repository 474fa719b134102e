"""The refusal direction on a model whose direction is planted, its choice and tests against loops of plain passes."""

import copy
from functools import cache

import numpy as np
import pytest
import torch
from planted import planted_model

from rim_lens import RefusalJudge, RimLensError, refusal_direction, residuals, steer
from rim_lens.behavior.refusal_score import RefusalTokens
from rim_lens.inference_time.direction_candidates import estimates
from rim_lens.inference_time.refusal_direction import RefusalDirection
from rim_lens.intervene.steer import WritesWithout
from rim_lens.model.prompt_cache import SharedStart
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


@pytest.mark.slow
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


@torch.no_grad()
def test_with_all_candidates_it_chooses_by_a_loop_over_all_of_them():
    """Each candidate in whole passes, by the rule of the paper; the same split is drawn here."""
    model, truth, harmful, harmless, _ = planted()
    found_all = found(n_candidates=None, n_controls=1, kl_limit=1.0)
    rng = np.random.default_rng(0)
    fit, select = [], []
    for requests in (harmful, harmless):
        chats = model.render([requests[i] for i in rng.permutation(len(requests))[:12]], thinking="off")
        fit.append(chats[:8])
        select.append(chats[8:])
    streams = [residuals(model, chats, tuple(range(1 - len(found_all.positions), 1))).double() for chats in fit]
    vectors = streams[0].mean(0) - streams[1].mean(0)

    def logits(chats):
        return model.decision_logits(model.batch(chats)).double()

    def score(some):
        p = some.softmax(-1)[:, truth.refusal_token]
        return float((p.log() - (1 - p).log()).mean())

    before, best = logits(select[1]).log_softmax(-1), (np.inf, None)
    for layer, position in np.ndindex(model.n_layers, vectors.shape[1]):
        vector = vectors[layer, position].numpy()
        if np.linalg.norm(vector) < 1e-6 * float(vectors[:-1].norm(dim=-1).max()):
            continue
        with steer(model, vector, project_out=True):
            bypass, after = score(logits(select[0])), logits(select[1]).log_softmax(-1)
        kl = float((before.exp() * (before - after)).sum(-1).mean())
        with steer(model, vector, add=1.0, layers=layer):
            induce = score(logits(select[1]))
        if kl <= 1.0 and induce >= -20.0 and bypass < best[0]:
            best = (bypass, (layer, position))
    assert (found_all.layer, found_all.position) == best[1]
    assert found_all.candidates["bypass"].min() <= best[0] + 1e-4
    (row,) = found_all.candidates[found_all.candidates["chosen"]].itertuples()
    assert row.bypass == pytest.approx(best[0], abs=1e-4)
    assert one_found().layer == found_all.layer  # eight candidates suffice here


def test_where_none_of_the_first_may_be_chosen_the_next_are_measured():
    table = one_found().candidates
    first = table["falls"].where(table["moves"] <= 2.0).idxmin()
    alone = found(n_candidates=1, n_controls=1).candidates
    assert alone["bypass"].notna().sum() == 1
    assert alone.loc[first, "chosen"]
    strict = found(n_candidates=1, n_controls=1, kl_limit=float(alone.loc[first, "kl"]) * 0.99).candidates
    assert strict["bypass"].notna().sum() > 1
    assert not strict.loc[first, "chosen"]


class Weakened(WritesWithout):
    """A share of the direction is taken out of every write."""

    share = 1e-3

    def new(self, stream, vectors):
        return stream - self.share * (stream * vectors).sum(-1, keepdim=True) * vectors


@torch.no_grad()
def test_estimates_are_the_slope_of_the_score_and_the_curvature_of_kl():
    model, _, harmful, _, tokens = planted()
    chats = model.render(harmful[:6], thinking="off")
    vectors = np.random.default_rng(0).normal(size=(3, model.d_model))
    vectors[0] += 3 * planted()[1].refusal_direction
    values = []
    for vector in vectors:
        ends = []
        for share in (1e-2, -1e-2):
            tap = Weakened(torch.from_numpy(vector).float()[None], "all")
            tap.share = share
            with model.tap(tap):
                ends.append(model.decision_logits(model.batch(chats)).double())
        values.append(ends)
    scored = [(tokens.score(a) - tokens.score(b)).mean() / 2e-2 for a, b in values]
    clean = model.decision_logits(model.batch(chats)).double().softmax(-1)
    fisher = [0.5 * (clean * ((a.log_softmax(-1) - b.log_softmax(-1)) / 2e-2).square()).sum(-1) for a, b in values]
    drawn = [estimates(model, chats, chats, vectors, tokens, seed) for seed in range(16)]
    assert abs(scored[0]) > 0.1
    np.testing.assert_allclose(drawn[0][0], scored, rtol=0.02, atol=2e-3)
    moves = np.array([moves for _, moves in drawn])
    error = moves.std(axis=0) / len(moves) ** 0.5
    assert (np.abs(moves.mean(axis=0) - [float(one.mean()) for one in fisher]) < 4 * error + 1e-3).all()


@pytest.mark.parametrize("change", [{"project_out": True}, {"add": 1.5, "layers": 2}])
def test_a_start_that_is_computed_once_changes_no_logits(change):
    model, truth, *_ = planted()
    chats = model.render(
        [f"{truth.harmful[0]} {' '.join([truth.harmful[0]] * 3)} {one}" for one in truth.harmless[:12]]
    )
    vector = np.random.default_rng(1).normal(size=model.d_model)
    batch = model.batch(chats)
    start = SharedStart.of(model, batch)
    assert start.shared > 20
    with torch.no_grad(), steer(model, vector, **change):
        whole, shared = model.decision_logits(batch), start.decision_logits()
    torch.testing.assert_close(shared, whole, atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        assert (model.decision_logits(batch) - whole).abs().max() > 1e-2


@pytest.mark.slow
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
