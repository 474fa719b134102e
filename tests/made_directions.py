"""A refusal direction, direct effects, self-repair and sentences of CoTs for tests of figures, from random numbers."""

import numpy as np
import pandas as pd
from made_heads import made_head_test
from made_results import HOSTILE, MANIFEST

from rim_lens.causal.ablation_comparison import AblationComparison
from rim_lens.causal.mediation import Mediation, path_table
from rim_lens.causal.path_patching import PathPatching
from rim_lens.causal.set_effects import set_effect
from rim_lens.chat.segments import SEGMENTS
from rim_lens.inference_time.cot_importance import CotImportance
from rim_lens.inference_time.direct_attribution import DirectAttribution, LogitDifference, SelfRepair
from rim_lens.inference_time.expert_load import ExpertLoad
from rim_lens.inference_time.receiver_heads import ReceiverHeads
from rim_lens.inference_time.refusal_direction import RefusalDirection
from rim_lens.training_time.direction_drift import DirectionDrift
from rim_lens.units import Head

LAYERS, POSITIONS, HEADS = 6, 3, 4


def made_direction(seed=0, n=20):
    """A direction whose removal lowers refusal; controls do nothing."""
    rng = np.random.default_rng(seed)
    rows = []
    for change, where, effect in (("project_out", "harmful", -6.0), ("add", "harmless", 5.0)):
        for controls in ("random directions", "shuffled labels"):
            before = rng.normal(size=n)
            null = before + rng.normal(0, 0.3, (15, n))
            row = set_effect(before, before + effect + rng.normal(0, 0.5, n), null, is_share=False)
            rows.append({"change": change, "measure": f"refusal score, {where}", "controls": controls} | row)
    layer, position = np.indices((LAYERS, POSITIONS)).reshape(2, -1)
    numbers = {name: rng.normal(size=len(layer)) for name in ("bypass", "induce", "kl", "norm")}
    candidates = pd.DataFrame({"layer": layer, "position": position, "token": "<|x|>"} | numbers)
    candidates["allowed"] = True
    candidates["chosen"] = candidates.index == 7
    names = ["last request token", "<|im_end|>", "\n"]
    place = (2, 1)
    vector = rng.normal(size=8)
    return RefusalDirection(
        pd.DataFrame(rows), candidates, vector, *place, names, (20, 20), (10, 10), "R", manifest=MANIFEST
    )


def made_attribution(seed=0, n=20):
    """Direct effects of heads and an embedding."""
    rng = np.random.default_rng(seed)
    effects = rng.normal(size=(n, LAYERS * HEADS + 1))
    layer, head = np.indices((LAYERS, HEADS)).reshape(2, -1)
    table = pd.DataFrame({"kind": "head", "layer": layer, "head": head})
    table = pd.concat([pd.DataFrame({"kind": ["embedding"], "layer": [-1], "head": [-1]}), table], ignore_index=True)
    table["name"] = [f"L{one.layer}H{one.head}" if one.layer >= 0 else one.kind for one in table.itertuples()]
    mean, spread = effects.mean(0), effects.std(0) / n**0.5
    table = table.assign(n=n, effect=mean, low=mean - 2 * spread, high=mean + 2 * spread)
    heads = effects[:, 1:].reshape(n, LAYERS, HEADS)
    neurons = pd.DataFrame({"layer": [0], "neuron": [1], "n": [n], "effect": [0.5], "low": [0.4], "high": [0.6]})
    metric = LogitDifference((3,), (4,))
    grid = np.zeros((LAYERS, 5))
    return DirectAttribution(table, heads, effects, grid, neurons, effects.sum(1), metric, "R", 1e-6, manifest=MANIFEST)


def made_repair(seed=0):
    """Half of each head's direct effect is made up for."""
    heads = made_attribution(seed).table.iloc[1:].reset_index(drop=True)
    table = heads[["layer", "head", "name", "n"]].copy()
    for name, factor in (("direct", -1.0), ("total", -0.5), ("response", 0.5)):
        ends = np.sort(np.stack([factor * heads["low"], factor * heads["high"]]), axis=0)
        table[name], table[f"{name}_low"], table[f"{name}_high"] = factor * heads["effect"], *ends
    table = table.assign(p=0.5, q=0.5, repaired=0.5)
    return SelfRepair(table, "logit difference", "decision", manifest=MANIFEST)


