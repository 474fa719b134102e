"""The stage that makes the series it then measures: every arm of fine-tuning with every seed, from the audited model.

rim-lens audit MODEL --finetune PROBLEMS     # a set with rationales: the arms plain, effort and style are written from
it rim-lens audit MODEL --finetune ARMS.toml    # arms, settings and seeds of your own
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from rim_lens.audit.plan import AuditPlan
from rim_lens.audit.stage import Context
from rim_lens.errors import RimLensError
from rim_lens.model.adapter import base_and_adapter
from rim_lens.patterns.finetune import finetune
from rim_lens.patterns.training_plan import TrainingPlan, TrainingSettings, WorkedProblems, read_plan
from rim_lens.processes import n_processes
from rim_lens.results import Result

SERIES = "series"
# 36 steps of eight problems: enough for every dose of the three arms to be on one path, few enough to repeat with three
# seeds.
SETTINGS = TrainingSettings(batch_size=8, loss_mean="example", save_at=(9, 18, 36), seeds=(1, 2, 3))


def with_series(plan: AuditPlan, out: Path) -> AuditPlan:
    """The plan with the folder that its own series is trained into as its checkpoints.

    Raises:
        RimLensError: a series was given as well, or several processes are at work.

    """
    if plan.finetune is None:
        return plan
    home = str(out / SERIES)
    if plan.checkpoints not in (None, home):
        raise RimLensError(
            "An audit takes a series of checkpoints or trains one: give --checkpoints or --finetune, not both."
        )
    if n_processes() > 1:
        raise RimLensError(
            "Fine-tuning runs in one process; start the audit without a launcher, or train with rim-lens finetune "
            "first."
        )
    return replace(plan, checkpoints=home)


def measure_finetuning(context: Context) -> Mapping[str, Result]:
    """Train every arm with every seed, or go on where that stopped."""
    plan = context.plan
    assert plan.finetune is not None
    assert plan.checkpoints is not None
    base, adapter = base_and_adapter(plan.model)
    training = training_plan(plan.finetune, adapter)
    done = finetune(
        base,
        training,
        plan.checkpoints,
        device=plan.device,
        tags=plan.tags,
        template_variables=plan.variables,
    )
    return {"finetuning": done}


def training_plan(source: str, adapter: Path | None) -> TrainingPlan:
    """The plan in a `.toml`, or the usual settings on worked problems; it starts from the audited model.

    Raises:
        RimLensError: a `.toml` that starts from another adapter than the audited one.

    """
    if Path(source).suffix.lower() != ".toml":
        return TrainingPlan(
            SETTINGS,
            adapter=adapter,
            problems=WorkedProblems(source, n_problems=SETTINGS.batch_size * SETTINGS.save_at[-1]),
        )
    plan = read_plan(source)
    if plan.adapter is None or (adapter is not None and plan.adapter.resolve() == adapter.resolve()):
        return replace(plan, adapter=adapter)
    raise RimLensError(
        f"{source} starts from the adapter {plan.adapter}; name that folder as the model of the audit, or leave "
        "adapter out of the file."
    )
