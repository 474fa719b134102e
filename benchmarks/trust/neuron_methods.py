"""Which method finds the neurons that are known to carry refusal, from how many requests, and what its neurons do.

Each method ranks all neurons of a lineage of `training-known`, before any maths, from n requests about food, their n
twins (the same forms about other things) and n of the package's harmless requests, with thinking off. k is how many
neurons were trained. The first k are then zeroed on other requests.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from benchmarks.trust.methods import spread
from rim_lens import (
    LensModel,
    ablate_neurons,
    direct_attribution,
    load_prompts,
    neuron_activations,
    organisms,
    refusal_forcing_pairs,
    refusal_score,
)
from rim_lens.behavior.refusal_score import refusal_tokens
from rim_lens.capture.activations import residuals
from rim_lens.capture.neuron_sets import matched_controls
from rim_lens.chat.chat import Chat
from rim_lens.inference_time.attribution import neuron_attributions
from rim_lens.training_time.safety_neurons import find_safety_neurons
from rim_lens.units import Neuron

SIZES, ZEROED, N_REPORT, N_RANDOM = (8, 16, 32), (0, 16), 16, 2  # ZEROED: n of the lists that are zeroed
PAPER: dict[str, Any] = {"ranked_by": "raw", "against": "harmful"}
GROUPS, TOP = 4, 0.05  # of the paper's recipe: groups of requests, and the share of a layer that is its top
DIRECTION_LAYER = 24  # of 30: where the refusal direction is read
Array = Float[np.ndarray, "..."]


@dataclass(frozen=True)
class FoundNeurons:
    """Trained neurons among the first k, 2k and 46 (0.1 %) of a ranking.

    `lost`: mean, low and high in nats; None where they were not zeroed.
    """

    lineage: int
    method: str
    n: int
    k: int
    neurons_k: int
    neurons_2k: int
    neurons_46: int
    lost: tuple[float, float, float] | None
    n_report: int


@dataclass(frozen=True)
class Reading:
    """Per chat: a at the decision position, Σ_pos a · ∂score/∂a, the stream, and the score."""

    at_decision: Float[np.ndarray, "prompt layer neuron"]
    attributed: Float[np.ndarray, "prompt layer neuron"]
    stream: Float[np.ndarray, "prompt d_model"]
    score: Float[np.ndarray, " prompt"]

    def first(self, n: int) -> "Reading":
        """The first n prompts."""
        return Reading(self.at_decision[:n], self.attributed[:n], self.stream[:n], self.score[:n])


def read(model: LensModel, chats: Sequence[Chat]) -> Reading:
    """What the methods need of every chat."""
    score = refusal_tokens(model).score
    at_decision = neuron_activations(model, chats, "decision", per_prompt=True, progress=False).prompt_mean
    assert at_decision is not None  # measured with per_prompt=True
    stream = residuals(model, chats)[:, DIRECTION_LAYER, 0].numpy()
    return Reading(at_decision, -neuron_attributions(model, chats, score), stream, refusal_score(model, chats))


def standardised(one: Array, other: Array) -> Array:
    """|difference of means| in units of the mean spread within the two groups."""
    return np.abs(one.mean(0) - other.mean(0)) / np.sqrt((one.var(0) + other.var(0)) / 2 + 1e-12)


def recipe(model: LensModel, chats: Sequence[Chat], forced: Sequence[Chat], groups: Sequence[str]) -> Array:
    """The paper's recipe, top of each layer: in how many groups a neuron is in it, then by how much it rises."""
    plain, more = (
        neuron_activations(model, side, "decision", per_prompt=True, progress=False).prompt_magnitude
        for side in (chats, forced)
    )
    rises = []
    for name in dict.fromkeys(groups):
        inside = [i for i, group in enumerate(groups) if group == name]
        rises.append(more[inside].mean(0) - plain[inside].mean(0))
    rise = np.stack(rises)
    top = round(TOP * rise.shape[-1])
    n_groups = ((-rise).argsort(-1).argsort(-1) < top).sum(0)
    mean = rise.mean(0)
    return n_groups + mean / (1 + np.abs(mean).max())


def ordered(worth: Float[np.ndarray, "layer neuron"]) -> list[Neuron]:
    """All neurons, the largest first."""
    return [Neuron(*map(int, divmod(place, worth.shape[1]))) for place in np.argsort(-worth.ravel(), kind="stable")]


