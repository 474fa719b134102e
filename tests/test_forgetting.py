"""Forgetting over planted checkpoints, its correlations, and the shift predicted before training."""

import numpy as np
import pandas as pd
import pytest
import torch
from families import tiny_model
from planted_neurons import planted_neurons, save_shift
from safetensors.torch import load_file, save_file
from scipy import stats as scipy_stats

from rim_lens.behavior.refusal_score import RefusalTokens, refusal_score
from rim_lens.capture.neurons import neuron_activations
from rim_lens.errors import RimLensError
from rim_lens.training_time.checkpoints import Checkpoints
from rim_lens.training_time.forgetting import PREDICTORS, correlate
from rim_lens.training_time.series_measurement import measure_series
from rim_lens.training_time.series_measures import forward_kl
from rim_lens.training_time.shift import activation_shift
from rim_lens.training_time.shift_prediction import along, gradient_of, predict_shift, unit

AMOUNTS = [(0.1, 0.3), (0.2, 0.2), (0.35, 0.6), (0.5, 0.1), (0.6, 0.5)]
TOKENS = RefusalTokens((73, 80), ("a", "b"))


def test_forward_kl_equals_torchs():
    torch.manual_seed(0)
    reference, other = (torch.randn(5, 40).log_softmax(-1) for _ in range(2))
    expected = torch.nn.functional.kl_div(other.double(), reference.double(), log_target=True, reduction="none").sum(-1)
    torch.testing.assert_close(forward_kl(reference, other), expected)
    assert forward_kl(reference, reference).abs().max() == 0


@pytest.fixture(scope="module")
def planted():
    return planted_neurons(n_prompts=12)


@pytest.fixture(scope="module")
def series(planted, tmp_path_factory):
    """Each checkpoint shifts the planted neurons by known amounts and also changes what the last layer writes."""
    root = tmp_path_factory.mktemp("series")
    for number, (loss, gain) in enumerate(AMOUNTS):
        folder = save_shift(root / f"step-{number}", planted, loss, gain)
        path = folder / "adapter_model.safetensors"
        generator = torch.Generator().manual_seed(number)
        name = "base_model.model.model.layers.2.mlp.down_proj"
        a = torch.randn(2, planted.model.d_mlp, generator=generator) * 0.05 * (number + 1)
        b = torch.randn(planted.model.d_model, 2, generator=generator)
        save_file({**load_file(path), f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}, path)
    return Checkpoints.from_folder(root)


@pytest.fixture(scope="module")
def table(planted, series):
    rates = dict(zip(series.names, [0.95, *(0.95 - gain for _, gain in AMOUNTS)], strict=True))
    measured = measure_series(
        planted.model, series, planted.harmful, task=planted.task, neurons=sorted(planted.neurons), tokens=TOKENS,
        positions="user", task_thinking="off",
    )  # fmt: skip
    return measured.forgetting(rates, n_controls=200, n_resamples=100)


