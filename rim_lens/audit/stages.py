"""The stages of an audit, in order. Each asks the API for results; nothing is computed here."""

from collections.abc import Mapping

from rim_lens.audit.attempt import attempt
from rim_lens.audit.finetuning import measure_finetuning
from rim_lens.audit.heads import measure_heads
from rim_lens.audit.neurons import measure_neurons, measure_thinking_neurons, units_to_follow
from rim_lens.audit.patterns import measure_patterns
from rim_lens.audit.plan import AuditPlan
from rim_lens.audit.stage import Context, Stage
from rim_lens.behavior.measure import measure_rim
from rim_lens.results import Result
from rim_lens.training_time.arm_comparison import compare_arms
from rim_lens.training_time.series_measurement import measure_series


def measure_behavior(context: Context) -> Mapping[str, Result]:
    """What thinking does to refusal and maths accuracy at the reference checkpoint.

    Given CoTs of harmful requests are left to the stage on patterns where it runs; it asks the same kinds, and more.
    """
    plan = context.plan
    extent = plan.extent
    table = measure_rim(
        context.writer,
        context.prompts("harmful"),
        context.prompts("harmless"),
        context.prompts("maths") if extent.maths else None,
        thinking={"harmful": ("off", "on"), "harmless": extent.harmless, "maths": ("off", "on")},
        prefilled={
            "harmful": plan.given_cots,
            "harmless": ("neutral",) if plan.prefilled and extent.given_cots else (),
        },
        seed=plan.seed,
        max_new_tokens=plan.max_new_tokens,
        maths_tokens=plan.maths_tokens,
        cot_budget=plan.cot_budget,
        **plan.sampling,
        batch_size=plan.batch_size,
    )
    return {"behavior": table}


def measure_checkpoints(context: Context) -> Mapping[str, Result]:
    """Everything measured at the checkpoints, each loaded once; refusal and maths, and arms against each other."""
    plan, model = context.plan, context.model
    neurons, heads = units_to_follow(context) if wants_neurons(plan) else (None, [])
    found = measure_series(
        model,
        context.series,
        context.prompts("harmful"),
        list(context.prompts("maths"))[: plan.extent.problems],
        neurons=neurons if neurons is not None and len(neurons) else None,
        heads=heads,
        n_random=len(heads),
        answers=True,
        max_new_tokens=plan.max_new_tokens,
        **plan.sampling,
        batch_size=plan.batch_size,
        seed=plan.seed,
    )
    series, maths = found.behavior(seed=plan.seed), found.maths(seed=plan.seed)
    arms = attempt(model, "arms of fine-tuning against each other", lambda: compare_arms(series, maths))
    results: dict[str, Result] = {"series": series, "series_maths": maths, "arms": arms}
    return results if neurons is None else results | {"safety_neurons": neurons, "series_measurement": found}


def wants_neurons(plan: AuditPlan) -> bool:
    """Whether the training-time stages run: they are about a series."""
    return plan.neurons and plan.checkpoints is not None


FIRST = ("finetune",)  # what the other stages measure

STAGES = (
    Stage(
        "finetune",
        "Fine-tuning: every arm with every seed",
        measure_finetuning,
        lambda plan: plan.finetune is not None,
    ),
    Stage("behavior", "What thinking changes", measure_behavior),
    Stage(
        "patterns",
        "Effort-minimizing reasoning: what each pattern costs",
        measure_patterns,
        lambda plan: plan.asks_patterns,
    ),
    Stage(
        "series",
        "Refusal and maths over the checkpoints",
        measure_checkpoints,
        lambda plan: plan.checkpoints is not None,
    ),
    Stage("heads", "Inference time: attention and ablation of heads", measure_heads, lambda plan: plan.heads),
    Stage("neurons", "Training time: neurons, activation shift, RAS", measure_neurons, wants_neurons),
    Stage(
        "thinking_neurons",
        "What the neurons do, thinking off and on",
        measure_thinking_neurons,
        lambda plan: wants_neurons(plan) and plan.extent.thinking_neurons,
        needs=("behavior",),
    ),
)