def made_importance(seed=0):
    """Two CoTs of three sentences."""
    rng = np.random.default_rng(seed)
    effects = {name: rng.normal(size=6) for name in ("hidden", "cut", "brings", "resampled")}
    places = {"chat": np.repeat([0, 1], 3), "sentence": np.tile(np.arange(3), 2), "place": np.tile([0.2, 0.5, 0.8], 2)}
    table = pd.DataFrame({**places, "text": [HOSTILE, *"abcde"], "n_tokens": 4, **effects, "n_other": 3, "n_same": 3})
    scores = pd.DataFrame({"chat": [0, 1], "request": [HOSTILE, "b"], "score": [1.0, -1.0]})
    row = {"third": "first third", "effect": "hidden", "n": 2, "mean": 0.1, "low": -0.5, "high": 0.7}
    summary = pd.DataFrame([row])
    return CotImportance(table, summary, scores, "answer", None, "shared prefix", 3, "R", manifest=MANIFEST)


def made_loads(seed=0, n=12):
    """Loads of four experts in two layers, the user's tokens alone."""
    rng = np.random.default_rng(seed)
    load = np.full((n, 2, 4, len(SEGMENTS)), np.nan)
    user = SEGMENTS.index("user")
    load[..., user] = rng.dirichlet(np.ones(4), (n, 2))
    layer, expert = np.indices((2, 4)).reshape(2, -1)
    mean = load[..., user].mean(0).ravel()
    places = {"segment": "user", "layer": layer, "expert": expert, "n": n}
    table = pd.DataFrame(places | {"load": mean, "low": mean - 0.1, "high": mean + 0.1, "weight": mean / 2})
    return ExpertLoad(table, load, load / 2, 0, 0, manifest=MANIFEST)


def made_mediation(seed=0, n=20):
    """Half of what the heads do runs through the neurons."""
    rng = np.random.default_rng(seed)
    total = rng.normal(-4, 1, n)
    prompts = pd.DataFrame({"request": [f"r{i}" for i in range(n)], "total": total, "through": total / 2})
    prompts = prompts.assign(around=total / 2, interaction=0.0)
    null = rng.normal(0, 0.2, 30)
    return Mediation(path_table(prompts, null, 0), prompts, null, [Head(1, 2)], 5, 0.5, "R", manifest=MANIFEST)


def made_paths(seed=0, n=20):
    """Half of the effect is direct, and one head of two carries the rest."""
    effects = np.random.default_rng(seed).normal((-4, -2, -2, -2, 0), 0.5, (n, 5))
    mean, names = effects.mean(0), ["total", "direct", "response", "L3H1", HOSTILE]
    table = pd.DataFrame({"path": names, "n": n, "effect": mean, "low": mean - 0.3, "high": mean + 0.3, "p": 0.01})
    table["q"] = [np.nan, np.nan, np.nan, 0.01, 0.5]
    return PathPatching(table, effects, [Head(1, 2)], "R", manifest=MANIFEST)


def made_comparison():
    """A direction and heads under the largest dose of the made test."""
    test = made_head_test(doses=(4,))
    parts = [
        [getattr(test, part).assign(units=name, kind=kind) for name, kind in ((HOSTILE, "direction"), ("h", "heads"))]
        for part in ("table", "prompts")
    ]
    return AblationComparison(*(pd.concat(one, ignore_index=True) for one in parts), manifest=MANIFEST)


def made_receivers():
    """The heads of the attribution with a kurtosis."""
    table = made_attribution().table.iloc[1:].reset_index(drop=True)
    table = table.rename(columns={"effect": "kurtosis"}).assign(kurtosis_uncontrolled=0.0, p=0.5, q=0.5)
    return ReceiverHeads(table, 2, 40, 0, manifest=MANIFEST)


def made_drift(seed=0, n=10):
    """Harmful prompts that a checkpoint moves, harmless ones that it does not."""
    rng, rows = np.random.default_rng(seed), []
    for prompts, by in (("harmful", -1.0), ("harmless", 0.0)):
        mean = by * np.arange(LAYERS) + rng.normal(0, 0.1, LAYERS)
        ends = {"low": mean - 0.2, "high": mean + 0.2, "random_low": -0.3, "random_high": 0.3, "p": 0.01, "cka": 0.9}
        where = {"checkpoint": "after", "arm": "a", "step": 1, "prompts": prompts, "depth": np.arange(LAYERS), "n": n}
        rows.append(pd.DataFrame(where | {"displacement": mean} | ends))
    moved = np.zeros((1, 2 * n, LAYERS))
    return DirectionDrift(pd.concat(rows, ignore_index=True), moved, ["after"], "before", 100, manifest=MANIFEST)


def made_directions():
    """Every one by name."""
    first = {"direction": made_direction(), "attribution": made_attribution(), "repair": made_repair()}
    return (
        first
        | {"importance": made_importance(), "loads": made_loads(), "mediation": made_mediation()}
        | {"receivers": made_receivers(), "drift": made_drift(), "comparison": made_comparison(), "paths": made_paths()}
    )
