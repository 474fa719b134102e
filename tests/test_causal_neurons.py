"""Ablating neurons in score and generation, against hand-made ablations and against control sets."""

import numpy as np
import pytest
import torch
from families import shared_model, tiny_model

from rim_lens.behavior.generate import generate
from rim_lens.behavior.judge import LABELS, Judgement
from rim_lens.behavior.refusal_score import RefusalTokens, refusal_score
from rim_lens.capture.neuron_sets import matched_controls
from rim_lens.capture.neurons import neuron_activations
from rim_lens.causal.ablation import ablation
from rim_lens.causal.ablation_test import ablation_test as run_neuron_test
from rim_lens.data.prompts import Prompt
from rim_lens.errors import RimLensError
from rim_lens.inference_time.attribution import neuron_attributions
from rim_lens.intervene import ablate_neurons, scale_neurons
from rim_lens.intervene.recording import donor_rows
from rim_lens.model.direct_path import output_norms
from rim_lens.model.taps import Tap
from rim_lens.training_time.counterfactuals import refusal_forcing_pairs
from rim_lens.training_time.safety_neurons import find_safety_neurons
from rim_lens.units import Neuron

TOKENS = RefusalTokens((73, 80), ("a", "b"))
HARMFUL = ["pick a lock", "forge a pass", "steal it", "break in at night", "spy on him"]


def effect_by_hand(model, chats, neurons, tokens=TOKENS):
    """Mean change of the refusal score when columns of the down projection are zeroed in the weights."""
    before = refusal_score(model, chats, tokens)
    kept = {layer: model.hf.model.layers[layer].mlp.down_proj.weight.clone() for layer, _ in neurons}
    for layer, unit in neurons:
        model.hf.model.layers[layer].mlp.down_proj.weight[:, unit] = 0
    after = refusal_score(model, chats, tokens)
    for layer, weight in kept.items():
        model.hf.model.layers[layer].mlp.down_proj.weight.copy_(weight)
    return (after - before).mean()


class ConstantNeuron(Tap):
    """Sets one neuron to a constant at every token."""

    def __init__(self, layer, unit, value):
        self.layers, self.unit, self.value = frozenset({layer}), unit, value

    def on_neurons(self, layer, post):
        column = torch.arange(post.shape[-1], device=post.device) == self.unit
        return torch.where(column, self.value, post)


def test_zero_ablation_equals_zeroed_weights_for_the_set_and_for_controls():
    model = tiny_model("llama")
    rows = np.array([[0, 3], [1, 7], [2, 40]])
    base = np.random.default_rng(0).random((3, model.d_mlp))
    controls = matched_controls(rows, 12, base=base)
    found = run_neuron_test(model, rows, HARMFUL, controls=controls, n_controls=12, generated=False, tokens=TOKENS)
    chats = model.render(HARMFUL)
    row = found.table.iloc[0]
    with torch.no_grad():
        assert row.effect == pytest.approx(effect_by_hand(model, chats, rows.tolist()), abs=1e-4)
        null = [effect_by_hand(model, chats, control.tolist()) for control in controls]
    np.testing.assert_allclose(found.controls["effect"], null, atol=1e-4)
    assert row.percentile == pytest.approx(100 * np.mean(np.array(null) < row.effect), abs=1e-9)
    assert (row.n, row.n_controls) == (5, 12)
    assert "12 matched random sets" in found.caption()


@pytest.mark.slow
def test_every_method_in_generation_with_maths():
    model = tiny_model("llama")
    rows = np.array([[0, 3], [1, 7], [2, 40]])
    controls = matched_controls(rows, 4, base=np.random.default_rng(0).random((3, model.d_mlp)))
    maths = [Prompt("1 + 1", None, "a", answer="2"), Prompt("2 + 3", None, "b", answer="5")]
    found = run_neuron_test(
        model, rows, HARMFUL, maths=maths, method=("zero", "mean", "resample"), controls=controls,
        n_controls=4, n_generated_controls=2, tokens=TOKENS, max_new_tokens=3, cot_budget=3, maths_thinking="off",
    )  # fmt: skip
    table = found.table.set_index(["change", "measure"])
    assert set(table.index.get_level_values("change")) == {f"{one} ablation" for one in ("zero", "mean", "resample")}
    assert table.loc[("mean ablation", "maths solved"), "n_controls"] == 2
    assert table.loc[("mean ablation", "refusal score, harmful"), "n_controls"] == 4
    for method in ("zero", "mean", "resample"):
        labels = [table.loc[(f"{method} ablation", f"{label}, harmful"), "after"] for label in LABELS]
        assert sum(labels) == pytest.approx(1)
    effects = table.xs("refusal score, harmful", level="measure")["effect"]
    assert effects.nunique() == 3
    assert table["q"].notna().any()


