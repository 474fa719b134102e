"""Training-time results for tests of figures and of the page; tables are computed by the package from random data."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
from made_results import HOSTILE, MANIFEST

from rim_lens.capture.neuron_activations import NeuronActivations
from rim_lens.capture.neuron_sets import matched_controls, neuron_names
from rim_lens.causal.ablation_test import AblationTest
from rim_lens.causal.set_effects import set_effect
from rim_lens.chat.segments import SEGMENTS
from rim_lens.stats import Interval, benjamini_hochberg
from rim_lens.training_time.forgetting import Forgetting, correlate
from rim_lens.training_time.neuron_table import NeuronTable
from rim_lens.training_time.prediction_check import PredictionCheck, compared
from rim_lens.training_time.ras import ras
from rim_lens.training_time.safety_neurons import SafetyNeurons, chosen_table
from rim_lens.training_time.series import Checkpoint
from rim_lens.training_time.series_heads import series_heads
from rim_lens.training_time.series_measures import AtCheckpoint
from rim_lens.training_time.series_shift import series_shift
from rim_lens.training_time.shift import activation_shift
from rim_lens.units import Neuron

LAYERS, UNITS, PROMPTS = 4, 60, 16
ROWS = np.array([[layer, unit] for layer in (1, 2) for unit in range(5)])


def activations(rng, factor):
    """Activations of all neurons whose set has `factor` times its base strength."""
    strength = rng.uniform(0.5, 1.5, (PROMPTS, LAYERS, UNITS))
    strength[:, ROWS[:, 0], ROWS[:, 1]] *= factor
    mean = strength.mean(axis=0)
    return NeuronActivations(
        positions="decision",
        n_tokens=PROMPTS,
        threshold=0.0,
        mean=mean,
        variance=strength.var(axis=0),
        magnitude=mean,
        firing_rate=np.ones_like(mean),
        prompt_tokens=np.ones(PROMPTS, dtype=int),
        prompt_mean=strength,
        prompt_magnitude=strength,
        manifest=MANIFEST,
    )


def made_safety_neurons(seed=0):
    rng = np.random.default_rng(seed)
    base = rng.random((LAYERS, UNITS))
    count = np.zeros(LAYERS * UNITS, dtype=int)
    count[rng.choice(len(count), 30, replace=False)] = 1
    count[np.ravel_multi_index(ROWS.T, base.shape)] = 3
    differences = rng.random((3, len(count)))
    table = chosen_table(count, differences, base, base + 0.5, rng.random(len(count)))
    about = {"n_groups": 3, "top": 12, "share": 1.0, "jaccard": 0.7, "jaccard_interval": Interval(0.55, 0.85)}
    about |= {
        "by_chance": 0.1,
        "n_pairs": 24,
        "way": "refusal-forcing rewrite",
        "positions": "user",
        "measure": "magnitude",
    }
    return SafetyNeurons(table=table, **about, base=base, manifest=MANIFEST)


def made_shift(seed=0):
    rng = np.random.default_rng(seed)
    before, after = activations(rng, 1.0), activations(rng, 0.6)
    controls = matched_controls(ROWS, 50, base=before)
    states = ("thinking off", "thinking on")
    return activation_shift(before, after, ROWS, controls=controls, states=states, n_resamples=100)


def made_ras(seed=0):
    rng = np.random.default_rng(seed)
    sides = [activations(rng, factor) for factor in (1.0, 0.6, 1.0, 1.4)]
    return ras(*sides, ROWS, n_controls=50, n_resamples=100)


def made_neuron_test(seed=0, n=32):
    rng = np.random.default_rng(seed)
    rows = []
    for measure, share in (("refusal score, harmful", None), ("refused, harmful", 0.8), ("maths solved", 0.4)):
        before = rng.normal(2, 1, n) if share is None else (rng.random(n) < share).astype(float)
        after = before - 1 if share is None else before * (rng.random(n) > 0.3)
        null = np.repeat(before[None], 20, axis=0) * (rng.random((20, n)) > 0.03)
        rows.append(
            {"change": "zero ablation", "k": len(ROWS), "measure": measure}
            | set_effect(before, after, null, is_share=share is not None)
        )
    table = pd.DataFrame(rows)
    table["q"] = benjamini_hochberg(table["p"].to_numpy())
    return AblationTest(
        table,
        pd.DataFrame(),
        pd.DataFrame(),
        [Neuron.parse(row) for row in np.asarray(ROWS).tolist()],
        "neurons",
        "all",
        "two-sided",
        manifest=MANIFEST,
    )


def made_forgetting(seed=0):
    """Eight checkpoints whose forgetting follows RAS; `ras_control` does not vary."""
    rng = np.random.default_rng(seed)
    amount = np.linspace(0.05, 0.5, 8)
    drop = 3 * amount + rng.normal(0, 0.1, 8)
    table = pd.DataFrame(
        {"checkpoint": [f"{arm}-{step}" for arm in ("plain", "effort") for step in (20, 40, 60, 80)]}
        | {"arm": ["plain"] * 4 + ["effort"] * 4, "step": [20, 40, 60, 80] * 2, "refusal_score": 2 - drop}
        | {"refusal_drop": drop, "drop_low": drop - 0.2, "drop_high": drop + 0.2, "refusals_lost": 0.3 * drop}
        | {"safety_loss": amount, "task_gain": amount**2, "weight_distance": rng.random(8)}
        | {"activation_distance": rng.random(8), "forward_kl": rng.random(8), "ras_safety": amount}
        | {"ras_low": amount - 0.03, "ras_high": amount + 0.03, "ras_p": 0.01, "ras_control": 0.02}
    )
    correlations, best = correlate(table, n_resamples=100)
    counts = {"n_neurons": 10, "n_controls": 50, "n_safety": 32, "n_task": 32}
    layers = pd.concat([made_ras(seed).layers.assign(checkpoint=name, q=0.2) for name in table["checkpoint"]])
    return Forgetting(
        table, correlations, best, pd.DataFrame(), "aligned", **counts, ras_layers=layers, manifest=MANIFEST
    )


HEADS = [(0, 1), (1, 2), (1, 3), (2, 0), (0, 3), (2, 2)]  # the first two are the chosen ones


def made_found(seed=0):
    """What `measure_series` gives: the reference and four checkpoints of two arms, whose set loses more and more."""
    rng = np.random.default_rng(seed)
    found = []
    for name, arm, step, factor in (
        ("aligned", "aligned", 0, 1.0),
        ("plain-9", "plain", 9, 0.8),
        ("plain-18", "plain", 18, 0.6),
        ("effort-9", "effort", 9, 0.7),
        ("effort-18", "effort", 18, 0.5),
    ):
        refusal = rng.normal(2 * factor, 0.3, PROMPTS)
        effects = np.array([-1.0, -0.8, 0.0, 0.05, -0.1, 0.1])[:, None] * factor + rng.normal(0, 0.05, (6, PROMPTS))
        attention = rng.dirichlet(np.ones(len(SEGMENTS)), (PROMPTS, 3, 4))
        neurons = activations(rng, factor), activations(rng, 2 - factor)
        about = Checkpoint(name, None, arm=arm, step=step)
        scores = refusal, np.abs(refusal), 0.003 * step
        found.append(AtCheckpoint(about, *neurons, *scores, attention, refusal + effects))
    return found


def made_series_shift():
    return series_shift(made_found(), ROWS, n_controls=60, n_resamples=100)


def made_series_heads():
    sets = [[head] for head in HEADS]
    return series_heads(None, made_found(), 2, sets, "empty think span", n_resamples=100)


def made_prediction(seed=0):
    rng, found = np.random.default_rng(seed), made_found()
    first = found[0]
    controls = matched_controls(ROWS, 60, base=first.safety)
    rows, points = [], []
    for one in found[1:]:
        f0, f1 = first.safety.magnitude, one.safety.magnitude
        predicted = SimpleNamespace(
            f_before=f0, f_after=f0 + 0.1 * (f1 - f0) + rng.normal(0, 0.01, f0.shape), size=0.003
        )
        row, per_neuron = compared(predicted, first, one, ROWS, controls, "magnitude", 0)
        where = {"arm": one.checkpoint.arm, "checkpoint": one.checkpoint.name, "step": one.checkpoint.step}
        rows.append({**where, **row})
        points.append(per_neuron.assign(**where))
    table = pd.DataFrame(rows)
    table["q"] = benjamini_hochberg(table["control_p"].to_numpy())
    steps = pd.DataFrame({"arm": ["plain", "effort"], "n_examples": 8, "loss": 1.5, "curvature": 0.02})
    return PredictionCheck(table, pd.concat(points), steps, "aligned", 60, PROMPTS, manifest=MANIFEST)


def made_neuron_table(seed=0):
    rng = np.random.default_rng(seed)
    names = neuron_names(ROWS)
    off, change = rng.normal(0, 1, len(names)), rng.normal(0, 0.5, len(names))
    table = pd.DataFrame({"neuron": names, "layer": ROWS[:, 0], "unit": ROWS[:, 1]}).assign(
        promoted=HOSTILE, suppressed="'no' 'yes'", off=off, on=off + change, change=change
    )
    table = table.assign(change_low=change - 0.2, change_high=change + 0.2)
    tokens = pd.DataFrame(
        {"neuron": names, "side": "promoted", "rank": 1, "token": HOSTILE, "token_id": 3, "effect": 0.5}
    )
    firing = pd.DataFrame(
        {"neuron": names, "rank": 1, "activation": off, "request": HOSTILE, "thinking": "off"}
    ).assign(segment="user", position=-4, token="' <b>'")
    return NeuronTable(table, tokens, firing, "user", 12, PROMPTS, PROMPTS, manifest=MANIFEST)


def made_training():
    """Every training-time result by the name it has in an audit."""
    return {
        "safety_neurons": made_safety_neurons(),
        "neuron_table": made_neuron_table(),
        "neuron_test": made_neuron_test(),
        "shift": made_shift(),
        "ras": made_ras(),
        "forgetting": made_forgetting(),
        "neuron_shift": made_series_shift(),
        "prediction": made_prediction(),
        "series_heads": made_series_heads(),
    }
