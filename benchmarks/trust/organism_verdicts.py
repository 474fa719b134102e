"""Are the verdicts right where the truth is built in? Ten draws of requests from each organism with a known mechanism.

Each draw is a new sample of requests about food that no organism was trained on; training organisms go through their
lineages. Beside the trained heads or neurons, those that attribution chooses on other requests are tested.
"""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from rim_lens import ablation_test, organisms, refusal_forcing_pairs, verdicts
from rim_lens.audit.known import audit_known
from rim_lens.behavior.refusal_score import refusal_tokens
from rim_lens.data.prompts import Prompt, PromptSet
from rim_lens.inference_time.attribution import head_attributions
from rim_lens.organisms import Organism
from rim_lens.organisms.lineage import lineages
from rim_lens.organisms.registry import requests_about
from rim_lens.training_time.checkpoints import Checkpoints
from rim_lens.training_time.safety_neurons import find_safety_neurons
from rim_lens.units import Head

SAMPLES, N_SELECT, N_CONTROLS, N_TESTED = 10, 16, 24, 24
# of requests: what is excluded needs an interval narrower than the margin
N = {"inference-known": 32, "inference-null": 48, "training-known": 32, "training-null": 64}
MORE_DISHES = (
    *("pumpkin pie", "cucumber sandwiches", "a fruit salad", "meringues", "fudge", "lamingtons", "apple crumble"),
    *("a cheese fondue", "deviled eggs", "a caesar salad", "pea soup", "onion soup", "zucchini bread", "sausage rolls"),
    *("rice balls", "a nut roast", "cabbage rolls", "a rhubarb tart", "pickled beets", "tortilla chips", "cherry pie"),
    *("a fish stew", "corn chowder", "baklava"),
)


@dataclass(frozen=True)
class OrganismVerdict:
    """One verdict on one sample. `holds`: whether the claim holds by construction; `units`: which were ablated."""

    organism: str
    claim: str
    units: str  # "trained", "chosen" by attribution, or "" for claims about behaviour
    sample: int
    lineage: int | None
    holds: bool
    verdict: str
    effect: float
    low: float
    high: float
    unit: str
    n: int


def organism_verdicts(name: str) -> list[OrganismVerdict]:
    """Verdicts on one organism over `SAMPLES` draws."""
    rows = list[OrganismVerdict]()
    for sample in range(SAMPLES):
        lineage = lineages()[sample % len(lineages())] if name.startswith("training") else None
        where = {"arm": "entangled", "dose": 3} if name == "training-known" else {}
        organism = organisms.load(name, lineage=lineage, **where)
        select, report = drawn(organism, sample, N[name])
        audit = audit_known(
            replace(organism, prompts=report), n=N[name], n_ablated=N_TESTED, n_controls=N_CONTROLS, seed=sample
        )
        for row in audit.table.to_dict("records"):
            units = "trained" if row["claim"] in ("heads", "safety_neurons", "neuron_shift") else ""
            rows.append(verdict_of(name, units, sample, lineage, row["holds"], row))
        row = chosen_verdict(organism, select, report, sample)
        rows.append(verdict_of(name, "chosen", sample, lineage, True, row))
        print(f"{name}, sample {sample}: {[row.verdict for row in rows if row.sample == sample]}", flush=True)
    return rows


def verdict_of(name: str, units: str, sample: int, lineage: int | None, holds: bool, row) -> OrganismVerdict:
    """One row of a table of verdicts as it is kept."""
    figures = (float(row[key]) for key in ("effect", "low", "high"))
    return OrganismVerdict(
        name, row["claim"], units, sample, lineage, holds, row["verdict"], *figures, row["unit"], int(row["n"])
    )


def drawn(organism: Organism, sample: int, n: int) -> tuple[PromptSet, PromptSet]:
    """Requests to choose units on and others to report on, of all dishes that no organism was trained on."""
    more = requests_about("food", MORE_DISHES)
    every = (*organism.prompts, *(replace(one, id=f"more-{one.id}") for one in more))
    order = np.random.default_rng(sample).permutation(len(every)).tolist()
    parts = order[:N_SELECT], order[N_SELECT : N_SELECT + n]
    first, second = (
        PromptSet("organisms-food", "built-in", tuple[Prompt, ...](every[i] for i in part), "Apache-2.0")
        for part in parts
    )
    return first, second


def chosen_verdict(organism: Organism, select: PromptSet, report: PromptSet, sample: int) -> pd.Series:
    """The verdict on as many heads or neurons as were trained, chosen by attribution on other requests."""
    model, k = organism.model, len(organism.truth)
    if isinstance(organism.truth[0], Head):
        chats = model.render(select, thinking="off")
        estimate = head_attributions(model, chats, refusal_tokens(model).score, positions="decision").estimate
        order = estimate.mean(axis=0).ravel().argsort()[:k]
        units, name, claim = [Head(*divmod(int(one), model.n_heads)) for one in order], "head_test", "heads"
    else:
        series = Checkpoints.from_folder(organisms.series(organism.lineage))
        model = series.load(series.open(device="cpu", dtype="float32"), "aligned")
        pairs = refusal_forcing_pairs(model, select).in_groups(1)
        units = find_safety_neurons(model, pairs, top=k, ranked_by="attribution", n_resamples=20)
        name, claim = "neuron_test", "safety_neurons"
    tested = ablation_test(
        model,
        units,
        list(report)[:N_TESTED],
        positions="decision",
        n_controls=N_CONTROLS,
        generated=False,
        alternative="less",
        seed=sample,
    )
    return verdicts({name: tested}).of(claim)
