"""Routing of a mixture of experts: where the tokens of each segment are sent, and whether that goes with a label.

    load(chat, l, e, S)     share of the tokens of segment S that layer l sends to expert e; over experts it sums to k
    weight(chat, l, e, S)   mean routing probability of e over the tokens of S, 0 where a token is not sent to e

A difference of loads between labels is a correlation: `ablation_test` of the expert's neurons says whether it matters
(`matched_experts` has its controls). Shared experts see every token and have no load. Source: Fedus et al. 2022,
"Switch Transformers", for the load of an expert.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rim_lens.behavior.judge import Judgement
from rim_lens.chat.segments import SEGMENTS, segment_id
from rim_lens.errors import RimLensError
from rim_lens.inference_time.contrast import group_contrast
from rim_lens.inference_time.groups import groups_of, need_distinct_requests, need_groups
from rim_lens.model.as_chats import as_chats
from rim_lens.model.fitting import halves_batches
from rim_lens.model.lens_model import LensModel
from rim_lens.model.mixture_layers import existing
from rim_lens.model.requests import Prompts
from rim_lens.model.taps import ExpertCall, Tap
from rim_lens.processes import all_rows
from rim_lens.results import Manifest, Result
from rim_lens.stats import benjamini_hochberg, bootstrap_means

LEAST = 5  # chats of each label
Loads = Float[np.ndarray, "row layer expert segment"]


@dataclass(frozen=True, eq=False)
class ExpertLoad(Result):
    """How many of each segment's tokens each expert gets.

    `table`: one row per segment, layer and expert with the mean `load` over `n` chats that have the segment, its 95 %
    interval and the mean `weight`. With labels also `load_refused`, `load_complied`, their standardised difference
    `effect` with its interval (`effect_low`, `effect_high`), permutation `p` and Benjamini-Hochberg `q` over all rows.
    `loads` and `weights` hold every chat; NaN where a chat lacks the segment, or a layer has no routed experts.
    """

    figure: ClassVar = "routing:expert_loads"

    table: pd.DataFrame
    loads: Float[np.ndarray, "chat layer expert segment"]
    weights: Float[np.ndarray, "chat layer expert segment"]
    n_refused: int
    n_complied: int

    def caption(self) -> str:
        """How many chats and labels."""
        labels = f"; refused {self.n_refused}, complied {self.n_complied}" if self.n_refused else ""
        chats, layers, experts = self.loads.shape[:3]
        return f"Load of {experts} experts in {layers} layers, n = {chats} chats{labels}."


@halves_batches
@torch.no_grad()
def expert_load(
    model: LensModel,
    chats: Prompts,
    judged: Sequence[Judgement | str] | None = None,
    *,
    n_permutations: int = 2000,
    batch_size: int = 16,
    seed: int = 0,
) -> ExpertLoad:
    """Count which experts each chat's tokens are sent to.

    Args:
        model: a mixture of experts.
        chats: prompts, or chats with what a model wrote.
        judged: the label of each chat's answer; loads of refused and complied ones are then compared.
        n_permutations: relabellings of the test.
        batch_size: chats of a pass.
        seed: of permutations and bootstraps.

    Raises:
        RimLensError: no mixture of experts; with labels fewer than five refused or complied chats, or a request that
            occurs twice.

    """
    chats = as_chats(model, chats)
    shape = (len(chats), model.n_layers, model.shape.n_experts, len(SEGMENTS))
    load, weight, order = np.full(shape, np.nan), np.full(shape, np.nan), list[int]()
    tap = LoadTap(shape[1:])
    with model.tap(tap):
        for indices, batch in model.shared_batches(chats, batch_size):
            tap.begin(batch.segments)
            model.decision_logits(batch)
            load[indices], weight[indices] = tap.loads()
            order += indices
    load, weight = all_rows(load, order), all_rows(weight, order)
    table, counts = _table(load, weight, seed), (0, 0)
    if judged is not None:
        need_distinct_requests(chats, "expert_load with labels")
        groups = groups_of(chats, judged)
        counts = int(groups.refused.sum()), int(groups.complied.sum())
        need_groups(*counts, LEAST, "expert_load with labels")
        labelled = groups.refused | groups.complied
        table = _with_labels(table, load[labelled], groups.refused[labelled], n_permutations, seed)
    return ExpertLoad(table, load, weight, *counts, manifest=Manifest.collect(model, seed=seed))


def expert_neurons(model: LensModel, experts: Sequence[tuple[int, int]]) -> Int[np.ndarray, "neuron index"]:
    """Rows (layer, expert, unit) of all neurons of experts (layer, expert), for `ablate_neurons` and `ablation_test`.

    Raises:
        RimLensError: an expert that the model does not have.
    """
    there = existing(model)
    for layer, expert in experts:
        inside = 0 <= layer < model.n_layers and 0 <= expert < model.shape.n_experts
        if not inside or not there[layer, expert].any():
            raise RimLensError(f"{model.name} has no expert {expert} in layer {layer}; give pairs (layer, expert).")
    return np.array([(*one, unit) for one in experts for unit in np.flatnonzero(there[one])])


def matched_experts(
    model: LensModel, load: ExpertLoad, experts: Sequence[tuple[int, int]], n_sets: int = 20, *, seed: int = 0
) -> Int[np.ndarray, "set neuron index"]:
    """Control sets for `ablation_test(controls=)`: for each expert another one of its layer, of like load.

    An expert is drawn from the half of its layer's others whose mean load over all segments is nearest to its own; sets
    differ from each other.

    Raises:
        RimLensError: fewer such sets than asked for, or an unknown expert.
    """
    expert_neurons(model, experts)
    rng, mean = np.random.default_rng(seed), np.nanmean(load.loads, axis=(0, 3))
    pools = []
    for layer, expert in experts:
        taken = {other for at, other in experts if at == layer}
        others = [one for one in range(model.shape.n_experts) if one not in taken]
        away = np.abs(mean[layer, others] - mean[layer, expert])
        others = [others[i] for i in np.argsort(away, kind="stable")]
        pools.append(others[: max(1, math.ceil(len(others) / 2))] if others else [])
    possible = [one for one in itertools.islice(itertools.product(*pools), 100_000) if distinct(experts, one)]
    if len(possible) < n_sets:
        raise RimLensError(f"There are {len(possible)} sets of matched experts for {n_sets} controls; ask for fewer.")
    drawn = [possible[i] for i in rng.choice(len(possible), n_sets, replace=False)]
    return np.stack(
        [expert_neurons(model, [(at, other) for (at, _), other in zip(experts, one, strict=True)]) for one in drawn]
    )


def distinct(experts: Sequence[tuple[int, int]], others: Sequence[int]) -> bool:
    """Whether no expert stands twice in a control set."""
    return len({(layer, other) for (layer, _), other in zip(experts, others, strict=True)}) == len(experts)


class LoadTap(Tap):
    """Tokens and routing probabilities of each row, layer, expert and segment in the latest pass."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def begin(self, segments: Int[Tensor, "row pos"]) -> None:
        """A pass over a batch with these segments (−1: padding) comes next."""
        self.segments = segments
        self.count = torch.zeros(len(segments), *self.shape, dtype=torch.float64, device=segments.device)
        self.weight = torch.zeros_like(self.count)

    def on_expert(self, call: ExpertCall, post: Float[Tensor, "slot d_mlp"]) -> None:
        """Count the tokens."""
        if call.expert >= self.shape[1]:
            return  # a shared expert
        segment = self.segments.flatten()[call.token.to(self.segments.device)]
        real = segment >= 0
        place = (call.row.to(segment.device)[real], segment[real])
        ones = torch.ones(len(place[0]), dtype=torch.float64, device=segment.device)
        self.count[:, call.layer, call.expert].index_put_(place, ones, accumulate=True)
        self.weight[:, call.layer, call.expert].index_put_(place, call.weight.to(ones)[real], accumulate=True)

    def loads(
        self,
    ) -> tuple[Float[np.ndarray, "row layer expert segment"], Float[np.ndarray, "row layer expert segment"]]:
        """Load and weight; NaN without tokens, and in layers that sent no token anywhere."""
        tokens = torch.stack([(self.segments == i).sum(1) for i in range(len(SEGMENTS))], dim=1)[:, None, None]
        routed = self.count.sum(dim=(0, 2, 3), keepdim=True) > 0
        shares = [torch.where(routed & (tokens > 0), part / tokens, torch.nan) for part in (self.count, self.weight)]
        return shares[0].cpu().numpy(), shares[1].cpu().numpy()


