"""Which neurons are trained: a named set per lineage, and a disjoint one that was as active in the base model."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

from rim_lens import LensModel, neuron_activations
from rim_lens.model.requests import Prompts
from rim_lens.training_time.series_measures import REQUEST_AND_ANSWER
from rim_lens.units import Neuron

LAYERS, PER_LAYER = range(18, 26), 7
INNER = 0.1  # the least and the most active tenth of a layer are not drawn: dead and massive neurons


def draw_neurons(model: LensModel, prompts: Prompts, lineage: int) -> tuple[list[Neuron], list[Neuron]]:
    """Named neurons, drawn at random, and for each the nearest other one of its layer.

    Near is meant in log mean |a| on the prompts and log ‖W_out‖ · mean |a|, each divided by its spread in the layer.
    """
    active = neuron_activations(model, prompts, REQUEST_AND_ANSWER).values()
    named, separate, rng = [], [], random.Random(f"neurons-{lineage}")
    for layer in LAYERS:
        out = model.hf.model.layers[layer].mlp.down_proj.weight.detach().norm(dim=0).numpy()
        place = np.log(np.stack([active[layer], out * active[layer]]))
        low, high = np.quantile(active[layer], (INNER, 1 - INNER))
        inner = np.flatnonzero((active[layer] > low) & (active[layer] < high)).tolist()
        here = sorted(rng.sample(inner, PER_LAYER))
        named += [Neuron(layer, unit) for unit in here]
        separate += [Neuron(layer, unit) for unit in nearest(place / place.std(axis=1, keepdims=True), here)]
    return named, separate


def nearest(place: np.ndarray, chosen: Sequence[int]) -> list[int]:
    """For every chosen column the nearest one that is neither chosen nor taken yet."""
    taken: list[int] = []
    for unit in chosen:
        distance = np.linalg.norm(place - place[:, [unit]], axis=0)
        distance[[*chosen, *taken]] = np.inf
        taken.append(int(distance.argmin()))
    return taken
