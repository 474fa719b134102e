"""Direct logit attribution: what each head, neuron, bias and the embedding writes to the refusal tokens' logits.

    difference = mean logit of `toward` − mean logit of `against` (by default of the whole vocabulary)
    x          = embedding + Σ over layers ( Σ heads z W_O + bias  +  Σ neurons a w_out + bias )
    difference = W_d · ( scale ⊙ c(x) / σ + bias_norm ) + bias_d         W_d: the same difference of the unembedding's
    rows

With σ, the length that the final norm divides by, taken from the prompt's own pass (*frozen*), and so with the norms
that some architectures have on what a layer writes, this is a sum with one term per component. It is exact, and is
compared with the model's own logits each time. Experts and linear attention enter as one component per layer.

What a component does through later layers is not in its term. `self_repair` compares it with the total effect of zero
ablation: where later layers make up for the head, the total is smaller than the direct effect.

Sources: Elhage et al. 2021 (direct paths); McGrath et al. 2023, "The Hydra Effect", and Rushing and Nanda 2024,
"Explorations of Self-Repair in Language Models" (direct against total effect).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from rim_lens.behavior.refusal_score import RefusalTokens, refusal_tokens
from rim_lens.causal.effect_table import effect_table, grid, ranked_by
from rim_lens.causal.run_scores import as_metric, heads_of, score_runs
from rim_lens.chat.positions import Positions, words_of
from rim_lens.errors import RimLensError
from rim_lens.inference_time.component_effects import DecisionTap, LayerPaths, added_bias
from rim_lens.model.as_chats import as_chats
from rim_lens.model.direct_path import final_norm, frozen, unembedding
from rim_lens.model.fitting import halves_batches
from rim_lens.model.lens_model import LensModel
from rim_lens.model.requests import Prompts
from rim_lens.processes import all_rows
from rim_lens.results import Manifest, Result
from rim_lens.stats import bootstrap_means
from rim_lens.units import Head

LARGEST_GAP = 1e-3  # of float32 logits, nats; coarser types are held to their own resolution


@dataclass(frozen=True)
class LogitDifference:
    """Mean logit of some tokens minus mean logit of others (of the whole vocabulary where there are none), in nats."""

    toward: tuple[int, ...]
    against: tuple[int, ...] = ()

    def __call__(self, logits: Float[Tensor, "... vocab"]) -> Float[Tensor, "..."]:
        """The difference in float64; a metric for sweeps."""
        wide = logits.double()
        others = wide[..., list(self.against)] if self.against else wide
        return wide[..., list(self.toward)].mean(-1) - others.mean(-1)

    @property
    def __name__(self) -> str:
        return f"logit of {len(self.toward)} tokens − logit of {len(self.against) or 'all'}"

    def row(self, weight: Float[Tensor, "vocab *rest"]) -> Float[Tensor, "*rest"]:
        """The same difference of the unembedding's rows, or of its biases, in float64."""
        others = weight[list(self.against)] if self.against else weight
        return weight[list(self.toward)].double().mean(0) - others.double().mean(0)


@dataclass(frozen=True, eq=False)
class DirectAttribution(Result):
    """What every component writes to the logit difference by itself, prompt by prompt.

    `table`: one row per component (embedding; per layer its heads, attention bias, MLP neurons together, MLP bias;
    final bias) with mean `effect` over n prompts in nats and its 95 % interval. `neurons`: mean effect of every neuron
    (NaN in layers of experts), `neuron_table` the largest ones with intervals. The rows of `effects` sum to `logits`,
    the model's own logit differences; `gap` is the largest deviation.
    """

    figure: ClassVar = "direct:attribution_map"

    table: pd.DataFrame
    heads: Float[np.ndarray, "prompt layer head"]
    effects: Float64[np.ndarray, "prompt component"]  # columns are the rows of `table`
    neurons: Float[np.ndarray, "layer neuron"]
    neuron_table: pd.DataFrame
    logits: Float64[np.ndarray, " prompt"]
    metric: LogitDifference
    tokens: str
    gap: float

    def ranked(self, k: int | None = None) -> list[Head]:
        """The k heads of largest mean |effect|."""
        heads = self.table[self.table["kind"] == "head"]
        heads = heads.iloc[np.argsort(-heads["effect"].abs().to_numpy(), kind="stable")]
        return Head.from_table(heads.head(len(heads) if k is None else k))

    def caption(self) -> str:
        """What is summed, over how many prompts, and how exactly."""
        return (
            f"Direct effect on {self.tokens}, norms frozen, n = {len(self.logits)} prompts; mean difference of logits "
            f"{self.logits.mean():+.3f} nats, of which the sum misses at most {self.gap:.1e}."
        )


