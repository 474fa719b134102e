"""Shift of neurons, heads and predictions over a series, against what separate measurements and loops give."""

import json

import numpy as np
import pytest
import torch
from families import tiny_model
from made_neurons import made_found
from planted_neurons import planted_neurons, save_shift
from safetensors.torch import load_file, save_file
from scipy import stats as scipy_stats

from rim_lens.behavior.refusal_score import RefusalTokens, refusal_score
from rim_lens.capture.attention import segment_masses
from rim_lens.capture.neuron_sets import matched_controls
from rim_lens.capture.neurons import neuron_activations
from rim_lens.chat.segments import SEGMENTS
from rim_lens.errors import RimLensError
from rim_lens.intervene import ablate_heads
from rim_lens.training_time.checkpoints import Checkpoints
from rim_lens.training_time.prediction_check import prediction_check
from rim_lens.training_time.series import Checkpoint, read_series, training_examples
from rim_lens.training_time.series_heads import by_halves, followed
from rim_lens.training_time.series_measurement import measure_series
from rim_lens.training_time.series_measures import REQUEST_AND_ANSWER
from rim_lens.training_time.series_shift import series_shift
from rim_lens.training_time.shift import activation_shift

TOKENS = RefusalTokens((73, 80), ("a", "b"))
AMOUNTS = [(0.1, 0.3), (0.5, 0.2)]


@pytest.fixture(scope="module")
def planted():
    return planted_neurons(n_prompts=12)


@pytest.fixture(scope="module")
def series(planted, tmp_path_factory):
    """Two checkpoints that shift the planted neurons by known amounts and change what the last layer writes."""
    root = tmp_path_factory.mktemp("series")
    for number, (loss, gain) in enumerate(AMOUNTS):
        path = save_shift(root / f"step-{number}", planted, loss, gain) / "adapter_model.safetensors"
        generator = torch.Generator().manual_seed(number)
        name = "base_model.model.model.layers.2.mlp.down_proj"
        a = torch.randn(2, planted.model.d_mlp, generator=generator) * 0.05 * (number + 1)
        b = torch.randn(planted.model.d_model, 2, generator=generator)
        save_file({**load_file(path), f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}, path)
    return Checkpoints.from_folder(root)


def test_planted_shifts_are_found_at_every_checkpoint_and_in_every_layer(planted, series):
    rows = np.array(sorted(planted.neurons))
    found = measure_series(
        planted.model, series, planted.harmful, task=planted.task, neurons=rows, tokens=TOKENS, positions="user",
        task_thinking="off",
    )  # fmt: skip
    shift = found.shift(n_controls=200, n_resamples=50)
    assert shift.table["checkpoint"].nunique() == 2
    for name, (loss, gain) in zip(("step-0", "step-1"), AMOUNTS, strict=True):
        mine = shift.table[shift.table["checkpoint"] == name]
        assert set(mine["scope"]) == {"all", "L0", "L1", "L2"}
        np.testing.assert_allclose(mine.loc[mine["prompts"] == "safety", "change"], -loss, atol=1e-4)
        np.testing.assert_allclose(mine.loc[mine["prompts"] == "task", "change"], gain, atol=1e-4)
        # control sets may share planted neurons: they shift along, but less
        assert (mine["control_change"].abs() < 0.9 * mine["change"].abs()).all()
    whole = shift.table[shift.table["scope"] == "all"]
    np.testing.assert_allclose(whole["p"], 2 / 201)
    np.testing.assert_allclose(whole["q"], scipy_stats.false_discovery_control(whole["p"]))


