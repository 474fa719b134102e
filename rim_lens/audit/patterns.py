"""The stage on effort-minimizing reasoning: what each pattern costs, and where patterns are found.

Given CoTs are asked here alone, with one wording per prompt in rotation; answers with thinking off and on are the
behaviour stage's.
"""

from collections.abc import Mapping

from rim_lens.audit.attempt import attempt
from rim_lens.audit.stage import Context
from rim_lens.behavior.measure import RimTable
from rim_lens.patterns.arm_distance import arm_divergence
from rim_lens.patterns.costs import pattern_costs
from rim_lens.patterns.own_cots import own_patterns
from rim_lens.results import Result
from rim_lens.training_time.series import read_series

WORDINGS_PER_PROMPT = 1  # in rotation: with 32 prompts every wording of a class is seen
TRAINING_PROBLEMS = 200  # of the arms' data that are labelled


def measure_patterns(context: Context) -> Mapping[str, Result]:
    """Costs of each pattern, patterns in each arm's training data, and in the model's own CoTs."""
    model, plan, behavior = context.writer, context.plan, context.results["behavior"]
    assert isinstance(behavior, RimTable)
    found = {
        "pattern_costs": attempt(
            model,
            "what each reasoning pattern costs",
            lambda: pattern_costs(
                model,
                context.prompts("harmful"),
                wordings_per_prompt=WORDINGS_PER_PROMPT,
                measured=behavior,
                max_new_tokens=plan.max_new_tokens,
                **plan.sampling,
                batch_size=plan.batch_size,
                seed=plan.seed,
            ),
        )
    }
    files = read_series(plan.checkpoints).training if plan.checkpoints else {}
    if files:
        found["training_patterns"] = attempt(
            model,
            "patterns in the fine-tuning data",
            lambda: arm_divergence(files, tokenizer=model, n=TRAINING_PROBLEMS, seed=plan.seed),
        )
    found["own_patterns"] = attempt(model, "patterns in the model's own CoTs", lambda: own_patterns(behavior))
    return found