@halves_batches
@torch.no_grad()
def direct_attribution(
    model: LensModel,
    chats: Prompts,
    toward: RefusalTokens | Sequence[int] | None = None,
    against: Sequence[int] = (),
    *,
    n_neurons: int = 50,
    batch_size: int = 16,
    seed: int = 0,
) -> DirectAttribution:
    """Attribute the logit difference at the decision position of every chat to what is written to the stream there.

    Args:
        model: a transformers model.
        chats: prompts, up to the decision position.
        toward: tokens whose mean logit is attributed; the refusal tokens by default.
        against: tokens whose mean logit is taken away; the whole vocabulary by default.
        n_neurons: neurons of largest mean |effect| that get a row with an interval.
        batch_size: chats of a pass.
        seed: of the bootstraps.

    Raises:
        RimLensError: no transformers model, modules that are not found, or a sum that is not the model's own logit (an
            architecture that caps or scales its logits, or writes to the stream in a way that is not known here).

    """
    chats = as_chats(model, chats)
    tokens = refusal_tokens(model) if toward is None else toward
    ids = tokens.ids if isinstance(tokens, RefusalTokens) else tuple(tokens)
    metric, out = LogitDifference(ids, tuple(against)), unembedding(model)
    norm = frozen(final_norm(model), model.d_model)
    assert norm is not None
    along = metric.row(out.weight).to(norm.scale)
    paths = [LayerPaths(model, layer, norm.back(along)) for layer in range(model.n_layers)]
    constant = float(along @ norm.bias) + added_bias(metric.row, out)
    names = [("embedding", -1, -1), *(name for one in paths for name in one.names), ("final bias", -1, -1)]
    effects, true, order = np.zeros((len(chats), len(names))), np.zeros(len(chats)), list[int]()
    neurons = torch.zeros(len(chats), model.n_layers, model.d_mlp)
    tap = DecisionTap(model)
    for indices, batch in model.shared_batches(chats, batch_size):
        with tap.attached():
            true[indices] = metric(model.decision_logits(batch)).cpu().numpy()
        length = norm.length(tap.stream[model.n_layers])
        parts = [tap.stream[0].double() @ norm.back(along).to(tap.stream[0].device)]
        for path in paths:
            written, of_neurons = path.effects(tap)
            parts += written
            neurons[indices, path.layer] = (of_neurons / length[:, None]).float().cpu()
        summed = torch.stack(parts, dim=1) / length[:, None]
        effects[indices, :-1], effects[indices, -1] = summed.cpu().numpy(), constant
        order += indices
    effects, true = all_rows(effects, order), all_rows(true, order)
    every = all_rows(neurons, order).numpy()
    gap = float(np.abs(effects.sum(1) - true).max())
    _need_exact(model, gap, true)
    table = _component_table(names, effects, seed)
    return DirectAttribution(
        table=table,
        heads=_heads(model, table, effects),
        effects=effects,
        neurons=every.mean(axis=0),
        neuron_table=_neuron_table(every, n_neurons, seed),
        logits=true,
        metric=metric,
        tokens=str(tokens) if isinstance(tokens, RefusalTokens) else f"tokens {list(ids)}",
        gap=gap,
        manifest=Manifest.collect(model, seed=seed),
    )


def _need_exact(model: LensModel, gap: float, true: Float64[np.ndarray, " prompt"]) -> None:
    exact = model.dtype in (torch.float32, torch.float64)
    allowed = LARGEST_GAP if exact else 0.05 * (1 + float(np.abs(true).max()))
    if not gap <= allowed:
        raise RimLensError(
            f"What is written to the stream of {model.name} sums to logits that differ from its own by {gap:.2g} "
            "nats: it caps or scales its logits, or writes in a way that is not known here; use an "
            "ablation sweep instead."
        )


def _component_table(
    names: Sequence[tuple[str, int, int]], effects: Float64[np.ndarray, "prompt component"], seed: int
) -> pd.DataFrame:
    low, high = bootstrap_means(effects, seed=seed)
    frame = pd.DataFrame(names, columns=["kind", "layer", "head"])
    frame["name"] = [
        str(Head(layer, head)) if kind == "head" else kind + ("" if layer < 0 else f", layer {layer}")
        for kind, layer, head in names
    ]
    return frame.assign(n=len(effects), effect=effects.mean(axis=0), low=low, high=high)


