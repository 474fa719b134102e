"""Mediation: how much of what heads do to refusal runs through some neurons?

With the heads zeroed at all positions, and the neurons N held to values of another run of the same prompt:

    total    = score(heads zeroed)                                     − score
    through  = score(heads in place, N as in the run without the heads) − score       (natural indirect effect)
    around   = score(heads zeroed, N as in the clean run)               − score       (natural direct effect)

Where the two paths do not interact, through + around = total; `interaction` is what is left. `through` of the neurons
is set beside that of control sets: any set that lies behind the heads carries a part of what they do.

Source: Pearl 2001, "Direct and Indirect Effects"; Vig et al. 2020, "Causal Mediation Analysis for Interpreting Neural
NLP".
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from rim_lens.behavior.refusal_score import RefusalTokens, refusal_tokens
from rim_lens.capture.neuron_sets import neuron_rows
from rim_lens.errors import RimLensError
from rim_lens.intervene.heads import ablate_heads
from rim_lens.intervene.selection import Heads
from rim_lens.model.as_chats import as_chats
from rim_lens.model.fitting import halves_batches
from rim_lens.model.lens_model import LensModel
from rim_lens.model.requests import Prompts
from rim_lens.model.taps import Tap
from rim_lens.processes import all_rows
from rim_lens.progress import track
from rim_lens.results import Manifest, Result
from rim_lens.stats import bootstrap_means, empirical_p, percentile
from rim_lens.units import Head, heads_from, listed

PATHS = ("total", "through", "around", "interaction")
Units = dict[int, list[int]]  # layer to units


@dataclass(frozen=True, eq=False)
class Mediation(Result):
    """What zeroing heads does to the refusal score, and how much of it runs through some neurons.

    `table`: per path ("total", "through", "around", "interaction") the mean `effect` in nats over n prompts with its
    95 % interval; for "through" also its place among `n_controls` control sets of neurons (`control_mean`,
    `control_low`, `control_high`, `percentile`, two-sided `p`). `prompts`: every prompt's effects. `share`: through /
    total.
    """

    figure: ClassVar = "mediation:mediated_effects"

    table: pd.DataFrame
    prompts: pd.DataFrame
    controls: Float64[np.ndarray, " set"]
    heads: list[Head]
    n_neurons: int
    share: float
    tokens: str

    def caption(self) -> str:
        """Heads, neurons, and the share that runs through them."""
        return (
            f"{len(self.heads)} heads zeroed at all positions, {self.n_neurons} neurons, n = {len(self.prompts)} "
            f"prompts; {100 * self.share:.0f} % of the effect runs through the neurons; {self.tokens}."
        )


@halves_batches
@torch.no_grad()
def mediation(
    model: LensModel,
    heads: Heads,
    neurons: Any,
    chats: Prompts,
    *,
    controls: Int[np.ndarray, "set neuron index"] | None = None,
    tokens: RefusalTokens | None = None,
    batch_size: int = 16,
    seed: int = 0,
) -> Mediation:
    """Split the effect of zeroing heads into what runs through some neurons and what does not.

    Args:
        model: a dense model.
        heads: names ("L12H3") or (layer, head) pairs, zeroed together.
        neurons: `SafetyNeurons`, rows (layer, unit), names ("L12N345") or `Neuron`s.
        chats: prompts, up to the decision position.
        controls: other sets of neurons, such as `matched_controls(neurons, 50)`.
        tokens: the refusal tokens; `refusal_tokens(model)` by default.
        batch_size: chats of a pass.
        seed: of the bootstraps.

    Raises:
        RimLensError: no heads, no neurons or an unknown one; a mixture of experts.

    """
    chats, zeroed = as_chats(model, chats), heads_from(listed(heads))
    if not zeroed:
        raise RimLensError("mediation needs at least one head whose effect could run through neurons.")
    sets = [units_by_layer(model, neuron_rows(neurons).tolist())]
    sets += [] if controls is None else [units_by_layer(model, one) for one in np.asarray(controls).tolist()]
    every = {layer: sorted({u for one in sets for u in one.get(layer, ())}) for one in sets for layer in one}
    tokens = tokens or refusal_tokens(model)
    effects, order = np.zeros((len(chats), 2 + len(sets))), list[int]()
    for indices, batch in track(model.shared_batches(chats, batch_size), "mediation", -(-len(chats) // batch_size)):

        def score(*taps: Tap, without: bool) -> np.ndarray:
            with ablate_heads(model, zeroed if without else []), model.tap(*taps):
                return tokens.score(model.decision_logits(batch)).cpu().numpy()  # noqa: B023

        clean, ablated = KeptNeurons(every), KeptNeurons(every)
        base = score(clean, without=False)
        effects[indices, 0] = score(ablated, without=True) - base
        effects[indices, 1] = score(HeldNeurons(sets[0], clean), without=True) - base
        for column, one in enumerate(sets):
            effects[indices, 2 + column] = score(HeldNeurons(one, ablated), without=False) - base
        order += indices
    effects = all_rows(effects, order)
    prompts = pd.DataFrame({"request": [chat.request for chat in chats], "total": effects[:, 0]})
    prompts = prompts.assign(through=effects[:, 2], around=effects[:, 1])
    prompts["interaction"] = prompts["total"] - prompts["through"] - prompts["around"]
    null = effects[:, 3:].mean(axis=0)
    total = float(prompts["total"].mean())
    return Mediation(
        table=path_table(prompts, null, seed),
        prompts=prompts,
        controls=null,
        heads=zeroed,
        n_neurons=sum(map(len, sets[0].values())),
        share=float(prompts["through"].mean()) / total if total else float("nan"),
        tokens=str(tokens),
        manifest=Manifest.collect(model, seed=seed),
    )


class KeptNeurons(Tap):
    """Values of some neurons at all positions of the latest pass."""

    def __init__(self, units: Units) -> None:
        self.layers, self.units = frozenset(units), units
        self.values: dict[int, Float[Tensor, "row pos unit"]] = {}

    def on_neurons(self, layer: int, post: Float[Tensor, "row pos d_mlp"]) -> None:
        """Keep them."""
        self.values[layer] = post[..., self.units[layer]].clone()


class HeldNeurons(Tap):
    """Some neurons are held to what another pass over the same batch kept."""

    def __init__(self, units: Units, kept: KeptNeurons) -> None:
        self.layers, self.units, self.kept = frozenset(units), units, kept

    def on_neurons(self, layer: int, post: Float[Tensor, "row pos d_mlp"]) -> Float[Tensor, "row pos d_mlp"]:
        """See the class."""
        there = [self.kept.units[layer].index(unit) for unit in self.units[layer]]
        post = post.clone()
        post[..., self.units[layer]] = self.kept.values[layer][..., there]
        return post


def units_by_layer(model: LensModel, rows: Sequence[Sequence[int]]) -> Units:
    """Neurons by layer."""
    if model.is_moe:
        raise RimLensError(f"{model.name} is a mixture of experts; the paths through its neurons are not measured.")
    units: Units = {}
    for layer, unit in rows:
        if not (0 <= layer < model.n_layers and 0 <= unit < model.d_mlp):
            raise RimLensError(
                f"There is no neuron {unit} in layer {layer}: the model has {model.n_layers} layers of {model.d_mlp}."
            )
        units.setdefault(int(layer), []).append(int(unit))
    if not units:
        raise RimLensError("mediation needs at least one neuron.")
    return units


def path_table(prompts: pd.DataFrame, null: Float64[np.ndarray, " set"], seed: int) -> pd.DataFrame:
    """Means of the four effects with intervals, and the place of the one through the neurons among its controls."""
    values = prompts[list(PATHS)].to_numpy()
    low, high = bootstrap_means(values, seed=seed)
    table = pd.DataFrame({"path": PATHS, "n": len(prompts), "effect": values.mean(axis=0), "low": low, "high": high})
    columns = ("control_mean", "control_low", "control_high", "percentile", "p")
    table = table.assign(n_controls=0, **dict.fromkeys(columns, np.nan))
    if len(null):
        effect = table.loc[1, "effect"]
        bounds = np.quantile(null, (0.025, 0.975))
        place = (null.mean(), *bounds, percentile(effect, null), empirical_p(effect, null))
        table.loc[1, ["n_controls", *columns]] = [len(null), *map(float, place)]
    return table