def _table(
    load: Float[np.ndarray, "chat layer expert segment"],
    weight: Float[np.ndarray, "chat layer expert segment"],
    seed: int,
) -> pd.DataFrame:
    parts = []
    for segment in SEGMENTS:
        values, weights = (one[..., segment_id(segment)] for one in (load, weight))
        there = ~np.isnan(values).all(axis=(1, 2))
        layers = np.flatnonzero(~np.isnan(values[there]).any(axis=(0, 2)))
        if not there.any() or not len(layers):
            continue
        values, weights = values[there][:, layers], weights[there][:, layers]
        low, high = bootstrap_means(values, seed=seed)
        layer, expert = np.indices(values.shape[1:]).reshape(2, -1)
        columns = {"segment": segment, "layer": layers[layer], "expert": expert, "n": int(there.sum())}
        numbers = {"load": values.mean(0), "low": low, "high": high, "weight": weights.mean(0)}
        parts.append(pd.DataFrame(columns | {name: one.ravel() for name, one in numbers.items()}))
    if not parts:
        raise RimLensError("No token was sent to a routed expert: the model has none in any layer.")
    return pd.concat(parts, ignore_index=True)


def _with_labels(
    table: pd.DataFrame,
    load: Float[np.ndarray, "chat layer expert segment"],
    refused: Bool[np.ndarray, "chat"],
    n_permutations: int,
    seed: int,
) -> pd.DataFrame:
    """The table with the difference between refused and complied chats; NaN where a segment has too few of either."""
    names = ("load_refused", "load_complied", "effect", "effect_low", "effect_high", "p")
    table = table.assign(**dict.fromkeys(names, np.nan))
    for segment, rows in table.groupby("segment").groups.items():
        layers, experts = table.loc[rows, "layer"].to_numpy(), table.loc[rows, "expert"].to_numpy()
        values = load[:, layers, experts, segment_id(str(segment))]
        there = ~np.isnan(values).any(axis=1)
        labels = refused[there]
        if min(labels.sum(), (~labels).sum()) < LEAST:
            continue
        contrast = group_contrast(values[there], labels, n_permutations=n_permutations, seed=seed)
        numbers = (contrast.mean_plus, contrast.mean_minus, contrast.effect, contrast.low, contrast.high, contrast.p)
        table.loc[rows, list(names)] = np.stack(numbers, axis=1)
    known = table["p"].notna()
    table.loc[known, "q"] = benjamini_hochberg(table.loc[known, "p"].to_numpy())
    return table
