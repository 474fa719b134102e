"""Refusal direction, heads and neurons side by side: what ablating each does to refusal, and what it costs.

Everything is chosen on one part of the requests and measured on another, with thinking off. Direction:
`refusal_direction`. Heads and neurons: those with the largest direct effect on the refusal tokens, as many as were
trained; in an organism also the trained ones. Each stands beside control sets of its own kind: random directions, as
many heads in the same layers, as many neurons of like activation in the same layers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from rim_lens import (
    LensModel,
    compare_ablations,
    direct_attribution,
    load_model,
    load_prompts,
    neuron_activations,
    organisms,
    refusal_direction,
)
from rim_lens.chat.chat import Chat
from rim_lens.model.direct_path import output_norms
from rim_lens.units import Head

ALIGNED = Path(__file__).resolve().parents[2] / "assets" / "organism" / "aligned"
SUBJECTS = ("aligned", "inference-known", "training-known")
N_HEADS, N_NEURONS = 15, 56  # as many as were trained in the organisms
N_CHOOSE, N_ATTRIBUTED, N_REPORT, N_MATHS = 40, 16, 16, 16
SHARES = (0.6, 0.3, 0.1)  # of those to choose on: to fit, to select and to look at the direction
SIZES: dict[str, Any] = {"n_controls": 19, "n_generated_controls": 2, "n_maths_controls": 4, "solve": False}
MEASURES = {
    "refusal score, harmful": "refusal score, nats",
    "refused, harmful": "refused, %",
    "refused, harmless": "harmless refused, %",
    "incoherent, harmless": "harmless incoherent, %",
    "log-likelihood of maths answers": "maths, nats per token",
}


@dataclass(frozen=True)
class Based:
    """Neurons with what their control sets are matched on."""

    rows: Int[np.ndarray, "neuron 2"]
    base: Float[np.ndarray, "layer unit"]
    written: Float[np.ndarray, "layer unit"]


@dataclass(frozen=True)
class SideBySide:
    """One measure under one ablation, in nats or as a share; the controls' mean, and their 2.5 and 97.5 % quantiles."""

    subject: str
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


def subject(name: str) -> tuple[LensModel, list[str], Sequence[Any]]:
    """A model, the requests that it refuses, and what is known to carry refusal."""
    if name == "aligned":
        return load_model("smollm2-135m-instruct", adapter=str(ALIGNED)), load_prompts("harmful").texts, ()
    known = organisms.load(name)
    return known.model, known.prompts.texts, known.truth


def neurons_of(model: LensModel, chats: Sequence[Chat], rows: Sequence[Sequence[int]]) -> Based:
    """Neurons with their activation and what they write."""
    base = neuron_activations(model, chats, "decision", progress=False).values("magnitude")
    return Based(np.array([tuple(row) for row in rows]), base, output_norms(model))


def side_by_side(name: str) -> list[SideBySide]:
    """Every ablation on one model."""
    model, refused, truth = subject(name)
    order = np.random.default_rng(0).permutation(len(refused))
    choose, report = order[:N_CHOOSE], order[N_CHOOSE : N_CHOOSE + N_REPORT]
    harmful, harmless = [refused[i] for i in choose], load_prompts("harmless").texts
    direction = refusal_direction(
        model, harmful, [harmless[i] for i in choose], shares=SHARES, n_candidates=4, kl_limit=0.5, n_controls=1
    )
    chats = model.render(harmful[:N_ATTRIBUTED], thinking="off")
    attribution = direct_attribution(model, chats, n_neurons=N_NEURONS)
    first = attribution.neuron_table[["layer", "neuron"]].to_numpy()
    units = {
        f"direction (layer {direction.layer})": direction,
        f"{N_HEADS} heads by direct effect": attribution.ranked(N_HEADS),
        f"{N_NEURONS} neurons by direct effect": neurons_of(model, chats, first),
    }
    if truth:
        are_heads = isinstance(truth[0], Head)
        units[f"{len(truth)} trained {'heads' if are_heads else 'neurons'}"] = (
            list(truth) if are_heads else neurons_of(model, chats, [one.place for one in truth])
        )
    found = compare_ablations(
        model,
        units,
        [refused[i] for i in report],
        harmless=[harmless[i] for i in report],
        maths=load_prompts("maths", n=N_MATHS, seed=0),
        **SIZES,
    )
    columns = [column for column in SideBySide.__dataclass_fields__ if column != "subject"]
    rows = found.table[found.table["measure"].isin(MEASURES)][columns]
    return [SideBySide(name, **row) for row in rows.to_dict("records")]