@pytest.mark.slow
def test_every_predictor_is_what_it_says(planted, series, table):
    chats = planted.model.render([prompt.text for prompt in planted.harmful])
    batch = planted.model.batch(chats)
    asked = planted.model.batch(planted.model.render([prompt.text for prompt in planted.task]))
    seen, task = {}, {}
    for checkpoint, model in series.loaded(planted.model):
        flat = torch.cat([value.flatten() for value in model.hf.parameters()]).double()
        measured = neuron_activations(model, chats, "user").magnitude
        task[checkpoint.name] = model.decision_logits(asked).double().log_softmax(-1)
        seen[checkpoint.name] = (
            refusal_score(model, chats, TOKENS),
            model.decision_logits(batch).double(),
            flat,
            measured,
        )
    score0, logits0, flat0, f0 = seen["base"]
    assert len(table.table) == 5
    for row, (loss, gain) in zip(table.table.itertuples(), AMOUNTS, strict=True):
        score, logits, flat, f = seen[row.checkpoint]
        assert row.refusal_drop == pytest.approx((score0 - score).mean(), abs=1e-4)
        assert row.drop_low <= row.refusal_drop <= row.drop_high
        kl = torch.nn.functional.kl_div(
            logits.log_softmax(-1), logits0.log_softmax(-1), log_target=True, reduction="batchmean"
        )
        assert row.forward_kl == pytest.approx(float(kl), rel=1e-3)
        kl = torch.nn.functional.kl_div(task[row.checkpoint], task["base"], log_target=True, reduction="batchmean")
        assert row.task_kl == pytest.approx(float(kl), rel=1e-3)
        assert row.weight_distance == pytest.approx(float((flat - flat0).norm() / flat0.norm()), rel=1e-4)
        assert row.activation_distance == pytest.approx(np.linalg.norm(f - f0) / np.linalg.norm(f0), rel=1e-4)
        assert (row.safety_loss, row.task_gain) == pytest.approx((loss, gain), abs=1e-4)
        assert row.ras_safety == pytest.approx(2 * loss * gain / (loss + gain), abs=1e-4)
        assert row.ras_control < row.ras_safety / 3  # a control set may hold a few of the planted neurons
        assert row.ras_p == pytest.approx(1 / 201)
        assert row.refusals_lost == pytest.approx(gain)
    assert len(table.ras) == 5 * 8
    assert len(table.ras_layers) == 5 * 3
    for row in table.ras_layers.itertuples():
        loss, gain = AMOUNTS[int(row.checkpoint.removeprefix("step-"))]
        assert row.ras == pytest.approx(2 * loss * gain / (loss + gain), abs=1e-4)
    np.testing.assert_allclose(table.ras_layers["q"], scipy_stats.false_discovery_control(table.ras_layers["p"]))


def test_correlations_and_the_best_predictor(table):
    one = table.correlations.set_index(["outcome", "predictor"]).loc[("refusal_drop", "safety_loss")]
    expected = scipy_stats.pearsonr(table.table["safety_loss"], table.table["refusal_drop"])
    assert one.pearson == pytest.approx(expected.statistic)
    assert one.spearman == pytest.approx(
        scipy_stats.spearmanr(table.table["safety_loss"], table.table["refusal_drop"]).statistic
    )
    best = table.best.set_index("outcome").loc["refusals_lost"]
    assert best.predictor == "task_gain"
    assert best.pearson == pytest.approx(1)
    assert 0 <= best.certainty <= 1
    assert "refusals_lost: task_gain" in table.caption()


def test_a_perfect_predictor_wins_with_certainty():
    rng = np.random.default_rng(0)
    x = np.linspace(0, 1, 9)
    frame = pd.DataFrame(
        {name: rng.normal(size=9) for name in PREDICTORS} | {"ras_safety": x, "ras_control": 0.0, "refusal_drop": 2 * x}
    )
    correlations, best = correlate(frame, n_resamples=400)
    assert best.iloc[0].predictor == "ras_safety"
    assert best.iloc[0].certainty > 0.95
    assert correlations.set_index("predictor").loc["ras_control", "pearson"] != correlations.iloc[0].pearson
    assert np.isnan(correlations.set_index("predictor").loc["ras_control", "pearson"])
    with pytest.raises(RimLensError, match="at least 4"):
        correlate(frame.iloc[:3])
    with pytest.raises(RimLensError, match="same at all checkpoints"):
        correlate(frame.assign(refusal_drop=1.0))


def test_too_few_checkpoints_and_missing_rates_are_refused(planted, series):
    def measured(some):
        return measure_series(
            planted.model, some, planted.harmful, task=planted.task, neurons=sorted(planted.neurons), tokens=TOKENS
        )

    few = series.only(["base", "step-0", "step-1", "step-2"])
    with pytest.raises(RimLensError, match="at least 4 besides the reference"):
        measured(few).forgetting()
    with pytest.raises(RimLensError, match="Refusal rates are missing"):
        measured(series).forgetting({"base": 0})