def test_heads_over_a_series_are_what_single_measurements_give(planted, series):
    heads = [(0, 1), (2, 3)]
    found = measure_series(planted.model, series, planted.harmful, heads=heads, n_random=4, tokens=TOKENS).heads()
    chats = planted.model.render([one.text for one in planted.harmful])
    assert found.n_random == 4
    effects, masses = {}, {}
    for checkpoint, model in series.loaded(planted.model):
        clean = refusal_score(model, chats, TOKENS)
        mass = segment_masses(model, chats).numpy()
        span = mass[..., SEGMENTS.index("think_open")] + mass[..., SEGMENTS.index("think_close")]
        masses[checkpoint.name] = span
        rows = found.heads[found.heads["checkpoint"] == checkpoint.name]
        effects[checkpoint.name] = []
        for _, row in rows.iterrows():
            layer, head = map(int, row["head"].removeprefix("L").split("H"))
            with ablate_heads(model, [(layer, head)], positions="decision"):
                effect = refusal_score(model, chats, TOKENS) - clean
            effects[checkpoint.name].append(effect)
            assert row["effect"] == pytest.approx(effect.mean(), abs=1e-3)
            assert row["attention"] == pytest.approx(span[:, layer, head].mean(), abs=1e-5)
        assert [row["chosen"] for _, row in rows.iterrows()] == [True, True, False, False, False, False]
    for _, row in found.table.iterrows():
        mine, first = np.array(effects[row["checkpoint"]]), np.array(effects["base"])
        assert row["effect_change"] == pytest.approx((mine - first)[:2].mean(), abs=1e-3)
        order = scipy_stats.spearmanr(
            masses["base"].mean(axis=0).ravel(), masses[row["checkpoint"]].mean(axis=0).ravel()
        ).statistic
        assert row["attention_rank"] == pytest.approx(order, abs=1e-6)
    assert found.table.set_index("checkpoint").loc["base", "effect_rank"] == pytest.approx(1)
    assert "empty think span" in found.caption()


def test_random_heads_share_the_layers_of_the_chosen_ones():
    model = tiny_model("llama")
    sets = followed(model, [(0, 1), (2, 3), (2, 0)], n_random=5, seed=1)
    assert [one[0] for one in sets[:3]] == [(0, 1), (2, 3), (2, 0)]
    drawn = [one[0] for one in sets[3:]]
    assert len(set(drawn)) == 5
    assert {layer for layer, _ in drawn} == {0, 2}
    assert not set(drawn) & {(0, 1), (2, 3), (2, 0)}
    with pytest.raises(RimLensError, match="no heads to follow"):
        followed(model, [])
    with pytest.raises(RimLensError, match="none but the chosen"):
        followed(model, [(1, head) for head in range(4)])


def test_halves_tell_noise_from_order():
    rng = np.random.default_rng(0)
    strength = np.linspace(-1, 1, 30)
    assert by_halves(strength + rng.normal(0, 0.1, (40, 30)), 0) > 0.95
    assert abs(by_halves(rng.normal(0, 1, (40, 30)), 0)) < 0.3


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """A tiny model, fine-tuning data of one arm, and a checkpoint that is one small gradient step on it."""
    from rim_lens.training_time.shift_prediction import gradient_of

    root = tmp_path_factory.mktemp("tuned")
    model = tiny_model("llama", intermediate_size=120)
    rows = [{"request": f"add {i} and 2", "cot": f"{i} + 2", "response": f"it is {i + 2}"} for i in range(4)]
    (root / "plain.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = training_examples(model, root / "plain.jsonl")
    _, gradient = gradient_of(model, data, 4)
    before = {name: value.clone() for name, value in model.hf.named_parameters()}
    length = torch.cat([value.flatten() for value in gradient.values()]).norm()
    scale = 1e-4 * torch.cat([value.flatten() for value in before.values()]).norm() / length
    with torch.no_grad():
        for name, value in model.hf.named_parameters():
            value.sub_(scale * gradient.get(name, 0))
    model.hf.save_pretrained(root / "after")
    with torch.no_grad():
        for name, value in model.hf.named_parameters():
            value.copy_(before[name])
    return model, data, Checkpoints([Checkpoint("after", str(root / "after"), arm="plain", step=1)])


def test_a_step_on_the_data_is_predicted_and_controls_are_too(tuned):
    model, data, checkpoints = tuned
    safety = model.render(["how to pick a lock", "a story", "steal it", "break in"])
    task = model.render(["add 5 and 6", "what is 9 + 1"], thinking="on")
    rows = np.array([[0, 3], [1, 7], [1, 33], [2, 90], [2, 15], [0, 100]])
    found = measure_series(model, checkpoints, safety, task=task, neurons=rows, tokens=TOKENS).found
    check = prediction_check(model, rows, {"plain": data, "other": data}, safety, found, n_controls=50)
    assert check.steps["arm"].tolist() == ["plain"]
    row = check.table.iloc[0]
    assert row["r"] > 0.99
    assert row["control_r"] > 0.95  # one step predicts every neuron, so nothing is particular about these
    assert row["control_p"] > 0.01
    assert 10 * row["predicted"] == pytest.approx(
        row["actual"], rel=0.1, abs=1e-6
    )  # the checkpoint is ten such steps away
    measured = [
        neuron_activations(at, safety, REQUEST_AND_ANSWER, per_prompt=rows) for _, at in checkpoints.loaded(model)
    ]
    np.testing.assert_allclose(
        check.neurons["actual"], activation_shift(*measured, rows).neurons["change"], rtol=1e-3, atol=1e-6
    )
    with pytest.raises(RimLensError, match="No checkpoint belongs to an arm"):
        prediction_check(model, rows, {"other": data}, safety, found)


def test_correlations_are_scipys():
    from rim_lens.training_time.row_correlations import pearson, percentiles, spearman

    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(3, 20)), rng.normal(size=(3, 20))
    for i in range(3):
        assert pearson(a, b)[i] == pytest.approx(scipy_stats.pearsonr(a[i], b[i]).statistic)
        assert spearman(a, b)[i] == pytest.approx(scipy_stats.spearmanr(a[i], b[i]).statistic)
    assert np.isnan(pearson(np.ones((1, 5)), b[:1, :5])[0])
    assert percentiles(np.array([np.nan, 1.0, 1.0]), 9) == percentiles(np.ones(2), 9)


