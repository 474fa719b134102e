"""Refusal direction, heads and neurons side by side: what ablating each does to refusal, and what it costs.

Everything is chosen on one half of the requests and measured on the other. Direction: `refusal_direction`. Heads: the
first 15 of an ablation sweep, and in the organism also the trained ones. Neurons: those that are more active, in each
of four groups of pairs, in a request that is refused than in its twin. Each stands beside control sets of its own kind:
random directions, as many heads in the same layers, as many neurons of like activation.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rim_lens import (
    LensModel,
    ablation_sweep,
    compare_ablations,
    find_safety_neurons,
    load_model,
    load_prompts,
    organisms,
    refusal_direction,
)
from rim_lens.training_time import given_pairs

ALIGNED = Path(__file__).resolve().parents[2] / "assets" / "organism" / "aligned"
N_HEADS, TOP_NEURONS, N_REPORT, N_MATHS = 15, 256, 32, 24
SHARES = (0.75, 0.125, 0.125)  # of the first half: to fit, to select and to look at the direction
N_CONTROLS = {"n_controls": 19, "n_generated_controls": 3, "n_maths_controls": 3}
MEASURES = (
    "refusal score, harmful",
    "refused, harmful",
    "refused, harmless",
    "incoherent, harmless",
    "maths solved",
    "log-likelihood of maths answers",
)


@dataclass(frozen=True)
class Row:
    """One measure under one ablation, in nats or as a share; the controls' mean and 95 % of them."""

    model: str
    units: str
    measure: str
    n: int
    before: float
    after: float
    effect: float
    low: float
    high: float
    n_controls: int
    control_mean: float
    control_low: float
    control_high: float
    p: float


def subject(name: str) -> tuple[LensModel, list[str], list[str], list[Any]]:
    """A model with the requests that it refuses, their twins, and the heads that are known to carry refusal."""
    if name == "aligned":
        model = load_model("smollm2-135m-instruct", adapter=str(ALIGNED))
        return model, load_prompts("harmful").texts, load_prompts("harmless").texts, []
    known = organisms.load(name)
    return known.model, known.prompts.texts, known.twins.texts, list(known.truth)


def side_by_side(name: str) -> list[Row]:
    """Every ablation on one model."""
    model, refused, twins, truth = subject(name)
    order = np.random.default_rng(0).permutation(len(refused))
    choose, report = order[: len(order) // 2], order[len(order) // 2 :][:N_REPORT]
    harmful, other = [refused[i] for i in choose], [twins[i] for i in choose]
    harmless = load_prompts("harmless").texts
    direction = refusal_direction(model, harmful, [harmless[i] for i in choose], shares=SHARES, n_controls=1)
    swept = ablation_sweep(model, model.render(harmful, thinking="off"), method="screened", n_permutations=200)
    pairs = given_pairs(model, list(zip(other, harmful, strict=True))).in_groups(4)
    neurons = find_safety_neurons(model, pairs, top=TOP_NEURONS, n_resamples=20)
    units = {
        f"refusal direction (layer {direction.layer})": direction,
        f"{N_HEADS} heads of the ablation sweep": swept.ranked(N_HEADS, "supports"),
        f"{len(neurons)} neurons": neurons,
    }
    units |= {f"{len(truth)} trained heads": truth} if truth else {}
    found = compare_ablations(
        model,
        units,
        [refused[i] for i in report],
        harmless=[harmless[i] for i in report],
        maths=load_prompts("maths", n=N_MATHS, seed=0),
        alternative="less",
        **N_CONTROLS,
    )
    columns = [field for field in Row.__dataclass_fields__ if field != "model"]
    table = found.table[found.table["measure"].isin(MEASURES)][columns]
    return [Row(name, **row) for row in table.to_dict("records")]