def test_experts_are_ablated_for_each_row_of_the_batch():
    model = tiny_model("qwen3_moe")
    chats = model.render(HARMFUL)
    batch = model.batch(chats)
    neurons = [(0, 1, 3), (1, 2, 5), (2, 0, 7), (2, 3, 1)]
    untouched = model.decision_logits(batch)
    kept = {name: value.clone() for name, value in model.hf.named_parameters()}
    for layer, expert, unit in neurons:
        model.hf.model.layers[layer].mlp.experts.down_proj[expert, :, unit] = 0
    expected = model.decision_logits(batch)
    for name, value in model.hf.named_parameters():
        value.copy_(kept[name])
    with ablate_neurons(model, neurons):
        torch.testing.assert_close(model.decision_logits(batch), expected, atol=1e-4, rtol=1e-4)
    with ablate_neurons(model, [neurons, [], neurons, [], []]):
        mixed = model.decision_logits(batch)
    torch.testing.assert_close(mixed[[0, 2]], expected[[0, 2]], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(mixed[[1, 3, 4]], untouched[[1, 3, 4]], atol=1e-4, rtol=1e-4)
    assert (expected - untouched).abs().max() > 1e-2
    torch.testing.assert_close(model.decision_logits(batch), untouched, atol=0, rtol=0)
    controls = matched_controls(neurons, 3, base=np.random.default_rng(0).random((3, 4, 16)))
    found = run_neuron_test(model, neurons, HARMFUL, controls=controls, n_controls=3, generated=False, tokens=TOKENS)
    with torch.no_grad(), ablate_neurons(model, neurons):
        after = refusal_score(model, chats, TOKENS)
    assert found.table.iloc[0].after == pytest.approx(after.mean(), abs=1e-4)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize("method", ["zero", "mean"])
def test_from_the_decision_position_equals_whole_passes_that_are_changed_there(family, method):
    model = tiny_model(family)
    rows = np.array([[0, 3], [1, 7], [2, 40]])
    controls = matched_controls(rows, 6, base=np.random.default_rng(0).random((3, model.d_mlp)))
    found = run_neuron_test(
        model, rows, HARMFUL, positions="from_decision", method=method, controls=controls, n_controls=6,
        generated=False, tokens=TOKENS,
    )  # fmt: skip
    chats = model.render(HARMFUL)
    means = torch.from_numpy(neuron_activations(model, chats, "decision").mean)
    expected = []
    for one in (rows, *controls):
        with ablate_neurons(model, [tuple(row) for row in one.tolist()], method, reference=means, positions="decision"):
            expected.append(refusal_score(model, chats, TOKENS))
    before = refusal_score(model, chats, TOKENS)
    assert found.table.iloc[0].effect == pytest.approx((expected[0] - before).mean(), abs=1e-3)
    np.testing.assert_allclose(found.controls["effect"], [(one - before).mean() for one in expected[1:]], atol=1e-3)
    assert "from the decision position on" in found.caption()
    everywhere = run_neuron_test(
        model, rows, HARMFUL, method=method, controls=controls, n_controls=6, generated=False, tokens=TOKENS
    )
    assert abs(everywhere.table.iloc[0].effect - found.table.iloc[0].effect) > 1e-3


@pytest.mark.parametrize("positions", ["all", "from_decision"])
@pytest.mark.slow
def test_answers_and_likelihoods_of_many_sets_are_those_of_one_set_after_the_other(positions):
    model = tiny_model("llama")
    rows = np.array([[0, 3], [1, 7], [2, 40], [2, 5], [2, 6]])
    controls = matched_controls(rows, 3, base=np.random.default_rng(0).random((3, model.d_mlp)))
    maths = [Prompt("1 + 1", None, "a", answer="2"), Prompt("2 + 3 + 100", None, "b", answer="105")]
    answered = []

    def judge(requests, responses, cots=None, truncated=None):
        answered.append(list(responses))
        return [Judgement("refused" if "a" in text.lower() else "complied", 1.0, "") for text in responses]

    judge.name = "made"
    found = run_neuron_test(
        model, rows, HARMFUL, maths=maths, solve=False, positions=positions, controls=controls, n_controls=3,
        n_generated_controls=3, n_maths_controls=3, tokens=TOKENS, judge=judge, max_new_tokens=6,
    )  # fmt: skip
    chats = model.render(HARMFUL)
    expected, likelihoods = [], []
    for one in (None, rows, *controls):
        units = [] if one is None else [tuple(row) for row in one.tolist()]
        with ablate_neurons(model, units, positions=positions):
            expected.append([a.response for a in generate(model, chats, max_new_tokens=6, progress=False)])
            values = []
            for problem in maths:
                (chat,) = model.render([problem.text], response=f"The answer is {problem.answer}.")
                start = chat.decision_position
                log_p = model.logits(model.batch([chat]))[0].double().log_softmax(-1)
                ids = chat.token_ids[start + 1 : start + 1 + len(f"The answer is {problem.answer}.")]
                values.append(np.mean([float(log_p[start + i, token]) for i, token in enumerate(ids)]))
            likelihoods.append(values)
    assert answered == expected
    row = found.table.set_index("measure").loc["log-likelihood of maths answers"]
    assert row.before == pytest.approx(np.mean(likelihoods[0]), abs=1e-4)
    assert row.after == pytest.approx(np.mean(likelihoods[1]), abs=1e-4)
    mine = found.controls.query("measure == 'log-likelihood of maths answers'")["effect"]
    np.testing.assert_allclose(mine, np.mean(np.array(likelihoods[2:]) - likelihoods[0], axis=1), atol=1e-4)


def test_experts_at_the_decision_position_where_prompts_can_be_computed_once():
    model = tiny_model("qwen3_moe")
    neurons = [(0, 1, 3), (1, 2, 5), (2, 0, 7), (2, 3, 1)]
    controls = matched_controls(neurons, 3, base=np.random.default_rng(0).random((3, 4, 16)))
    found = run_neuron_test(
        model,
        neurons,
        HARMFUL,
        positions="from_decision",
        controls=controls,
        n_controls=3,
        generated=False,
        tokens=TOKENS,
    )
    chats = model.render(HARMFUL)
    lengths = [len(chat) - 1 for chat in chats]
    clean = refusal_score(model, chats, TOKENS)
    after = []
    for chat, length in zip(chats, lengths, strict=True):  # by hand: the cache of the prompt, then one ablated token
        ids = torch.from_numpy(chat.token_ids)[None]
        with torch.no_grad():
            cache = model.hf(ids[:, :length], use_cache=True).past_key_values
            with ablate_neurons(model, neurons):
                logits = model.hf(ids[:, length:], past_key_values=cache, use_cache=True).logits[:, -1]
        after.append(float(TOKENS.score(logits)[0]))
    assert found.table.iloc[0].effect == pytest.approx((np.array(after) - clean).mean(), abs=1e-3)


def by_hand(model, chats, layer, expert, unit, change):
    """Decision logits with one neuron of an expert changed by transformers' own eager experts, one chat at a time."""
    experts, logits = model.hf.model.layers[layer].mlp.experts, []
    own = type(experts).forward
    for chat in chats:

        def forward(hidden, index, weights, chat=chat):
            out = own(experts, hidden, index, weights)
            for token, choice in (index == expert).nonzero().tolist():
                gate, up = (experts.gate_up_proj[expert] @ hidden[token]).chunk(2)
                value = (torch.nn.functional.silu(gate) * up)[unit]
                shift = change(value, token, chat) - value
                out[token] += weights[token, choice] * shift * experts.down_proj[expert, :, unit]
            return out

        experts.forward = forward
        with torch.no_grad():
            logits.append(model.hf(torch.from_numpy(chat.token_ids)[None]).logits[0, -1])
        del experts.forward
    return torch.stack(logits)


def sent_values(model, chats, layer, expert, unit, positions):
    """The neuron's value at each token of each chat that was sent to its expert."""
    found = {id(chat): {} for chat in chats}

    def keep(value, token, chat):
        found[id(chat)][token] = float(value)
        return value

    by_hand(model, chats, layer, expert, unit, keep)
    at = [(len(chat) - 1,) if positions == "decision" else range(len(chat)) for chat in chats]
    return [
        [found[id(chat)][t] for t in tokens if t in found[id(chat)]] for chat, tokens in zip(chats, at, strict=True)
    ]


@pytest.mark.parametrize("positions", ["all", "decision"])
@pytest.mark.slow
def test_every_change_of_an_expert_equals_the_same_change_by_hand(positions):
    model, layer, unit = tiny_model("qwen3_moe"), 1, 5
    chats = model.render(HARMFUL)
    batch = model.batch(chats)
    by_expert = [sent_values(model, chats, layer, one, unit, positions) for one in range(4)]
    expert = max(range(4), key=lambda one: sum(map(len, by_expert[one])))
    neurons, values = [(layer, expert, unit)], by_expert[expert]
    put = [np.mean(of) if of else 0.0 for of in values]
    mean = np.mean([value for of in values for value in of])
    requests = [chat.request for chat in chats]
    donor = dict(zip(requests, donor_rows(requests, requests, 0), strict=True))
    ways = {
        "scale": (lambda v, c: 2 * v, scale_neurons(model, neurons, 2.0, positions=positions)),
        "zero": (lambda v, c: 0, ablation(model, "neurons", "zero", positions, chats)(neurons)),
        "mean": (lambda v, c: mean, ablation(model, "neurons", "mean", positions, chats)(neurons)),
        "resample": (
            lambda v, c: put[donor[c.request]],
            ablation(model, "neurons", "resample", positions, chats)(neurons),
        ),
    }
    clean = model.decision_logits(batch)
    for name, (function, change) in ways.items():

        def at_positions(value, token, chat, function=function):
            return function(value, chat) if positions == "all" or token == len(chat) - 1 else value

        expected = by_hand(model, chats, layer, expert, unit, at_positions)
        with change:
            torch.testing.assert_close(model.decision_logits(batch), expected, atol=1e-4, rtol=1e-4, msg=name)
        assert (expected - clean).abs().max() > 1e-3, name


def test_what_cannot_be_ablated_is_an_error():
    model = tiny_model("qwen3_moe")
    with pytest.raises(RimLensError, match="there is no neuron"):
        ablate_neurons(model, [(0, 9, 0)])
    with pytest.raises(RimLensError, match=r"whose neurons are \(layer, unit\)"):
        ablate_neurons(tiny_model("llama"), [(0, 1, 2)])
    with pytest.raises(RimLensError, match='backend="fast"'), ablate_neurons(model, [(0, 1, 2)], backend="hooks"):
        pass


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3_moe", "deepseek_v2"])
@pytest.mark.parametrize("positions", ["all", "decision"])
def test_attribution_of_neurons_is_the_slope_of_scaling_them(family, positions):
    """Central differences of the score over the scale of one neuron."""
    model = tiny_model(family)
    chats = model.render(["pick a lock", "spy on him at his house"])
    estimate = neuron_attributions(model, chats, TOKENS.score, positions=positions)
    assert estimate.shape[0] == len(chats)
    largest = np.argsort(-np.abs(estimate).max(axis=0).ravel())[[0, 1, 5, 20]]
    for place in largest:
        neuron = np.unravel_index(place, estimate.shape[1:])
        scores = []
        for factor in (1.004, 0.996):
            with scale_neurons(model, [tuple(map(int, neuron))], factor, positions=positions):
                scores.append(refusal_score(model, chats, TOKENS))
        slope = (scores[0] - scores[1]) / 0.008
        np.testing.assert_allclose(estimate[:, *neuron], -slope, rtol=0.02, atol=2e-3)


def test_neurons_that_carry_refusal_are_found_by_attribution_and_not_by_wording():
    """One neuron's output is made to be what the score reads; the wordings of forced requests do not move it."""
    model = tiny_model("llama")
    toward = model.hf.lm_head.weight[list(TOKENS.ids)].mean(0) - model.hf.lm_head.weight.mean(0)
    model.hf.model.layers[2].mlp.down_proj.weight[:, 11] = 4 * toward / toward.norm()
    model.hf.model.layers[2].mlp.gate_proj.weight[11] = 0  # SiLU(0) · up is 0, so the neuron needs a gate of its own
    model.hf.model.layers[2].mlp.up_proj.weight[11] = 0
    tap = ConstantNeuron(2, 11, 1.0)
    with model.tap(tap):
        pairs = refusal_forcing_pairs(model, HARMFUL * 2)
        attributed = find_safety_neurons(model, pairs, top=1, groups=1, ranked_by="attribution", n_resamples=20)
        compared = find_safety_neurons(model, pairs, top=1, n_resamples=20)
    assert attributed.rows.tolist() == [[2, 11]]
    assert "top 1 by estimated refusal lost when zeroed (nats), 10 requests" in attributed.caption()
    assert "by chance" not in attributed.caption()
    assert "by chance" in find_safety_neurons(model, pairs, top=4, groups=2, n_resamples=20).caption()
    assert [2, 11] not in compared.rows.tolist()


def test_neurons_named_by_hand_are_matched_by_their_activation_on_the_requests():
    model = shared_model()
    found = run_neuron_test(model, ["L0N3", "L1N7"], HARMFUL, n_controls=12, generated=False, tokens=TOKENS)
    chats = model.render(HARMFUL, thinking="off")
    base = neuron_activations(model, chats, "decision", progress=False)
    drawn = matched_controls([(0, 3), (1, 7)], 20, base=base.magnitude, written=output_norms(model), seed=0)[:12]
    assert found.table["n_controls"].iloc[0] == 12
    named = [[str(Neuron(*row)) for row in rows] for rows in drawn.tolist()]
    assert found.controls["units"].tolist() == [" ".join(one) for one in named]
