"""Shift and RAS by hand, by loops, and on planted checkpoints whose answer is known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planted_neurons import DECOYS, PLANTED, planted_neurons, save_shift
from scipy import stats as scipy_stats

from rim_lens.behavior.judge import RefusalJudge
from rim_lens.behavior.refusal_score import RefusalTokens, refusal_score
from rim_lens.capture.neuron_activations import NeuronActivations
from rim_lens.capture.neuron_sets import matched_controls
from rim_lens.capture.neurons import neuron_activations
from rim_lens.errors import RimLensError
from rim_lens.results import Manifest, load_result
from rim_lens.stats import activation_strata
from rim_lens.training_time.checkpoints import Checkpoints
from rim_lens.training_time.counterfactuals import (
    REFUSALS,
    CounterfactualPairs,
    given_pairs,
    refusal_forcing_pairs,
    teacher_forced_pairs,
)
from rim_lens.training_time.ras import MEANS, harmonic, ras
from rim_lens.training_time.safety_neurons import find_safety_neurons
from rim_lens.training_time.shift import activation_shift, gain_of, loss_of
from rim_lens.training_time.stability import Choice, GroupSums, counts, spread_within


def activations(prompts, tokens=None):
    """NeuronActivations from values per prompt, [prompt, layer, unit]."""
    prompts = np.asarray(prompts, dtype=np.float64)
    tokens = np.ones(len(prompts), dtype=np.int64) if tokens is None else np.asarray(tokens)
    weight = (tokens / tokens.sum()).reshape(-1, 1, 1)
    mean = (weight * prompts).sum(axis=0)
    size = (weight * np.abs(prompts)).sum(axis=0)
    zero = np.zeros_like(mean)
    return NeuronActivations(
        "response",
        int(tokens.sum()),
        0.0,
        mean,
        zero,
        size,
        zero,
        tokens,
        prompts,
        np.abs(prompts),
        manifest=Manifest.collect(),
    )


def same_everywhere(values, n_prompts=3):
    """Every prompt has the same [layer, unit] values."""
    return activations(np.repeat(np.asarray(values, dtype=float)[None], n_prompts, axis=0))


@pytest.mark.parametrize(
    ("f0", "f1", "loss", "gain"),
    [
        (2.0, 1.0, 0.5, 0.0),
        (2.0, 3.0, 0.0, 0.5),
        (2.0, 2.0, 0.0, 0.0),
        (2.0, 0.0, 1.0, 0.0),
        (0.0, 5.0, 0.0, 0.0),
        (0.0, 0.0, 0.0, 0.0),
        (2.0, -1.0, 1.5, 0.0),
        (-1.0, -2.0, 0.0, 1.0),
        (-1.0, 1.0, 2.0, 0.0),
        (-2.0, -1.0, 0.5, 0.0),
    ],
)
def test_loss_and_gain_by_hand(f0, f1, loss, gain):
    assert loss_of(np.array(f0), np.array(f1)) == pytest.approx(loss)
    assert gain_of(np.array(f0), np.array(f1)) == pytest.approx(gain)


@pytest.mark.parametrize(
    ("loss", "gain", "expected"),
    [
        (0.5, 0.5, {"harmonic": 0.5, "geometric": 0.5, "minimum": 0.5, "arithmetic": 0.5}),
        (0.2, 0.8, {"harmonic": 0.32, "geometric": 0.4, "minimum": 0.2, "arithmetic": 0.5}),
        (0.0, 0.8, {"harmonic": 0.0, "geometric": 0.0, "minimum": 0.0, "arithmetic": 0.4}),
        (0.3, 0.0, {"harmonic": 0.0, "geometric": 0.0, "minimum": 0.0, "arithmetic": 0.15}),
        (0.0, 0.0, {"harmonic": 0.0, "geometric": 0.0, "minimum": 0.0, "arithmetic": 0.0}),
    ],
)
def test_means_by_hand(loss, gain, expected):
    for name, value in expected.items():
        assert MEANS[name](np.array(loss), np.array(gain)) == pytest.approx(value)


@settings(max_examples=100, deadline=None)
@given(st.floats(0, 10), st.floats(0, 10))
def test_means_are_ordered(loss, gain):
    values = {name: float(mean(np.array(loss), np.array(gain))) for name, mean in MEANS.items()}
    assert 0 <= values["minimum"] <= values["harmonic"] + 1e-9
    assert values["harmonic"] <= values["geometric"] + 1e-9 <= values["arithmetic"] + 2e-9


def test_ras_of_two_neurons_by_hand():
    # Set: F_safety 3 → 1.5 (loss 0.5), F_task 2 → 2.5 (gain 0.25): 2·0.125/0.75. Neurons: (0.75, 0) and (0, 0.5): 0
    # each.
    safety = same_everywhere([[4.0, 2.0, 7.0]]), same_everywhere([[1.0, 2.0, 7.0]])
    task = same_everywhere([[2.0, 2.0, 7.0]]), same_everywhere([[2.0, 3.0, 7.0]])
    found = ras(*safety, *task, [(0, 0), (0, 1)], controls=np.array([[[0, 2], [0, 2]]] * 9), n_resamples=50)
    table = found.table.set_index(["averaging", "mean"])["ras"]
    assert table["set", "harmonic"] == pytest.approx(2 * 0.5 * 0.25 / 0.75)
    assert table["set", "minimum"] == pytest.approx(0.25)
    assert table["neuron", "harmonic"] == 0
    assert table["neuron", "arithmetic"] == pytest.approx((0.375 + 0.25) / 2)
    assert found.p == pytest.approx(1 / 10)
    assert found.control == 0
    assert found.interval.low == found.interval.high == pytest.approx(found.value)
    assert (found.n_safety, found.n_task, found.n_neurons, found.n_controls) == (3, 3, 2, 9)


def test_ras_equals_a_loop_over_sets_and_resamples_have_the_right_centre():
    rng = np.random.default_rng(0)
    before, after, task_before, task_after = (
        activations(rng.gamma(2, 1, (20, 3, 40)), rng.integers(1, 9, 20)) for _ in range(4)
    )
    neurons = np.array([[0, 4], [1, 7], [1, 9], [2, 39]])
    controls = matched_controls(neurons, 30, base=before, seed=3)
    found = ras(before, after, task_before, task_after, neurons, controls=controls, n_resamples=400)

    def by_loop(rows):
        f = [
            np.mean([side.magnitude[layer, unit] for layer, unit in rows])
            for side in (before, after, task_before, task_after)
        ]
        loss, gain = max(0, (f[0] - f[1]) / f[0]), max(0, (f[3] - f[2]) / f[2])
        return 0 if loss == 0 or gain == 0 else 2 * loss * gain / (loss + gain)

    assert found.value == pytest.approx(by_loop(neurons))
    np.testing.assert_allclose(found.null[:, 0], [by_loop(rows) for rows in controls], atol=1e-12)
    assert found.p == (1 + sum(by_loop(rows) >= found.value for rows in controls)) / 31
    shift = activation_shift(before, after, neurons, n_resamples=400)
    first = shift.table.iloc[0]
    assert first.low < first.change < first.high
    assert len(shift.table) == 4
    assert first.f_before == pytest.approx(np.mean([before.magnitude[layer, unit] for layer, unit in neurons]))


def test_signed_shift_and_silent_neurons():
    before, after = same_everywhere([[-1.0, 0.0, 2.0]]), same_everywhere([[1.0, 3.0, 2.0]])
    shift = activation_shift(before, after, [(0, 0), (0, 1)], measure="signed")
    assert shift.neurons["change"].tolist() == [-2.0, 0.0]
    assert shift.n_silent == 1
    with pytest.raises(RimLensError, match="same prompts"):
        activation_shift(before, same_everywhere([[1.0, 3.0, 2.0]], 4), [(0, 0)])
    with pytest.raises(RimLensError, match="non-empty set"):
        activation_shift(before, after, [])


def test_movement_counts_neurons_that_rise_and_fall_where_the_change_of_their_mean_is_nothing():
    rng = np.random.default_rng(0)
    quiet = rng.gamma(2, 1, (20, 1, 60))
    moved = quiet + np.where(np.arange(60) < 6, np.where(np.arange(60) % 2, 0.8, -0.8), 0.0)
    before, after = (activations(values, np.ones(20, dtype=int)) for values in (quiet, np.abs(moved)))
    rows = np.array([[0, unit] for unit in range(6)])
    controls = matched_controls(rows, 200, base=before, seed=0)
    first = activation_shift(before, after, rows, controls=controls, n_resamples=200).table.iloc[0]
    f0, f1 = (side.magnitude[0, :6] for side in (before, after))
    assert first.moved == pytest.approx(np.abs(f1 - f0).sum() / f0.sum())
    assert first.moved_low < first.moved < first.moved_high
    assert first.p_moved == pytest.approx(1 / 201)
    assert first.moved > 0.25 > 3 * abs(first.change)
    still = activation_shift(before, before, rows, controls=controls, n_resamples=200).table.iloc[0]
    assert (still.moved, still.p_moved) == (0, 1)


@pytest.mark.slow
def test_p_is_uniform_when_the_set_is_like_any_other():
    rng = np.random.default_rng(1)
    p_values = []
    for seed in range(200):
        base = rng.gamma(3, 1, (2, 60))
        sides = [base, base * rng.uniform(0.3, 0.9, base.shape), base, base * rng.uniform(1.1, 1.9, base.shape)]
        neurons = np.array([[layer, unit] for layer in range(2) for unit in rng.choice(60, 4, replace=False)])
        found = ras(*(same_everywhere(side, 2) for side in sides), neurons, n_controls=99, n_resamples=2, seed=seed)
        p_values.append(found.p)
    assert scipy_stats.kstest(p_values, "uniform").pvalue > 0.01
    assert abs(np.mean(p_values) - 0.5) < 0.06


@pytest.fixture(scope="module")
def planted():
    return planted_neurons()


@pytest.fixture(scope="module")
def safety(planted):
    return find_safety_neurons(planted.model, planted.pairs, top=8, n_resamples=100)


def test_planted_neurons_are_found_exactly(planted, safety):
    assert {tuple(row) for row in safety.rows.tolist()} == planted.neurons
    assert safety.stable
    assert safety.jaccard == 1
    assert (safety.n_groups, safety.n_pairs, safety.top) == (3, 24, 8)
    assert set(safety.table.loc[safety.table.n_groups == 1, "neuron"]) >= {"L0N8", "L1N9", "L2N2"}
    assert "top 8 by standardized difference in 3 of 3 groups" in safety.caption()
    soft = find_safety_neurons(planted.model, planted.pairs, top=8, share=0.3, n_resamples=20)
    assert len(soft) == 12
    assert len(soft.hard) == 6


def test_an_unstable_set_says_so(planted):
    shuffled = CounterfactualPairs(
        planted.pairs.harmful,
        planted.pairs.harmful[1:] + planted.pairs.harmful[:1],
        planted.pairs.groups,
        "given",
        "user",
    )
    found = find_safety_neurons(planted.model, shuffled, top=10, groups=2, n_resamples=60)
    assert not found.stable
    assert "NOT STABLE" in found.caption()


@pytest.fixture(scope="module")
def worded(planted):
    """Pairs in which forced and neutral wordings share a mark that two more neurons read, and only forced ones "!"."""
    texts = [prompt.text for prompt in planted.harmful]
    sides = (texts, [f"{text}!!!! XX" for text in texts], [f"{text}.... XX" for text in texts])
    harmful, forced, neutral = (tuple(planted.model.render(side)) for side in sides)
    groups = tuple(prompt.category for prompt in planted.harmful)
    return CounterfactualPairs(harmful, forced, groups, "rewrite", "user", neutral=neutral)


def test_neurons_of_the_wording_are_counted_and_drop_out_against_neutral_wordings(planted, worded):
    wording = set(DECOYS["X"])
    found = find_safety_neurons(planted.model, worded, top=8, against="harmful", n_resamples=10)
    assert {tuple(row) for row in found.rows.tolist()} == planted.neurons | wording
    assert found.neutral_share == pytest.approx(2 / 8)
    assert "neutral wordings choose 25% of them too" in found.caption()
    against = find_safety_neurons(planted.model, worded, top=6, n_resamples=10)
    assert {tuple(row) for row in against.rows.tolist()} == planted.neurons
    with pytest.raises(RimLensError, match="no neutral wordings"):
        find_safety_neurons(planted.model, planted.pairs, top=8, against="neutral")


def test_pairs_say_whether_forced_requests_are_refused_more(planted, worded):
    tokens = RefusalTokens((40, 41, 77), ("a", "b", "c"))
    judge = RefusalJudge()
    table = worded.check(planted.model, tokens=tokens, judge=judge, max_new_tokens=3).set_index("side")
    sides = {"harmful": worded.harmful, "forced": worded.forced, "neutral": worded.neutral}
    scores = {side: refusal_score(planted.model, chats, tokens) for side, chats in sides.items()}
    for side, score in scores.items():
        assert table.loc[side, "score"] == pytest.approx(score.mean())
        assert table.loc[side, "n"] == len(worded)
    for side in ("harmful", "neutral"):
        row, difference = table.loc[f"forced - {side}"], scores["forced"] - scores[side]
        assert row.score == pytest.approx(difference.mean())
        assert row.score_low < row.score < row.score_high
        assert row.refused == pytest.approx(table.loc["forced", "refused"] - table.loc[side, "refused"])
    answered = teacher_forced_pairs(planted.model, planted.harmful[:4], responses=["First take the rope."] * 4)
    with pytest.raises(RimLensError, match="written answers"):
        answered.check(planted.model, tokens=tokens)


def test_neurons_are_ranked_by_difference_over_spread_and_within_layers():
    rng = np.random.default_rng(0)
    harmful = rng.normal(size=(40, 6))
    forced = harmful + np.array([3.0, 1.0, 0.5, 2.0, 0.1, 0.0]) + rng.normal(size=(40, 6)) * [9, 0.2, 0.1, 5, 0.1, 1]
    sums = GroupSums(harmful, forced, np.ones(40), np.ones(40))
    paired = forced - harmful
    spread = paired.std(axis=0, ddof=1) + np.median(paired.std(axis=0, ddof=1))
    np.testing.assert_allclose(spread_within([sums]), spread)
    raw, scaled = (counts([sums], Choice(2, scale))[0] for scale in (np.ones(6), spread))
    assert np.flatnonzero(raw).tolist() == [0, 3]
    assert np.flatnonzero(scaled).tolist() == np.sort(np.argsort(-paired.mean(axis=0) / spread)[:2]).tolist() == [1, 2]
    assert np.flatnonzero(counts([sums], Choice(1, np.ones(6), layers=2))[0]).tolist() == [0, 3]


def test_planted_shift_is_recovered_exactly(planted, safety, tmp_path):
    series = Checkpoints([save_shift(tmp_path / "after", planted, 0.4, 0.25)], base="planted")
    safety_chats = planted.model.render([p.text for p in planted.harmful])
    task_chats = planted.model.render([p.text for p in planted.task])
    measured = {
        checkpoint.name: [
            neuron_activations(model, chats, "user", per_prompt=safety.rows) for chats in (safety_chats, task_chats)
        ]
        for checkpoint, model in series.loaded(planted.model)
    }
    (s0, t0), (s1, t1) = measured["base"], measured["after"]
    found = ras(s0, s1, t0, t1, safety, n_controls=1000, n_resamples=200)
    assert found.value == pytest.approx(2 * 0.4 * 0.25 / 0.65, abs=1e-5)
    assert found.table.set_index(["averaging", "mean"]).loc[("neuron", "harmonic"), "ras"] == pytest.approx(
        found.value, abs=1e-5
    )
    # Controls may share neurons with the set; those that share none shift by nothing.
    apart = ~shared(safety, matched_controls(safety, 1000))
    assert apart.any()
    assert np.abs(found.null[apart]).max() < 1e-7
    assert found.control < found.value / 4
    assert found.p == pytest.approx(1 / 1001)
    np.testing.assert_allclose(found.layers["ras"], found.value, atol=1e-5)
    shift = activation_shift(s0, s1, safety, controls=matched_controls(safety, 200))
    assert shift.table["loss"].tolist() == pytest.approx([0.4] * 4, abs=1e-5)
    assert (shift.table["percentile"] < 5).all()
    assert activation_shift(t0, t1, safety).table["gain"].iloc[0] == pytest.approx(0.25, abs=1e-5)
    assert activation_shift(s1, s0, safety).table["gain"].iloc[0] == pytest.approx(0.4 / 0.6, abs=1e-5)


def test_neurons_of_different_shift(planted, safety, tmp_path):
    loss = {neuron: 0.1 * (i + 1) for i, neuron in enumerate(PLANTED)}
    gain = {neuron: 0.6 - 0.1 * i for i, neuron in enumerate(PLANTED)}
    series = Checkpoints([save_shift(tmp_path / "after", planted, loss, gain)], base="planted")
    chats = planted.model.render([p.text for p in planted.harmful])
    sides = [
        neuron_activations(model, chats, "user", per_prompt=safety.rows) for _, model in series.loaded(planted.model)
    ]
    table = activation_shift(sides[0], sides[1], safety).neurons
    for row in table.itertuples():
        assert row.change == pytest.approx(-loss[row.layer, row.unit], abs=1e-5)


def shared(safety, controls):
    """Which control sets share a neuron with the set."""
    own = {tuple(row) for row in safety.rows.tolist()}
    return np.array([bool(own & {tuple(row) for row in rows}) for rows in controls.tolist()])


def test_controls_match_layer_activation_and_what_is_written(safety):
    controls, strata = matched_controls(safety, 300), activation_strata(safety.base, safety.written)
    own = {tuple(row) for row in safety.rows.tolist()}
    wanted = sorted((layer, strata[layer, unit]) for layer, unit in own)
    for rows in controls.tolist():
        assert sorted((layer, strata[layer, unit]) for layer, unit in rows) == wanted
        assert own != {tuple(row) for row in rows}
    with pytest.raises(RimLensError, match="base activations"):
        matched_controls(safety.rows)


def test_results_survive_saving(safety, tmp_path):
    safety.save(tmp_path / "safety")
    again = load_result(tmp_path / "safety")
    np.testing.assert_array_equal(again.rows, safety.rows)
    assert repr(again) == repr(safety)


def test_every_group_meets_every_refusal_forcing_wording(planted):
    pairs = refusal_forcing_pairs(planted.model, planted.harmful * 2)
    assert len(pairs) == 48
    for harmful, forced in zip(pairs.harmful, pairs.forced, strict=True):
        assert harmful.request in forced.request
        assert len(forced) > len(harmful)
    wordings = {
        forced.request.replace(harmful.request, "") for harmful, forced in zip(pairs.harmful, pairs.forced, strict=True)
    }
    assert len(wordings) == 6
    with pytest.raises(RimLensError, match="must contain"):
        refusal_forcing_pairs(planted.model, planted.harmful, wordings=["refuse"])
    with pytest.raises(RimLensError, match="at least 2"):
        find_safety_neurons(planted.model, refusal_forcing_pairs(planted.model, planted.harmful[:2]))


def test_harmonic_mean_of_arrays():
    np.testing.assert_allclose(harmonic(np.array([0, 1.0]), np.array([0, 3.0])), [0, 1.5])


def test_teacher_forced_pairs_differ_in_the_answer_alone(planted):
    answers = ["Sorry, I can't help with that.", "First take the rope and then go home at night."] * 12
    pairs = teacher_forced_pairs(planted.model, planted.harmful, responses=answers)
    assert (len(pairs), pairs.n_dropped, pairs.positions) == (12, 12, "response")
    assert pairs.groups == tuple(prompt.category for prompt in planted.harmful[1::2])
    for own, forced in zip(pairs.harmful, pairs.forced, strict=True):
        prompt = own.decision_position + 1
        np.testing.assert_array_equal(own.token_ids[:prompt], forced.token_ids[:prompt])
        assert own.segment_text("response") == answers[1]
        assert forced.segment_text("response") in REFUSALS
    generated = teacher_forced_pairs(planted.model, planted.harmful[:4], max_new_tokens=4)
    assert all(1 <= chat.where("response").sum() <= 4 for chat in generated.harmful)
    with pytest.raises(RimLensError, match="give no contrast"):
        teacher_forced_pairs(planted.model, planted.harmful, responses=answers[:1] * 24)


def test_given_pairs_and_random_groups(planted):
    pairs = given_pairs(planted.model, [("steal it", "refuse: steal it")] * 6)
    dealt = pairs.in_groups(3)
    assert sorted(dealt.groups) == ["part 1"] * 2 + ["part 2"] * 2 + ["part 3"] * 2
    assert [chat.request for chat in pairs.forced] == ["refuse: steal it"] * 6
    with pytest.raises(RimLensError, match="cannot fill"):
        pairs.in_groups(4)