def _heads(
    model: LensModel, table: pd.DataFrame, effects: Float64[np.ndarray, "prompt component"]
) -> Float[np.ndarray, "prompt layer head"]:
    rows = table.index[table["kind"] == "head"]
    return grid(model, Head.from_table(table.loc[rows]), effects[:, rows])


def _neuron_table(every: Float[np.ndarray, "prompt layer neuron"], n: int, seed: int) -> pd.DataFrame:
    mean = np.nan_to_num(np.abs(every.mean(axis=0)))
    layer, unit = np.unravel_index(np.argsort(-mean, axis=None, kind="stable")[:n], mean.shape)
    values = every[:, layer, unit].astype(np.float64)
    low, high = bootstrap_means(values, seed=seed)
    columns: dict[str, Any] = {"layer": layer, "neuron": unit, "n": len(every), "effect": values.mean(axis=0)}
    return pd.DataFrame(columns | {"low": low, "high": high})


@dataclass(frozen=True, eq=False)
class SelfRepair(Result):
    """Direct against total effect of zeroing each head, and what the rest of the model makes of its absence.

    `table`: one row per head with `direct` (minus its attribution), `total` (the sweep's effect on the same logit
    difference) and `response` = total − direct, each with its 95 % interval over n prompts, `p` (`stats.mean_test`) and
    Benjamini-Hochberg `q` of the response; `repaired` is −response / direct where the interval of `direct` leaves out
    0.
    """

    figure: ClassVar = "direct:direct_against_total"

    table: pd.DataFrame
    metric: str
    positions: str

    def caption(self) -> str:
        """How heads were zeroed and on how many prompts."""
        return (
            f"Heads zeroed at {self.positions} positions, n = {self.table['n'].iloc[0]} prompts; {self.metric}; "
            "a response against the direct effect is self-repair."
        )


def self_repair(
    model: LensModel,
    chats: Prompts,
    attribution: DirectAttribution | None = None,
    *,
    positions: Positions = "decision",
    n_permutations: int = 2000,
    seed: int = 0,
) -> SelfRepair:
    """Zero each head alone and compare what is lost with what the head writes directly.

    Args:
        model: a transformers model.
        chats: prompts, up to the decision position.
        attribution: `direct_attribution` of the same chats; measured here by default.
        positions: where heads are zeroed; at "decision" the response is that of later layers at this position and of
            the final norm, elsewhere also what other positions would have carried.
        n_permutations: sign flips of the test.
        seed: of permutations and bootstraps.

    Raises:
        RimLensError: as `direct_attribution`, or an attribution of other chats.

    """
    chats = as_chats(model, chats)
    attribution = attribution or direct_attribution(model, chats, seed=seed)
    if len(attribution.logits) != len(chats):
        raise RimLensError(
            f"The attribution holds {len(attribution.logits)} prompts but {len(chats)} chats were given: pass the "
            "chats that it was made with."
        )
    score, name = as_metric(model, attribution.metric)
    heads = heads_of(model)
    runs = score_runs(model, chats, [[one] for one in heads], score, positions=positions, description="zeroing heads")
    if np.abs(runs.clean - attribution.logits).max() > 1e-2 * (1 + np.abs(runs.clean).max()):
        raise RimLensError("The attribution is of other chats, or of other weights: measure it again.")
    direct = -np.stack([attribution.heads[:, layer, head] for layer, head in heads], axis=1)
    response = runs.effect - direct
    table = effect_table(heads, response, n_tests=len(heads), n_permutations=n_permutations, seed=seed)
    table = table.rename(columns={"effect": "response", "low": "response_low", "high": "response_high"})
    for column, values in (("total", runs.effect), ("direct", direct)):
        low, high = bootstrap_means(values, seed=seed)
        for place, (suffix, numbers) in enumerate((("", values.mean(axis=0)), ("_low", low), ("_high", high))):
            table.insert(4 + place, column + suffix, numbers)
    clear = (table["direct_low"] > 0) | (table["direct_high"] < 0)
    table["repaired"] = (-table["response"] / table["direct"]).where(clear)
    return SelfRepair(
        table=ranked_by(table, table["direct"].abs().to_numpy()),
        metric=name,
        positions=words_of(positions),
        manifest=Manifest.collect(model, seed=seed),
    )