def rankings(model: LensModel, food: Reading, twins: Reading, harmless: Reading, chats: Sequence[Chat]) -> Iterator:
    """Neurons in the order in which each method would name them, from n requests of each kind."""
    a, b, c = food.at_decision, twins.at_decision, harmless.at_decision
    yield "food minus twin, standardised", ordered(standardised(a, b))
    yield "food minus harmless, raw difference (CNA)", ordered(np.abs(a.mean(0) - c.mean(0)))
    every, score = np.concatenate([a, b, c]), np.concatenate([food.score, twins.score, harmless.score])
    if 2 <= (score > 0).sum() <= len(score) - 2:
        yield "refused minus complied, standardised", ordered(standardised(every[score > 0], every[score <= 0]))
    pairs = refusal_forcing_pairs(model, [chat.request for chat in chats]).in_groups(GROUPS)
    yield "the paper's recipe, top of each layer", ordered(recipe(model, pairs.harmful, pairs.forced, pairs.groups))
    ways = {"the paper's recipe, top of all layers": PAPER, "forced minus neutral, standardised": {}}
    for name, way in ways.items():
        found = find_safety_neurons(model, pairs, top=TOP, n_resamples=20, **way).table[["layer", "unit"]].to_numpy()
        yield name, [Neuron(*row) for row in found.tolist()]
    yield "gradient × activation", ordered(food.attributed.mean(0))
    yield "gradient × activation, food minus twin", ordered(food.attributed.mean(0) - twins.attributed.mean(0))
    yield "direct attribution", ordered(direct_attribution(model, chats).neurons)
    direction = food.stream.mean(0) - twins.stream.mean(0)
    out = np.stack([weights_along(model, layer, direction) for layer in range(model.n_layers)])
    yield "writing along the refusal direction", ordered((a.mean(0) - b.mean(0)) * out)


def weights_along(model: LensModel, layer: int, direction: Array) -> Float[np.ndarray, " neuron"]:
    """What a unit of each neuron writes along a direction."""
    return direction @ model.hf.model.layers[layer].mlp.down_proj.weight.detach().numpy()


def neuron_methods(lineage: int) -> list[FoundNeurons]:
    """Every method on one lineage; first the trained neurons, those of the separate arm, and random matched ones."""
    organism = organisms.load("training-known", lineage=lineage)
    model, k, rng = organism.model, len(organism.truth), np.random.default_rng(lineage)
    order = rng.permutation(len(organism.prompts)).tolist()
    selected = order[N_REPORT : N_REPORT + max(SIZES)]
    chats = model.render([organism.prompts[i] for i in selected], thinking="off")
    food = read(model, chats)
    twins = read(model, model.render([organism.twins[i] for i in selected], thinking="off"))
    harmless = read(model, model.render(load_prompts("harmless", n=max(SIZES), seed=lineage), thinking="off"))
    rows = np.array([one[:2] for one in organism.truth])
    base = np.abs(np.concatenate([food.at_decision, twins.at_decision])).mean(0)
    named: list[tuple[str, int, list[Neuron]]] = [("the trained neurons", 0, list(organism.truth))]
    named.append(("the separate arm's neurons", 0, list(organism.separate)))
    random = matched_controls(rows, N_RANDOM, base=base, seed=lineage)
    named += [("random neurons, matched", 0, [Neuron(*row) for row in one.tolist()]) for one in random]
    for n in SIZES:
        some = rankings(model, food.first(n), twins.first(n), harmless.first(n), chats[:n])
        named += [(method, n, neurons) for method, neurons in some]
    report = model.render([organism.prompts[i] for i in order[:N_REPORT]], thinking="off")
    clean = refusal_score(model, report)
    return [scored(organism, lineage, *one, report, clean, k) for one in named]


def scored(organism, lineage, method, n, neurons, report, clean, k) -> FoundNeurons:
    """Hits of a ranking, and what zeroing its first k neurons does to the refusal score."""
    truth = set(organism.truth)
    hits = [len(truth & set(neurons[:m])) for m in (k, 2 * k, 46)]
    if n not in ZEROED:
        return FoundNeurons(lineage, method, n, k, *hits, None, len(report))
    with ablate_neurons(organism.model, neurons[:k]):
        changed = refusal_score(organism.model, report)
    return FoundNeurons(lineage, method, n, k, *hits, spread(clean - changed), len(report))
