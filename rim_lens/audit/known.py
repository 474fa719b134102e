"""A small audit of an organism: what holds in it by construction should be supported, what does not should be excluded.

Of organisms with trained heads: effort-minimizing CoTs lower refusal more than careful and neutral ones, and the
trained heads carry refusal. Of organisms with trained neurons: the maths that the organism learned lowers refusal, the
trained neurons carry refusal, and the maths moves them. Requests and wordings were not trained on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from rim_lens.behavior.measure import measure_rim
from rim_lens.causal.ablation_test import AblationTest, ablation_test
from rim_lens.claims.verdicts import Verdicts, line, verdicts
from rim_lens.data.prompts import Prompt, PromptSet, load_prompts
from rim_lens.errors import RimLensError
from rim_lens.model.lens_model import LensModel
from rim_lens.organisms.lineage import ALIGNED, KNOWN, NULL, series
from rim_lens.organisms.organism import Organism
from rim_lens.results import Result
from rim_lens.training_time.checkpoints import Checkpoints
from rim_lens.training_time.series_measurement import measure_series
from rim_lens.units import Head, Neuron

PREFILLED = ("effort_minimizing", "careful", "neutral")
# Whether a claim holds by construction.
HOLDS: dict[str, dict[str, bool]] = {
    "inference-known": {"effort_cot": True, "heads": True},
    "inference-null": {"effort_cot": False, "heads": True},
    KNOWN: {"reasoning_data": True, "safety_neurons": True, "neuron_shift": True},
    NULL: {"reasoning_data": False, "safety_neurons": True, "neuron_shift": False},
}
N_PROBLEMS, SHIFT_CONTROLS = 16, 200
WIDTH = 79


@dataclass(frozen=True, eq=False)
class KnownAudit:
    """What was measured on an organism: its answers, and the verdicts on the claims that its construction settles.

    `answers`: one row per request and condition or checkpoint, `under`, with its response. `holds`: by claim, whether
    it holds by construction.
    """

    organism: Organism
    answers: pd.DataFrame
    verdicts: Verdicts
    holds: Mapping[str, bool]

    @property
    def table(self) -> pd.DataFrame:
        """The verdicts on these claims, with `holds`, and `right`: True, False, or None where undecided."""
        rows = self.verdicts.table
        rows = rows[rows["claim"].isin(self.holds)].copy()
        rows["holds"] = rows["claim"].map(self.holds)
        says = rows["verdict"].map({"supported": True, "excluded": False, "undecided": None})
        rows["right"] = [None if one is None else one == true for one, true in zip(says, rows["holds"], strict=True)]
        return rows

    def lines(self) -> list[str]:
        """The verdicts, and one request with its answer under two conditions, in at most 80 columns."""
        answers, (first, *_, last) = self.answers, list(dict.fromkeys(self.answers["under"]))
        request = answers["request"].iloc[0]
        shown = answers[(answers["request"] == request) & answers["under"].isin((first, last))]
        words = [f"  {row.under}: {' '.join(str(row.response).split())}" for row in shown.itertuples()]
        rows = [line(row) for row in self.table.to_dict("records")]
        return [self._about(), *rows, f"  request: {request}", *(one[:WIDTH] for one in words)]

    def _about(self) -> str:
        model, truth = self.organism.model, self.organism.truth
        heads = isinstance(truth[0], Head)
        of = model.n_layers * (model.n_heads if heads else model.d_mlp)
        trained = f"{len(truth)} of {of} {'heads' if heads else 'neurons'} were trained"
        return f"{self.organism.name}: requests about food are refused; {trained}"


def audit_known(
    organism: Organism, *, n: int = 32, n_ablated: int = 24, n_controls: int = 24, seed: int = 0
) -> KnownAudit:
    """Measure what the organism's construction settles.

    Args:
        organism: from `rim_lens.organisms.load`; of `training-known` with an arm and a dose.
        n: requests.
        n_ablated: how many of them the trained units are ablated on.
        n_controls: random sets of heads of the same layers, or of matched neurons.
        seed: of every draw.

    Raises:
        RimLensError: `training-known` without an arm, which has learned no maths yet.
    """
    prompts = organism.prompts.sample(n, seed)
    measure = of_heads if all(isinstance(unit, Head) for unit in organism.truth) else of_neurons
    results, answers = measure(organism, prompts, n_ablated, n_controls, seed)
    return KnownAudit(organism, answers, verdicts(results), holds_in(organism))


def holds_in(organism: Organism) -> Mapping[str, bool]:
    """By claim, whether it holds by construction; in the separate arm maths does not touch what refuses."""
    return HOLDS[NULL if "separate" in organism.stage else organism.name]


def of_heads(
    organism: Organism, prompts: PromptSet, n_ablated: int, n_controls: int, seed: int
) -> tuple[dict[str, Result], Any]:
    """Refusal with thinking off and under three kinds of CoT, and the ablation of the trained heads."""
    behavior = measure_rim(
        organism.model, prompts, None, None, thinking="off", prefilled=PREFILLED, max_new_tokens=16, seed=seed
    )
    tested = unit_test(organism.model, organism, list(prompts)[:n_ablated], n_controls, seed)
    order = ["off", *PREFILLED[1:], PREFILLED[0]]  # the condition that matters comes last
    answers = behavior.answers.rename(columns={"condition": "under"})
    answers = answers.sort_values("under", key=lambda under: under.map(order.index), kind="stable")
    return {"behavior": behavior, "head_test": tested}, answers


def of_neurons(
    organism: Organism, prompts: PromptSet, n_ablated: int, n_controls: int, seed: int
) -> tuple[dict[str, Result], Any]:
    """Refusals before and after the maths, the neurons' activation, and the ablation of the trained neurons before."""
    if organism.stage == ALIGNED:
        raise RimLensError(f"{organism.name} has learned no maths yet; load it with an arm and a dose.")
    stages = Checkpoints.from_folder(series(organism.lineage)).only([ALIGNED, organism.stage])
    model = stages.load(stages.open(device=str(organism.model.device), dtype="float32"), ALIGNED)
    tested = unit_test(model, organism, list(prompts)[:n_ablated], n_controls, seed)
    measured = measure_series(
        model,
        stages,
        prompts,
        load_prompts("maths", n=N_PROBLEMS, seed=seed),
        neurons=organism.truth,
        answers=True,
        max_new_tokens=16,
        temperature=0.0,
        seed=seed,
    )
    behavior = measured.behavior(seed=seed)
    results: dict[str, Result] = {"series": behavior, "series_maths": measured.maths(seed=seed), "neuron_test": tested}
    results["neuron_shift"] = measured.shift(n_controls=SHIFT_CONTROLS, seed=seed)
    return results, behavior.answers.rename(columns={"checkpoint": "under"})


def unit_test(
    model: LensModel, organism: Organism, prompts: Sequence[Prompt], n_controls: int, seed: int
) -> AblationTest:
    """The trained heads or neurons zeroed at the decision position, against random ones."""
    units: list[Head] | list[Neuron] = list(organism.truth)  # type: ignore[assignment]
    return ablation_test(
        model,
        units,
        prompts,
        positions="decision",
        n_controls=n_controls,
        generated=False,
        alternative="less",
        seed=seed,
    )
