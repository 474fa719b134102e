"""Path patching: how much of what some heads do to refusal runs along one path, everything else being frozen?

With the senders zeroed at all positions, of the refusal score:

    total     = score(senders zeroed, all else recomputed)                                        − score
    direct    = score(senders zeroed, all other heads and all MLPs as in the clean run)           − score
    response  = total − direct, what later layers do about it; of the opposite sign: self-repair
    through R = score(R as it is where the senders are zeroed and all heads and MLPs but R are
                as in the clean run; everything behind R recomputed)                              − score

`through` is the path sender → R → logits, whose first edge is direct and whose second is not. One run with everything
frozen gives R's values for all receivers at once. Paths need not sum to the total.

The direct path alone does not find what carries refusal: ordered by it, the first 15 heads hold 2 of the 15 that
`inference-known` was trained in (docs/trust.md).

Source: Wang et al. 2023, "Interpretability in the Wild" (path patching, appendix B); Goldowsky-Dill et al. 2023,
"Localizing Model Behavior with Path Patching".
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from rim_lens.behavior.refusal_score import RefusalTokens, refusal_tokens
from rim_lens.causal.mediation import HeldNeurons, KeptNeurons, Units, units_by_layer
from rim_lens.causal.tested_sets import units_from
from rim_lens.errors import RimLensError
from rim_lens.intervene.heads import ablate_heads
from rim_lens.intervene.selection import Heads, chosen_heads
from rim_lens.model.as_chats import as_chats
from rim_lens.model.fitting import halves_batches
from rim_lens.model.lens_model import LensModel
from rim_lens.model.requests import Prompts
from rim_lens.model.taps import Tap
from rim_lens.processes import all_rows
from rim_lens.progress import track
from rim_lens.results import Manifest, Result
from rim_lens.stats import benjamini_hochberg, bootstrap_means, mean_test
from rim_lens.units import Head, heads_from, listed

WHOLE = ("total", "direct", "response")


@dataclass(frozen=True, eq=False)
class PathPatching(Result):
    """What zeroing the senders does to the refusal score: in all, directly, and through each receiver.

    `table`: per `path` ("total", "direct", "response", then each receiver's name) the mean `effect` in nats over `n`
    prompts with its 95 % interval, p of `mean_test` and Benjamini-Hochberg `q` over the receivers (NaN for the first
    three). `effects`: every prompt's, columns as the rows of `table`.
    """

    figure: ClassVar = "mediation:patched_paths"

    table: pd.DataFrame
    effects: Float[np.ndarray, "prompt path"]
    senders: list[Head]
    tokens: str

    def caption(self) -> str:
        """Who sends, and how direct it is."""
        total, direct = self.table["effect"].iloc[:2]
        return (
            f"{', '.join(map(str, self.senders))} zeroed at all positions, n = {len(self.effects)} prompts; total "
            f"{total:+.3g} nats, direct {direct:+.3g}; {self.tokens}."
        )


@halves_batches
@torch.no_grad()
def path_patching(
    model: LensModel,
    senders: Heads,
    receivers: Any,
    chats: Prompts,
    *,
    tokens: RefusalTokens | None = None,
    batch_size: int = 16,
    seed: int = 0,
) -> PathPatching:
    """Split what zeroing heads does into its direct part and what runs through each receiver.

    Args:
        model: the model.
        senders: names ("L12H3") or (layer, head) pairs, zeroed together.
        receivers: heads or (in dense models) neurons, a path through each; or a mapping of names to sets of either, a
            path through each set. None: the total and the direct effect alone.
        chats: prompts, up to the decision position.
        tokens: the refusal tokens; `refusal_tokens(model)` by default.
        batch_size: chats of a pass.
        seed: of bootstraps and the test.

    Raises:
        RimLensError: no senders, an unknown unit, a sender among the receivers, neurons of experts.
    """
    chats, zeroed = as_chats(model, chats), heads_from(listed(senders))
    sets = {name: received(model, one, zeroed) for name, one in named_sets(receivers).items()}
    if not zeroed:
        raise RimLensError("path_patching needs at least one sender.")
    neurons: Units = {}
    for one in sets.values():
        for layer, units in (one if isinstance(one, dict) else {}).items():
            neurons[layer] = sorted({*neurons.get(layer, []), *units})
    tokens = tokens or refusal_tokens(model)
    effects, order = np.zeros((len(chats), len(WHOLE) + len(sets))), list[int]()
    for indices, batch in track(model.shared_batches(chats, batch_size), "paths", -(-len(chats) // batch_size)):

        def score(*taps: Tap) -> np.ndarray:
            with model.tap(*taps):
                return tokens.score(model.decision_logits(batch)).cpu().numpy()  # noqa: B023

        clean = CleanRun()
        base = score(clean)
        with ablate_heads(model, zeroed):
            effects[indices, 0] = score() - base
        frozen, kept = FrozenRun(clean, zeroed), KeptNeurons(neurons)
        effects[indices, 1] = score(frozen, kept) - base
        for column, one in enumerate(sets.values(), start=len(WHOLE)):
            held = HeldNeurons(one, kept) if isinstance(one, dict) else HeldHeads(one, frozen)
            effects[indices, column] = score(held) - base
        order += indices
    effects = all_rows(effects, order)
    effects[:, 2] = effects[:, 0] - effects[:, 1]
    low, high = bootstrap_means(effects, seed=seed)
    columns = {"path": [*WHOLE, *sets], "n": len(effects), "effect": effects.mean(axis=0), "low": low, "high": high}
    table = pd.DataFrame(columns).assign(p=mean_test(effects, seed=seed).p, q=np.nan)
    if sets:
        table.loc[len(WHOLE) :, "q"] = benjamini_hochberg(table["p"].to_numpy()[len(WHOLE) :])
    return PathPatching(table, effects, zeroed, str(tokens), manifest=Manifest.collect(model, seed=seed))


def named_sets(receivers: Any) -> dict[str, Any]:
    """Each set of receivers by name; a set of one for each of a plain list."""
    if not len(receivers):
        return {}
    if isinstance(receivers, Mapping):
        return {str(name): one for name, one in receivers.items()}
    kind, units = units_from(listed(receivers) if isinstance(receivers, str) else receivers)
    if kind == "heads":
        return {str(head): [head] for head in units}
    return {"L{}N{}".format(*row): np.array([row]) for row in units}


def received(model: LensModel, receivers: Any, senders: list[Head]) -> Units | list[Head]:
    """One set: neurons by layer, or heads."""
    kind, units = units_from(receivers)
    if kind == "direction" or not units:
        raise RimLensError("A receiver of path_patching is a set of heads or of neurons, at least one.")
    if kind == "neurons":
        return units_by_layer(model, units)
    chosen_heads(model, units)  # an unknown head is an error
    both = sorted(set(units) & set(senders))
    if both:
        raise RimLensError(f"{both[0]} is a sender and a receiver; a path runs between different units.")
    return units


class CleanRun(Tap):
    """Outputs of all heads and writes of all MLPs in the latest pass."""

    def __init__(self) -> None:
        self.heads: dict[int, Float[Tensor, "row pos head d_head"]] = {}
        self.writes: dict[int, Float[Tensor, "row pos d_model"]] = {}

    def on_head_output(self, layer: int, z: Float[Tensor, "row pos head d_head"]) -> None:
        """Keep them."""
        self.heads[layer] = z.clone()

    def on_mlp_write(self, layer: int, written: Float[Tensor, "row pos d_model"]) -> None:
        """Keep it."""
        self.writes[layer] = written.clone()


class FrozenRun(Tap):
    """Heads and MLPs write what they wrote in the clean run, the senders nothing.

    `heads` keeps what each head would have written.
    """

    def __init__(self, clean: CleanRun, senders: list[Head]) -> None:
        self.clean, self.heads = clean, dict[int, Float[Tensor, "row pos head d_head"]]()
        self.senders: dict[int, list[int]] = {}
        for layer, head in senders:
            self.senders.setdefault(layer, []).append(head)

    def on_head_output(self, layer: int, z: Float[Tensor, "row pos head d_head"]) -> Tensor:
        """See the class."""
        self.heads[layer] = z.clone()
        frozen = self.clean.heads[layer].clone()
        frozen[:, :, self.senders.get(layer, [])] = 0
        return frozen

    def on_mlp_write(self, layer: int, written: Float[Tensor, "row pos d_model"]) -> Tensor:
        """See the class."""
        return self.clean.writes[layer]


class HeldHeads(Tap):
    """Some heads write what they would have written in a frozen run."""

    def __init__(self, heads: list[Head], run: FrozenRun) -> None:
        self.layers, self.chosen, self.run = frozenset(layer for layer, _ in heads), heads, run

    def on_head_output(self, layer: int, z: Float[Tensor, "row pos head d_head"]) -> Tensor:
        """See the class."""
        mine, held = [head for at, head in self.chosen if at == layer], z.clone()
        held[:, :, mine] = self.run.heads[layer][:, :, mine]
        return held
