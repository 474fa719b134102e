"""The training-time stages: safety-critical neurons of the reference, and what the series does to them and to heads.

One measurement of every checkpoint (`stages.measure_checkpoints`) serves shift, RAS, forgetting, the heads that are
followed, and the prediction's actual side. Neurons are chosen on the sample; their causal test, and the choice of the
heads, are on other prompts.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rim_lens.audit.attempt import NotMeasured, attempt
from rim_lens.audit.heads import answers_in
from rim_lens.audit.stage import Context
from rim_lens.behavior.conditions import chats_of
from rim_lens.behavior.measure import RimTable
from rim_lens.behavior.refusal_score import refusal_tokens
from rim_lens.capture.neuron_sets import matched_controls
from rim_lens.causal.ablation_test import ablation_test
from rim_lens.chat.chat import Chat
from rim_lens.data.prompts import Prompt
from rim_lens.inference_time.attribution import head_attributions
from rim_lens.model.as_chats import as_chats
from rim_lens.model.lens_model import LensModel
from rim_lens.results import Manifest, Result
from rim_lens.training_time.counterfactuals import refusal_forcing_pairs
from rim_lens.training_time.neuron_table import read_table
from rim_lens.training_time.prediction_check import prediction_check
from rim_lens.training_time.safety_neurons import SafetyNeurons, find_safety_neurons
from rim_lens.training_time.series import read_series, training_examples
from rim_lens.training_time.series_measurement import SeriesMeasurement
from rim_lens.training_time.shift import activation_shift
from rim_lens.units import Head

FOLLOWED_HEADS = 4  # and as many random ones: each costs a token per prompt and checkpoint
# By attribution over all requests: the paper's recipe finds no neurons that carry refusal where some are known to.
# The share is that of CNA; sets from two halves of 64 requests are then much the same (Jaccard .8).
CHOICE: Mapping[str, Any] = {"ranked_by": "attribution", "groups": 1, "top": 0.001}
EXAMPLES = 2  # of each arm's fine-tuning data, for the predicted shift: one batch of a short training
SHIFT_CONTROLS = 1000
GENERATED_CONTROLS = 0  # a set's answers cost a hundred times what its score costs
MATHS_CONTROLS, TESTED_MATHS = 40, 8


def units_to_follow(context: Context) -> tuple[SafetyNeurons, list[Head]]:
    """Safety neurons of the sample, and the heads that support refusal of other prompts."""
    model, plan = context.model, context.plan
    pairs = refusal_forcing_pairs(model, list(context.prompts("harmful")), seed=plan.seed)
    neurons = find_safety_neurons(model, pairs, **CHOICE, batch_size=plan.batch_size, seed=plan.seed)
    return neurons, supporting_heads(model, list(context.other_prompts("harmful"))) if len(neurons) else []


def measure_neurons(context: Context) -> Mapping[str, Result]:
    """What every checkpoint does to safety neurons, to refusal heads and to refusal, and the neurons' causal test."""
    model, plan = context.model, context.plan
    neurons, found = context.results["safety_neurons"], context.results["series_measurement"]
    assert isinstance(neurons, SafetyNeurons)
    assert isinstance(found, SeriesMeasurement)
    if not len(neurons):
        return {"neuron_shift": no_neurons(model, "what fine-tuning does to safety neurons")}
    other = list(context.other_prompts("harmful"))
    parts: dict[str, tuple[str, Callable[[], Result]]] = {
        "neuron_shift": (
            "shift of neurons over the series",
            lambda: found.shift(n_controls=SHIFT_CONTROLS, seed=plan.seed),
        ),
        "forgetting": (
            "forgetting and its predictors",
            lambda: found.forgetting(n_controls=SHIFT_CONTROLS, seed=plan.seed),
        ),
        "series_heads": ("heads over the series", lambda: found.heads(seed=plan.seed)),
        "neuron_test": ("causal test of neurons", lambda: causal_test(context, neurons, other)),
    }
    if plan.extent.training_data and (data := training_data(context)):
        safety = as_chats(model, context.prompts("harmful"))
        parts["prediction"] = (
            "shift predicted before training",
            lambda: prediction_check(
                model, neurons, data, safety, found.found, n_controls=SHIFT_CONTROLS, seed=plan.seed
            ),
        )
    return {name: attempt(model, *part) for name, part in parts.items()}


def no_neurons(model: LensModel, what: str) -> NotMeasured:
    """Why nothing can be said about an empty set."""
    reason = "No neuron is in the top of every group of prompts, so there is no set; use more prompts or a larger top."
    return NotMeasured(what=what, reason=reason, manifest=Manifest.collect(model))


def texts(prompts: Sequence[Prompt] | Any) -> list[str]:
    """The prompts' requests."""
    return [prompt.text for prompt in prompts]


def supporting_heads(model: LensModel, prompts: Sequence[Prompt]) -> list[Head]:
    """The heads whose zeroing at the decision position is estimated to lower the refusal score most."""
    estimate = head_attributions(
        model, as_chats(model, texts(prompts)), refusal_tokens(model).score, positions="decision"
    ).estimate.mean(axis=0)
    order = estimate.ravel().argsort()[:FOLLOWED_HEADS]
    return [Head(*divmod(int(place), model.n_heads)) for place in order]


def causal_test(context: Context, neurons: SafetyNeurons, other: Sequence[Prompt]) -> Result:
    """Zeroing the neurons from the decision position on, on prompts that they were not chosen on."""
    plan = context.plan
    beside = plan.extent.tested_beside
    return ablation_test(
        context.model,
        neurons,
        other,
        maths=list(context.prompts("maths"))[:TESTED_MATHS] if beside else None,
        generated=beside,
        solve=False,  # at the floor in small models, where the likelihood still differs
        positions="from_decision",
        controls=matched_controls(neurons, plan.n_controls, seed=plan.seed),
        n_controls=plan.n_controls,
        n_generated_controls=GENERATED_CONTROLS,
        n_maths_controls=MATHS_CONTROLS,
        seed=plan.seed,
        max_new_tokens=plan.max_new_tokens,
    )


def training_data(context: Context) -> dict[str, list[Chat]]:
    """A sample of each arm's fine-tuning data, where the series names such files."""
    folder = context.plan.checkpoints
    files = read_series(folder).training if folder else {}
    return {arm: training_examples(context.model, path)[:EXAMPLES] for arm, path in files.items()}


def measure_thinking_neurons(context: Context) -> Mapping[str, Result]:
    """What the leading neurons do, and how thinking with an own CoT shifts the set at the decision position."""
    model, plan = context.model, context.plan
    neurons, behavior = context.results["safety_neurons"], context.results["behavior"]
    assert isinstance(neurons, SafetyNeurons)
    assert isinstance(behavior, RimTable)
    if not len(neurons):
        return {"neuron_table": no_neurons(model, "what safety neurons do")}
    off, on = (chats_of(answers_in(behavior, "harmful", mode)) for mode in ("off", "on"))
    table, before, after = read_table(model, neurons, off, on, batch_size=plan.batch_size, seed=plan.seed)
    shift = attempt(
        model,
        "shift of neurons between thinking off and on",
        lambda: activation_shift(
            before,
            after,
            neurons,
            controls=matched_controls(neurons, SHIFT_CONTROLS, base=before, seed=plan.seed),
            states=("thinking off", "thinking on"),
            seed=plan.seed,
        ),
    )
    return {"neuron_table": table, "thinking_shift": shift}