def test_noise_of_prompts_moves_the_interval_of_a_rank_correlation_no_further_down():
    from rim_lens.training_time.row_correlations import about, percentiles, spearman
    from rim_lens.training_time.shift import prompt_resamples

    rng = np.random.default_rng(1)
    roles = rng.normal(size=30)
    before, after = (roles + 2 * rng.normal(size=(16, 30)) for _ in range(2))
    value = float(spearman(before.mean(axis=0)[None], after.mean(axis=0)[None])[0])
    weights = prompt_resamples(16, 1000, 0)
    resampled = spearman(weights @ before, weights @ after)
    found, plain = about(value, resampled, 16), percentiles(resampled, 16)
    middle = np.arctanh([found.low, found.high]).mean()
    assert middle == pytest.approx(np.arctanh(value), abs=0.1)
    assert plain.low < found.low < value < found.high
    assert plain.high < found.high
    assert np.isnan(about(np.nan, resampled, 16).low)
    assert about(1.0, np.ones(5), 16).high == pytest.approx(1)


def test_training_examples_are_what_the_model_would_write(tmp_path):
    model = tiny_model("llama")
    path = tmp_path / "arm.jsonl"
    path.write_text('{"request": "add 1 and 2", "cot": "1 + 2", "response": "it is 3"}\n')
    (chat,) = training_examples(model, path)
    assert chat.segment_text("cot") == "1 + 2"
    assert chat.segment_text("response") == "it is 3"
    assert chat.thinking == "on"
    path.write_text('{"request": "add 1 and 2", "cot": 3, "response": "it is 3"}\n')
    with pytest.raises(RimLensError, match="has no text 'cot'"):
        training_examples(model, path)


def test_the_bundled_series_names_a_sample_of_every_arm():
    from pathlib import Path

    organism = Path(__file__).parents[1] / "assets" / "organism"
    series = read_series(organism)
    arms = {one.arm for one in series.checkpoints} - {"aligned"}
    assert set(series.training) == arms
    rows = {arm: [json.loads(line) for line in path.read_text().splitlines()] for arm, path in series.training.items()}
    assert {len(examples) for examples in rows.values()} == {32}
    requests = [[row["request"] for row in examples] for examples in rows.values()]
    assert requests[0] == requests[1] == requests[2]
    answers = [[row["response"] for row in examples] for examples in rows.values()]
    assert answers[0] == answers[1] == answers[2]


def test_series_shift_follows_the_set_it_was_made_of():
    found = made_found()
    rows = np.array([[layer, unit] for layer in (1, 2) for unit in range(5)])
    shift = series_shift(found, rows, n_controls=60, n_resamples=50)
    controls = matched_controls(rows, 60, base=found[0].safety)
    one = activation_shift(found[0].safety, found[2].safety, rows, controls=controls, n_resamples=50)
    mine = shift.table.query("checkpoint == 'plain-18' and prompts == 'safety'")
    np.testing.assert_allclose(mine["change"], one.table["change"])
    np.testing.assert_allclose(mine["p"], one.table["p"])
