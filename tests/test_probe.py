"""The refusal probe: cross-fitting against explicit loops, honest selection, positions, intervals."""

from functools import cache

import numpy as np
import pytest
import torch
from planted import planted_model
from scipy import optimize, stats

from rim_lens.capture.activations import residuals
from rim_lens.errors import RimLensError
from rim_lens.inference_time import probe_fit
from rim_lens.inference_time.probe import RefusalProbe, probe_refusal
from rim_lens.inference_time.template_positions import shared_template, template_residuals
from rim_lens.stats import auroc


@cache
def planted():
    return planted_model(0, n_prompts=40)


def answers(chats):
    """What the planted model would answer first; its judge is tested elsewhere."""
    model, truth = planted()
    with torch.no_grad():
        logits = model.decision_logits(model.batch(chats))
    refused = logits[:, truth.refusal_token] > logits[:, truth.comply_token]
    return ["refused" if one else "complied" for one in refused.tolist()]


@cache
def probed():
    model, truth = planted()
    off = model.render(truth.harmful, thinking="off")
    on = model.render(truth.harmful, thinking="prefilled", cot=truth.cots)
    return probe_refusal(model, off, answers(off), pairs=(off, on), n_permutations=40)


def test_held_out_scores_equal_an_explicit_loop():
    rng = np.random.default_rng(0)
    x, refused = rng.normal(size=(24, 3, 2, 7)), rng.random(24) < 0.5
    fold = probe_fit.folds_of(refused, 4, rng)
    found = probe_fit.held_out_scores(probe_fit.grams(x), refused[:, None], fold)[:, 0].reshape(24, 3, 2)
    for cell in np.ndindex(3, 2):
        for row in range(24):
            fitted = fold != fold[row]
            a, b = x[fitted & refused][:, *cell], x[fitted & ~refused][:, *cell]
            direction = a.mean(0) - b.mean(0)
            direction /= np.linalg.norm(direction)
            expected = (x[row, *cell] - (a.mean(0) + b.mean(0)) / 2) @ direction
            assert found[row, *cell] == pytest.approx(expected)


def test_folds_hold_both_classes_evenly():
    refused = np.arange(53) % 3 == 0
    fold = probe_fit.folds_of(refused, 5, np.random.default_rng(1))
    for group in (refused, ~refused):
        counts = np.bincount(fold[group], minlength=5)
        assert counts.max() - counts.min() <= 1


def test_p_values_are_uniform_under_the_null():
    rng = np.random.default_rng(2)
    p = []
    for _ in range(30):
        x, refused = rng.normal(size=(30, 1, 1, 20)), np.arange(30) < 12
        fold = probe_fit.folds_of(refused, 3, rng)
        gram = probe_fit.grams(x)
        observed = auroc(probe_fit.held_out_scores(gram, refused[:, None], fold)[:, 0], refused)
        p.append(probe_fit.permutation_p(gram, refused, fold, observed, 40, rng)[0])
    assert stats.kstest(p, "uniform").pvalue > 0.01


def test_leading_difference_is_the_first_singular_vector():
    rng = np.random.default_rng(3)
    differences = rng.normal(size=(20, 9)) + 2 * rng.normal(size=9)
    found = probe_fit.leading_difference(differences, 1.0)
    expected = np.linalg.svd(differences)[2][0]
    np.testing.assert_allclose(found, expected * np.sign(expected @ differences.mean(0)), atol=1e-9)
    assert not probe_fit.leading_difference(differences * 1e-7, 1.0).any()


def test_auroc_interval_solves_its_equation_and_covers():
    area, m, n = 0.8, 20, 31
    low, high = probe_fit.auroc_interval(np.array(area), m, n)

    def distance(theta):
        spread = 1 + ((m + n) / 2 - 1) * ((1 - theta) / (2 - theta) + theta / (1 + theta))
        return (area - theta) ** 2 - stats.norm.ppf(0.975) ** 2 * theta * (1 - theta) * spread / (m * n)

    assert low == pytest.approx(optimize.brentq(distance, 0.01, area))
    assert high == pytest.approx(optimize.brentq(distance, area, 0.999))
    full = probe_fit.auroc_interval(np.array([0.0, 1.0]), 10, 10)
    assert 0 < full[1][0] < 0.5 < full[0][1] < 1
    rng = np.random.default_rng(4)
    scores = np.concatenate([rng.normal(1, 1, (25, 400)), rng.normal(0, 1, (25, 400))])
    areas = auroc(scores, np.arange(50) < 25)
    low, high = probe_fit.auroc_interval(areas, 25, 25)
    true = stats.norm.cdf(1 / np.sqrt(2))
    assert 0.92 <= ((low <= true) & (true <= high)).mean() <= 0.985


