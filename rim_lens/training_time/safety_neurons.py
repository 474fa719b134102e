"""Safety-critical neurons: those whose activation rises most, in every group of harms, when refusal is forced.

    A_safe = ∩_k top_m( f(a; D̃_k) − f(a; D_k) )        hard form; soft: in at least a share s of the K groups

f is the mean |a| ("magnitude") or the mean a ("signed") over the chosen positions; see `counterfactuals` for D and D̃
and `stability` for how the set is tested under resampling. Source: Yan et al., arXiv 2509.00544, section 4.

A wording that asks for a refusal also changes what neurons of wording do. Forced requests are therefore compared with
neutral wordings of the same form where the pairs have such, and differences are divided by their standard deviation
over requests; against plain requests `neutral_share` says how much of the set neutral wordings choose too.
`CounterfactualPairs.check` says whether the forced requests are refused more at all.

Neurons may also be ranked by attribution (gradient × activation): by the refusal score that zeroing each is estimated
to cost. Where 56 neurons are known to carry refusal (`organisms`, `training-known`) the paper's recipe names one or two
of them, the comparison with neutral wordings at most three, and zeroing their first 56 loses no refusal. Attribution
names up to seventeen, and zeroing its first 56 loses 7.6 nats (docs/trust.md). Take any set to `ablation_test`.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from scipy.stats import binom

from rim_lens.behavior.refusal_score import refusal_tokens
from rim_lens.capture.neuron_activations import Measure
from rim_lens.capture.neuron_sets import neuron_names
from rim_lens.errors import RimLensError
from rim_lens.inference_time.attribution import neuron_attributions
from rim_lens.model.direct_path import output_norms
from rim_lens.model.lens_model import LensModel
from rim_lens.progress import track
from rim_lens.results import Manifest, Result
from rim_lens.stats import Interval
from rim_lens.training_time.counterfactuals import CounterfactualPairs
from rim_lens.training_time.prompt_pass import pass_over
from rim_lens.training_time.stability import Choice, GroupSums, counts, jaccard, resampled_sets, spread_within
from rim_lens.units import columns_of, index_columns

RankedBy = Literal["standardized", "raw", "attribution"]
STABLE_FROM = 0.5  # lower end of the Jaccard interval: at least half of the set is chosen again


@dataclass(frozen=True, eq=False)
class SafetyNeurons(Result):
    """The set, how each neuron got into it, and whether other prompts would have chosen it.

    `table`: every neuron that is in the top m of at least one group, with the number of groups, the mean difference
    (or, ranked by attribution, the mean estimate in nats), f on both sides, and the share of resamples in which it is
    chosen. `share` is the share of groups a neuron needs (1.0: the hard intersection). `jaccard` compares the set with
    the sets of resampled prompts: mean, and the interval that holds 95 % of them. `by_chance` is the size that K
    unrelated top-m lists would have in common. `base`: f(a; D) of all neurons; `written`: ‖W_out‖ of all neurons, None
    in mixtures of experts. `neutral_share`: the share of the set that neutral wordings choose as well; NaN without any.
    """

    figure: ClassVar = "neurons:neurons_by_layer"

    table: pd.DataFrame
    n_groups: int
    top: int
    share: float
    jaccard: float
    jaccard_interval: Interval
    by_chance: float
    n_pairs: int
    way: str
    positions: str
    measure: Measure
    base: Float[np.ndarray, "layer ..."]
    ranked_by: str = "standardized"
    per_layer: bool = False
    against: str = "harmful"
    neutral_share: float = math.nan
    written: Float[np.ndarray, "layer unit"] | None = None

    def __repr__(self) -> str:
        return f"SafetyNeurons({len(self)} neurons of {self.n_all}, {self.caption()})"

    @property
    def n_all(self) -> int:
        """Neurons of the model."""
        return int(np.isfinite(self.base).sum())

    def __len__(self) -> int:
        """Number of neurons in the set."""
        return len(self.rows)

    @property
    def rows(self) -> Int[np.ndarray, "neuron index"]:
        """The set: rows (layer, unit), or (layer, expert, unit)."""
        return self.at_least(self.share)

    @property
    def stable(self) -> bool:
        """Whether resampled prompts choose at least half of the same neurons, in 97.5 % of the resamples."""
        return self.jaccard_interval.low >= STABLE_FROM

    @property
    def hard(self) -> Int[np.ndarray, "neuron index"]:
        """Neurons in the top of all groups."""
        return self.at_least(1.0)

    def at_least(self, share: float) -> Int[np.ndarray, "neuron index"]:
        """Neurons in the top of at least this share of the groups."""
        inside = self.table["n_groups"] >= needed_groups(self.n_groups, share)
        return self.table.loc[inside, list(index_columns(self.base.ndim))].to_numpy(dtype=np.int64)

    def caption(self) -> str:
        """How the set was found and how far it can be trusted."""
        low, high = self.jaccard_interval
        verdict = "" if self.stable else "; NOT STABLE: other prompts of the same kind choose largely other neurons"
        plain = ", against neutral wordings" if self.against == "neutral" else ""
        each, needed = " per layer" if self.per_layer else "", needed_groups(self.n_groups, self.share)
        way = "" if self.ranked_by == "attribution" else f"{self.way}{plain}, "
        groups = f" in {needed} of {self.n_groups} groups" if self.n_groups > 1 else ""
        return (
            f"top {self.top}{each} by {self.ranking}{groups}, {self.sample} ({way}{self.positions}); "
            f"Jaccard under resampling {self.jaccard:.2f} "
            f"[{low:.2f}, {high:.2f}]{self.chance}{self._neutral()}{verdict}"
        )

    @property
    def ranking(self) -> str:
        """What `difference` holds, in words."""
        attributed = self.ranked_by == "attribution"
        return "estimated refusal lost when zeroed (nats)" if attributed else f"{self.ranked_by} difference"

    @property
    def sample(self) -> str:
        """What the set was chosen on, in words."""
        return f"{self.n_pairs} {'requests' if self.ranked_by == 'attribution' else 'pairs'}"

    @property
    def chance(self) -> str:
        """What several lists would have in common by chance; one list has nothing in common with others."""
        return f"; {self.by_chance:.1f} expected by chance" if self.n_groups > 1 else ""

    def _neutral(self) -> str:
        if math.isnan(self.neutral_share):
            return ""
        return f"; neutral wordings choose {self.neutral_share:.0%} of them too"


def find_safety_neurons(
    model: LensModel,
    pairs: CounterfactualPairs,
    *,
    top: int | float = 0.05,
    groups: int | None = None,
    share: float = 1.0,
    measure: Measure = "magnitude",
    ranked_by: RankedBy = "standardized",
    per_layer: bool = False,
    against: Literal["harmful", "neutral"] | None = None,
    n_resamples: int = 200,
    batch_size: int = 16,
    seed: int = 0,
) -> SafetyNeurons:
    """The neurons whose activation rises most when requests force refusal.

    Args:
        model: the reference checkpoint.
        pairs: counterfactual pairs; `refusal_forcing_pairs(model, prompts)` makes them from harmful requests.
        top: m, how many neurons of each group count as its top; below 1 a share of all neurons.
        groups: deal the pairs into that many random groups in place of their own.
        share: share of the groups a neuron must be in the top of; 1.0 is the hard intersection.
        measure: "magnitude" or "signed".
        ranked_by: "standardized" divides each neuron's difference by its standard deviation over requests; "raw" does
            not, as in the paper; "attribution" takes the refusal score in nats that zeroing the neuron at the pairs'
            positions is estimated to cost the plain requests (gradient × activation), in place of a difference.
        per_layer: `top` counts neurons of each layer, as in the paper, in place of the whole model.
        against: what forced requests are compared with: the same requests in neutral wordings, so that what any wording
            does drops out, or the plain requests, as in the paper. By default neutral where the pairs have such.
        n_resamples: bootstrap resamples of the prompts for stability.
        batch_size: chats per pass.
        seed: of groups and resamples.

    Raises:
        RimLensError: a group with fewer than two pairs, a `top` or `share` that makes no sense, or neutral wordings
            asked for where the pairs have none.
    """
    if groups is not None:
        pairs = pairs.in_groups(groups, seed)
    names = list(dict.fromkeys(pairs.groups))
    members = {name: [i for i, group in enumerate(pairs.groups) if group == name] for name in names}
    for name, inside in members.items():
        if len(inside) < 2:
            raise RimLensError(
                f"Group {name!r} has {len(inside)} pair; give each at least 2, or set groups= to a number."
            )
    against = against or ("neutral" if pairs.neutral else "harmful")
    if against == "neutral" and not pairs.neutral:
        raise RimLensError("These pairs have no neutral wordings; make them with refusal_forcing_pairs.")
    sides = [pairs.harmful, pairs.forced, *([pairs.neutral] if pairs.neutral else [])]
    harmful, forced, *plain = (
        pass_over(model, side, pairs.positions, per_prompt=True, batch_size=batch_size).neurons
        for side in track(sides, "reading safety neurons")
    )
    before = plain[0] if against == "neutral" else harmful
    if ranked_by == "attribution":
        lost = -neuron_attributions(model, pairs.harmful, refusal_tokens(model).score, positions=pairs.positions)
        sums = [GroupSums.of_prompts(lost[inside]) for inside in members.values()]
    else:
        sums = [GroupSums.of(before, forced, measure, inside) for inside in members.values()]
    m = checked_top(top, harmful.n_neurons)
    if per_layer:
        m = max(1, m // model.n_layers) if isinstance(top, float) else m
    needed = needed_groups(len(names), share)

    def chosen_from(groups: list[GroupSums]) -> Choice:
        one = np.ones(groups[0].harmful.shape[1])
        scale = spread_within(groups) if ranked_by == "standardized" else one
        return Choice(m, scale, model.n_layers if per_layer else 1)

    choice = chosen_from(sums)
    count, differences = counts(sums, choice)
    chosen = count >= needed
    neutral_share = math.nan
    if plain and against == "harmful" and ranked_by != "attribution" and chosen.any():
        wording = [GroupSums.of(harmful, plain[0], measure, inside) for inside in members.values()]
        neutral_share = float((counts(wording, chosen_from(wording))[0] >= needed)[chosen].mean())
    similar, again = [], np.zeros(len(count))
    for sets in resampled_sets(sums, choice, needed, n_resamples, seed):
        similar.append(jaccard(chosen, sets))
        again += sets.sum(axis=0)
    likeness = np.concatenate(similar)
    low, high = np.quantile(likeness, (0.025, 0.975))
    table = chosen_table(count, differences, before.values(measure), forced.values(measure), again / n_resamples)
    return SafetyNeurons(
        table=table,
        n_groups=len(names),
        top=m,
        share=share,
        jaccard=float(likeness.mean()),
        jaccard_interval=Interval(float(low), float(high)),
        by_chance=chance_size(harmful.n_neurons, m * (model.n_layers if per_layer else 1), len(names), needed),
        n_pairs=len(pairs),
        way=pairs.way,
        positions=harmful.positions,
        measure=measure,
        base=harmful.values(measure),
        ranked_by=ranked_by,
        per_layer=per_layer,
        against=against,
        neutral_share=neutral_share,
        written=output_norms(model),
        manifest=Manifest.collect(model, seed=seed, groups=names, n_resamples=n_resamples),
    )


def chosen_table(
    count: Int[np.ndarray, "neuron"],
    differences: Float[np.ndarray, "group neuron"],
    harmful: Float[np.ndarray, "layer ..."],
    forced: Float[np.ndarray, "layer ..."],
    again: Float[np.ndarray, "neuron"],
) -> pd.DataFrame:
    """One row for every neuron in the top of some group, the most groups and largest differences first."""
    mean = differences.mean(axis=0)
    inside = np.flatnonzero(count)
    inside = inside[np.lexsort((-mean[inside], -count[inside]))]
    rows = np.stack(np.unravel_index(inside, harmful.shape), axis=1)
    index = columns_of(rows)
    return pd.DataFrame(
        {
            "neuron": neuron_names(rows),
            **index,
            "n_groups": count[inside],
            "difference": mean[inside],
            "smallest_difference": differences[:, inside].min(axis=0),
            "f_compared": harmful.ravel()[inside],
            "f_forced": forced.ravel()[inside],
            "chosen_again": again[inside],
        }
    )


def checked_top(top: int | float, n_neurons: int) -> int:
    """M as a number of neurons."""
    m = max(1, round(top * n_neurons)) if isinstance(top, float) and top < 1 else int(top)
    if not top > 0 or m >= n_neurons:
        raise RimLensError(f"top = {top} must be a share below 1, or fewer than all {n_neurons} neurons.")
    return m


def needed_groups(n_groups: int, share: float) -> int:
    """In how many groups a neuron must be in the top."""
    if not 0 < share <= 1:
        raise RimLensError(f"share = {share} must be above 0 and at most 1, the share of groups a neuron is needed in.")
    return max(1, math.ceil(share * n_groups - 1e-9))


def chance_size(n_neurons: int, m: int, n_groups: int, needed: int) -> float:
    """Expected number of neurons in at least `needed` of K top-m lists drawn independently at random."""
    return float(n_neurons * binom.sf(needed - 1, n_groups, m / n_neurons))
