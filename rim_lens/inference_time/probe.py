"""Refusal probe: at which layer and template position can refusal be read off the residual stream?

    direction = mean residual of refused chats − mean residual of complied chats      (Arditi et al. 2024, eq. 1)

Fitted and scored on different folds: AUROC, d' (intervals: `probe_intervals`), permutation p with refitting, q over all
cells. Layer l is the residual stream entering layer l; layer n_layers is the stream after the last block. The direction
used further on is that of the decision position in the layer with the largest cross-validated AUROC; what it is worth
is said by `selected`, where the layer, too, was chosen without the fold it was scored on. Unsupervised variant: the
first principal component of paired differences (harmful minus harmless twin, or thinking off minus on), fitted without
the requests of the scored fold; its intervals take the component as given.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from rim_lens.behavior.judge import Judgement
from rim_lens.chat.chat import Chat
from rim_lens.errors import RimLensError
from rim_lens.inference_time.groups import groups_of, need_distinct_requests, need_groups
from rim_lens.inference_time.probe_fit import (
    best_cell,
    folds_of,
    grams,
    held_out_scores,
    leading_difference,
    permutation_p,
    within_folds,
)
from rim_lens.inference_time.probe_intervals import held_out_statistics, selected_layer, supervised_statistics
from rim_lens.inference_time.template_positions import shared_template, template_residuals
from rim_lens.model.as_chats import as_chats
from rim_lens.model.lens_model import LensModel
from rim_lens.model.requests import Prompts
from rim_lens.results import Manifest, Result
from rim_lens.stats import auroc, benjamini_hochberg

N_CONTROLS = 50


@dataclass(frozen=True, eq=False)
class Direction:
    """A unit direction of one cell and how a residual x is read on it: (x · vector − middle) / spread.

    0 lies midway between refused and complied chats, 1 is one standard deviation within them.
    """

    vector: Float[np.ndarray, "d_model"]
    middle: float
    spread: float


@dataclass(frozen=True, eq=False)
class RefusalProbe(Result):
    """How well refusal can be read at each layer and template position.

    `table`: one row per kind ("supervised", "unsupervised"), layer and position with `auroc`, `d_prime` and their 95 %
    intervals, permutation `p` and `q` (supervised), `n_refused`, `n_complied`. `directions` are fitted on all chats.
    `layer` is the chosen one, `chosen` its direction at the decision position, `controls` directions fitted there to
    permuted labels. `selected`: AUROC with interval when the layer is chosen without the scored fold.
    """

    figure: ClassVar = "probe:probe_map"

    table: pd.DataFrame
    directions: Float[np.ndarray, "layer position d_model"]
    unsupervised: Float[np.ndarray, "layer position d_model"] | None
    positions: list[str]
    layer: int
    chosen: Direction
    controls: list[Direction]
    selected: dict[str, float]
    n_folds: int
    left_out: int

    def grid(self, column: str = "auroc", kind: str = "supervised") -> Float[np.ndarray, "layer position"]:
        """One column of the table as a map. Raises RimLensError when the probe has no such kind."""
        rows = self.table[self.table["kind"] == kind]
        if rows.empty or column not in rows:
            raise RimLensError(f"The probe has no {column!r} of kind {kind!r}; unsupervised probes need pairs=.")
        return rows[column].to_numpy(dtype=np.float64).reshape(self.directions.shape[:2])

    def caption(self) -> str:
        """The chosen cell, its AUROC chosen honestly, and n."""
        row = self.table.iloc[0]
        s = self.selected
        return (
            f"Refused {row['n_refused']} against complied {row['n_complied']}, {self.n_folds} folds; decision "
            f"position best read at layer {self.layer}; with the layer chosen on the training folds AUROC "
            f"{s['auroc']:.3f} [{s['low']:.3f}, {s['high']:.3f}]; {self.left_out} incoherent answers left out."
        )


def probe_refusal(
    model: LensModel,
    chats: Prompts,
    judged: Sequence[Judgement | str],
    *,
    pairs: tuple[Prompts, Prompts] | None = None,
    n_folds: int = 5,
    n_permutations: int = 500,
    batch_size: int = 16,
    seed: int = 0,
) -> RefusalProbe:
    """Fit and score the refusal direction at every layer and template position.

    Args:
        model: the model.
        chats: chats up to the decision position, each request once.
        judged: the judgement (or label) of each chat's answer; incoherent ones are left out and counted.
        pairs: for the unsupervised variant, chats that should and chats that should not be refused, pairwise.
        n_folds: of the cross-validation; each class needs as many chats or more.
        n_permutations: relabellings, each refitted.
        batch_size: chats of a pass.
        seed: of folds and permutations.

    Raises:
        RimLensError: too few refused or complied chats; a request that occurs twice; pairs of unequal number.

    """
    chats = as_chats(model, chats)
    plus, minus = ([], []) if pairs is None else (as_chats(model, side) for side in pairs)
    groups = groups_of(chats, judged)
    labelled = np.flatnonzero(groups.refused | groups.complied)
    refused = groups.refused[labelled]
    if n_folds < 2:
        raise RimLensError(f"Cross-validation needs at least 2 folds, got {n_folds}.")
    need_groups(int(refused.sum()), int((~refused).sum()), max(5, n_folds), "probe_refusal")
    rows = [chats[int(i)] for i in labelled]
    need_distinct_requests(rows, "probe_refusal")
    if len(plus) != len(minus):
        raise RimLensError(f"Pairs need as many chats on both sides, got {len(plus)} and {len(minus)}.")
    everything = [*rows, *plus, *minus]
    template = shared_template(model, everything)
    values = template_residuals(model, everything, template, batch_size)
    x, sides = values[: len(rows)], (values[len(rows) : len(rows) + len(plus)], values[len(rows) + len(plus) :])
    rng = np.random.default_rng(seed)
    fold = folds_of(refused, n_folds, rng)
    gram = grams(x)
    scores = held_out_scores(gram, refused[:, None], fold)[:, 0]
    area = auroc(scores, refused)
    shape = x.shape[1:3]
    supervised = supervised_statistics(gram, scores, refused, fold)
    supervised["p"] = permutation_p(gram, refused, fold, area, n_permutations, rng)
    supervised["q"] = benjamini_hochberg(supervised["p"])
    tables = [_table("supervised", supervised, template.labels, shape, refused)]
    unsupervised = None
    if len(plus):
        pair_requests = [(a.request, b.request) for a, b in zip(plus, minus, strict=True)]
        unsupervised, held = _unsupervised(x, sides[0] - sides[1], rows, pair_requests, fold)
        statistics = held_out_statistics(held.reshape(len(rows), -1), refused)
        tables.append(_table("unsupervised", statistics, template.labels, shape, refused))
    difference = x[refused].mean(axis=0) - x[~refused].mean(axis=0)
    decision = np.arange(shape[0]) * shape[1] + shape[1] - 1
    layer = best_cell(scores[:, decision], refused)
    cell = x[:, layer, -1].astype(np.float64)
    return RefusalProbe(
        table=pd.concat(tables, ignore_index=True),
        directions=_unit(difference),
        unsupervised=unsupervised,
        positions=template.labels,
        layer=layer,
        chosen=_direction(cell, refused),
        controls=[_direction(cell, within_folds(refused, fold, rng)) for _ in range(N_CONTROLS)],
        selected=selected_layer(gram[decision], refused, fold),
        n_folds=n_folds,
        left_out=groups.n_left_out,
        manifest=Manifest.collect(model, seed=seed, n_permutations=n_permutations),
    )


def _table(
    kind: str,
    statistics: dict[str, Float[np.ndarray, "cell"]],
    labels: list[str],
    shape: tuple[int, int],
    refused: Bool[np.ndarray, "row"],
) -> pd.DataFrame:
    layer, position = np.indices(shape).reshape(2, -1)
    where = {"kind": kind, "layer": layer, "position": position, "token": [labels[i] for i in position]}
    counts = {"n_refused": int(refused.sum()), "n_complied": int((~refused).sum())}
    return pd.DataFrame({**where, **statistics, **counts})


def _unsupervised(
    x: Float[np.ndarray, "row layer position d_model"],
    differences: Float[np.ndarray, "pair layer position d_model"],
    rows: Sequence[Chat],
    pair_requests: Sequence[tuple[str, str]],
    fold: Int[np.ndarray, "row"],
) -> tuple[Float[np.ndarray, "layer position d_model"], Float[np.ndarray, "row layer position"]]:
    """The component fitted on all pairs, and scores of rows on the one fitted without their fold's requests."""
    directions = np.zeros(x.shape[1:])
    scores = np.zeros(x.shape[:3])
    scale = np.abs(x).max(axis=(0, 3))
    for cell in np.ndindex(*x.shape[1:3]):
        directions[cell] = leading_difference(differences[:, *cell], scale[cell])
    for held in np.unique(fold):
        tested = fold == held
        requests = {rows[int(i)].request for i in np.flatnonzero(tested)}
        usable = np.array([not requests & set(pair) for pair in pair_requests])
        if usable.sum() < 2:
            raise RimLensError("Too few pairs are left without the requests of a fold; pass more pairs or fewer folds.")
        for cell in np.ndindex(*x.shape[1:3]):
            direction = leading_difference(differences[usable][:, *cell], scale[cell])
            values = x[:, *cell] @ direction
            scores[tested, *cell] = values[tested] - values[~tested].mean()
    return directions, scores


def _unit(vectors: Float[np.ndarray, "... d_model"]) -> Float[np.ndarray, "... d_model"]:
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.where(length > 0, vectors / np.where(length > 0, length, 1.0), 0.0)


def _direction(cell: Float[np.ndarray, "row d_model"], refused: Bool[np.ndarray, "row"]) -> Direction:
    first, second = cell[refused], cell[~refused]
    vector = _unit(first.mean(axis=0) - second.mean(axis=0))
    on_first, on_second = first @ vector, second @ vector
    spread = float(np.sqrt((on_first.var(ddof=1) + on_second.var(ddof=1)) / 2))
    return Direction(vector, float((on_first.mean() + on_second.mean()) / 2), spread or 1.0)
