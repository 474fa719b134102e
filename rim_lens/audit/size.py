"""What an audit of a plan's size can decide: its claims, and the power of each one's test."""

from rim_lens.audit.plan import AuditPlan
from rim_lens.claims.power import WANTED, Power, power
from rim_lens.training_time.checkpoints import Checkpoints
from rim_lens.training_time.series import Checkpoint


def size_line(plan: AuditPlan) -> str:
    """How many claims the plan's n can decide, in one sentence."""
    table = power_of(plan).table
    asked = table[table["claim"].isin(claims_of(plan))]
    enough = int((asked["power"] >= WANTED).sum())
    return (
        f"{plan.n} prompts per set: {enough} of {len(asked)} claims have 80 % power at their margin; "
        "rim-lens plan says what the others take."
    )


def claims_of(plan: AuditPlan) -> list[str]:
    """The claims that the plan's stages measure."""
    series = plan.checkpoints is not None or plan.finetune is not None
    wanted = {
        "thinking": True,
        "effort_cot": plan.asks_patterns or bool(plan.given_cots),
        "attention": plan.heads,
        "heads": plan.heads,
        "reasoning_data": series,
        "effort_data": series,
        "safety_neurons": series and plan.neurons,
        "neuron_shift": series and plan.neurons,
        "ras": series and plan.neurons,
    }
    return [name for name, holds in wanted.items() if holds]


def power_of(plan: AuditPlan, n_heads: int = 1) -> Power:
    """Power at the plan's n, with the seeds of its series; the heads matter to the floors alone."""
    trained = [] if plan.checkpoints is None else trained_of(Checkpoints.from_folder(plan.checkpoints))
    seeds = [len({one.seed for one in trained if one.arm == arm}) for arm in {one.arm for one in trained}]
    return power(
        plan.n,
        heads=n_heads,
        controls=plan.n_controls,
        checkpoints=len({(one.arm, one.seed) for one in trained}),
        trainings=min(seeds, default=1),
        claims=len(claims_of(plan)),
        margins=plan.margins,
    )


def trained_of(series: Checkpoints) -> list[Checkpoint]:
    """The checkpoints but for the reference."""
    return [one for one in series.items if one.name != series.reference.name]