@pytest.mark.parametrize("thinking", ["off", "prefilled"])
def test_template_positions_are_read_where_they_stand(thinking):
    model, truth = planted()
    cots = [" ".join(["okay", *cot.split()[: 2 + i]]) for i, cot in enumerate(truth.cots[:5])]
    requests = [" ".join(request.split()[: 8 + i]) for i, request in enumerate(truth.harmful[:5])]
    options = {} if thinking == "off" else {"cot": cots}
    chats = model.render(requests, thinking=thinking, **options)
    template = shared_template(model, chats)
    assert template.labels[0] == "last request token"
    assert template.labels[-3:] == ["<think>\n", "\n</think>", "\n\n"]
    values = template_residuals(model, chats, template, batch_size=2)
    where = np.concatenate([template.before, template.after], axis=1)
    for i, one in enumerate(chats):
        alone = residuals(model, [one], "all")[0].numpy()
        np.testing.assert_allclose(values[i], alone[:, where[i]], atol=1e-4)
        assert where[i, -1] == one.decision_position
        assert not one.where("cot")[where[i]].any()
        assert model.chat_format.decode([int(one.token_ids[where[i, 0]])]).strip() == requests[i].split()[-1]


def test_the_planted_direction_is_found():
    probe, truth = probed(), planted()[1]
    cosine = probe.directions @ truth.refusal_direction
    span = [probe.positions.index(name) for name in ("<think>\n", "\n</think>", "\n\n")]
    assert (cosine[2:, span] > 0.95).all()
    assert (np.abs(cosine[:2]) < 0.5).all()
    assert probe.layer >= 2
    assert probe.chosen.vector @ truth.refusal_direction > 0.95
    np.testing.assert_allclose(probe.unsupervised[2:, -1] @ truth.refusal_direction, 1, atol=0.05)
    assert (probe.grid("auroc", "unsupervised")[2:, -1] > 0.95).all()
    assert (probe.grid()[2:, -1] > 0.95).all()
    assert probe.selected["auroc"] > 0.95


def test_a_position_that_is_the_same_in_all_chats_tells_nothing():
    probe = probed()
    assert (probe.grid()[0, 1:] == 0.5).all()
    assert (probe.grid("d_prime")[0, 1:] == 0).all()
    assert (probe.grid("p")[0, 1:] == 1).all()
    before_cot = slice(0, probe.positions.index("<think>\n") + 1)
    assert (probe.grid("auroc", "unsupervised")[:, before_cot] == 0.5).all()


def test_the_chosen_direction_is_read_in_standard_deviations():
    model, truth = planted()
    probe = probed()
    off = model.render(truth.harmful, thinking="off")
    refused = np.array(answers(off)) == "refused"
    x = residuals(model, off)[:, probe.layer, 0].numpy()
    reading = (x @ probe.chosen.vector - probe.chosen.middle) / probe.chosen.spread
    assert reading[refused].mean() == pytest.approx(-reading[~refused].mean(), rel=1e-3)
    assert (reading[refused].var(ddof=1) + reading[~refused].var(ddof=1)) / 2 == pytest.approx(1, rel=1e-3)


@pytest.mark.slow
def test_random_labels_are_not_read_although_the_best_cell_looks_good():
    model, truth = planted()
    off = model.render(truth.harmful, thinking="off")
    best, selected = [], []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        judged = rng.permutation(["refused"] * 20 + ["complied"] * 20)
        probe = probe_refusal(model, off, list(judged), n_permutations=20, seed=seed)
        best.append(probe.grid().max())
        selected.append(probe.selected["auroc"])
    assert np.mean(best) > np.mean(selected)
    assert 0.3 < np.mean(selected) < 0.62


def test_what_cannot_be_probed_is_refused():
    model, truth = planted()
    off = model.render(truth.harmful, thinking="off")
    judged = answers(off)
    with pytest.raises(RimLensError, match="at least 5 of each"):
        probe_refusal(model, off, ["refused"] * 38 + ["complied"] * 2)
    with pytest.raises(RimLensError, match="occurs 2 times"):
        probe_refusal(model, [*off, off[0]], [*judged, judged[0]])
    with pytest.raises(RimLensError, match="at least 2 folds"):
        probe_refusal(model, off, judged, n_folds=1)
    with pytest.raises(RimLensError, match="both sides"):
        probe_refusal(model, off, judged, pairs=(off, off[:3]))


def test_the_result_survives_saving(tmp_path):
    probe = probed()
    again = RefusalProbe.load(probe.save(tmp_path / "probe"))
    np.testing.assert_array_equal(again.directions, probe.directions)
    np.testing.assert_array_equal(again.controls[3].vector, probe.controls[3].vector)
    assert again.caption() == probe.caption()
    assert again.layer == probe.layer
