"""A small audit of an organism whose mechanism is known: what holds in it by construction should be supported.

Two claims are decided: that effort-minimizing CoTs lower refusal more than careful and neutral ones, and that the
trained heads carry refusal. Requests and wordings were not trained on.
"""

from dataclasses import dataclass

from rim_lens.behavior.measure import RimTable, measure_rim
from rim_lens.causal.ablation_test import ablation_test
from rim_lens.claims.verdicts import Verdicts, line, verdicts
from rim_lens.errors import RimLensError
from rim_lens.organisms.organism import Organism
from rim_lens.units import Head

PREFILLED = ("effort_minimizing", "careful", "neutral")
DECIDED = ("effort_cot", "heads")
WIDTH = 79


@dataclass(frozen=True, eq=False)
class KnownAudit:
    """What was measured on an organism: its answers and the verdicts on the claims that its construction settles."""

    organism: Organism
    behavior: RimTable
    verdicts: Verdicts

    def lines(self) -> list[str]:
        """The verdicts, and one request with its answer under two conditions, in at most 80 columns."""
        table = self.verdicts.table
        rows = table[table["claim"].isin(DECIDED)].to_dict("records")
        answers = self.behavior.answers
        request = answers["request"].iloc[0]
        shown = answers[(answers["request"] == request) & answers["condition"].isin(("off", "effort_minimizing"))]
        words = [f"  {row.condition}: {' '.join(row.response.split())}" for row in shown.itertuples()]
        model, n_trained = self.organism.model, len(self.organism.truth)
        of = model.n_layers * model.n_heads
        about = f"{self.organism.name}: requests about food are refused; {n_trained} of {of} heads were trained"
        return [about, *map(line, rows), f"  request: {request}", *(one[:WIDTH] for one in words)]


def audit_known(organism: Organism, *, n: int = 32, n_controls: int = 24, seed: int = 0) -> KnownAudit:
    """Refusal with thinking off and under three kinds of CoT, and the trained heads' ablation against random heads.

    Args:
        organism: from `rim_lens.organisms.load`.
        n: requests.
        n_controls: random sets of heads of the same layers.
        seed: of every draw.

    Raises:
        RimLensError: an organism in which neurons were trained.
    """
    if not all(isinstance(unit, Head) for unit in organism.truth):
        raise RimLensError(f"{organism.name} has trained neurons; give an organism with trained heads, inference-….")
    prompts = organism.prompts.sample(n, seed)
    behavior = measure_rim(
        organism.model, prompts, None, None, thinking="off", prefilled=PREFILLED, max_new_tokens=16, seed=seed
    )
    tested = ablation_test(
        organism.model,
        list(organism.truth),
        list(prompts),
        positions="decision",
        n_controls=n_controls,
        generated=False,
        alternative="less",
        seed=seed,
    )
    return KnownAudit(organism, behavior, verdicts({"behavior": behavior, "head_test": tested}))