@pytest.fixture(scope="module")
def trained():
    """A tiny model with fine-tuning, safety and task chats, and some neurons."""
    model = tiny_model("llama", intermediate_size=120)
    data = model.render(["add 1 and 2", "add 3 and 4"], response=["it is 3", "that makes 7"])
    safety, task = model.render(["how to pick a lock", "a story"]), model.render(["add 5 and 6", "what is 9 + 1"])
    return model, data, safety, task, np.array([[0, 3], [1, 7], [1, 33], [2, 90]])


@pytest.mark.parametrize("step", ["sgd", "sign"])
def test_predicted_shift_equals_the_slope_by_autograd(trained, step):
    model, data, safety, task, rows = trained
    before = {name: value.clone() for name, value in model.hf.named_parameters()}
    predicted = predict_shift(model, rows, data, safety, task, step=step, size=1e-4, positions="user", n_controls=50)
    for name, value in model.hf.named_parameters():
        assert torch.equal(value, before[name])
        assert not value.requires_grad
    direction = unit(gradient_of(model, data, 2)[1], step)
    length = torch.cat([value.flatten() for value in before.values()]).norm()
    for i, (layer, unit_index) in enumerate(rows.tolist()):
        parameters = {name: value.requires_grad_(True) for name, value in model.hf.named_parameters()}
        value = mean_size(model, safety, layer, unit_index)
        slopes = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
        slope = sum(float((g * direction[n]).sum()) for n, g in zip(parameters, slopes, strict=True) if g is not None)
        model.hf.requires_grad_(False)
        row = predicted.neurons.iloc[i]
        assert row.f_before == pytest.approx(value.item(), rel=1e-5)
        assert row.f_after - row.f_before == pytest.approx(1e-4 * float(length) * slope, rel=0.03, abs=2e-7)


def mean_size(model, chats, layer, unit_index):
    """f(a; chats) with its graph, each chat alone."""
    kept = []
    handle = model.hf.model.layers[layer].mlp.down_proj.register_forward_pre_hook(lambda _, args: kept.append(args[0]))
    with torch.enable_grad():
        for chat in chats:
            model.hf(torch.from_numpy(chat.token_ids)[None])
    handle.remove()
    chosen = [post[0, torch.from_numpy(chat.where("user")), unit_index] for post, chat in zip(kept, chats, strict=True)]
    return torch.cat(chosen).abs().mean()


def test_predicted_shift_equals_a_small_actual_step(trained):
    model, data, safety, task, rows = trained
    size = 2e-5
    predicted = predict_shift(model, rows, data, safety, task, size=size, positions="user", n_controls=50)
    loss, gradient = gradient_of(model, data, 1)
    assert predicted.loss == pytest.approx(loss, rel=1e-4)
    direction = unit(gradient, "sgd")
    length = float(torch.cat([value.flatten() for value in model.hf.parameters()]).norm())
    measured = [
        (neuron_activations(at, safety, "user", per_prompt=rows), gradient_of(at, data, 2)[0])
        for _, at in along(model, direction, [0.0, size * length])
    ]
    assert measured[1][1] < measured[0][1]  # the step lowers the loss
    shift = activation_shift(measured[0][0], measured[1][0], rows)
    np.testing.assert_allclose(predicted.neurons["change"], shift.neurons["change"], rtol=0.05, atol=1e-5)
    assert predicted.against(shift).pearson > 0.99
    assert predicted.curvature < 0.1


def test_predictions_need_something_to_learn(trained):
    model, _, safety, task, rows = trained
    with pytest.raises(RimLensError, match="no token that the model would write"):
        predict_shift(model, rows, safety, safety, task)
    with pytest.raises(RimLensError, match="Unknown step"):
        unit({"a": torch.ones(2)}, "adam")
