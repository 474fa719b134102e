"""Coverage of the intervals of neuron sets: activation shift, RAS, and Jaccard's index of a choice under resampling."""

import numpy as np

from benchmarks.trust.simulated import Coverage, coverage, covers
from rim_lens.capture.neuron_activations import NeuronActivations
from rim_lens.results import Manifest
from rim_lens.training_time.ras import ras
from rim_lens.training_time.shift import activation_shift
from rim_lens.training_time.stability import GroupSums, counts, jaccard, resampled_sets

N_NEURONS, RESAMPLES = 4, 400
ROWS = np.stack([np.zeros(N_NEURONS, dtype=int), np.arange(N_NEURONS)], axis=1)
CONTROLS = np.stack([ROWS, ROWS])  # the intervals do not look at them
ABOUT = Manifest.collect()


def activations(prompts: np.ndarray, tokens: np.ndarray) -> NeuronActivations:
    """A measurement with these values per prompt and neuron."""
    mean = (tokens @ prompts / tokens.sum())[None]
    return NeuronActivations(
        positions="user",
        n_tokens=int(tokens.sum()),
        threshold=0.0,
        mean=mean,
        variance=np.ones_like(mean),
        magnitude=mean,
        firing_rate=np.ones_like(mean),
        prompt_tokens=tokens.astype(np.int64),
        prompt_mean=prompts[:, None],
        prompt_magnitude=prompts[:, None],
        manifest=ABOUT,
    )


def sides(rng: np.random.Generator, n: int, factor: float) -> tuple[NeuronActivations, NeuronActivations]:
    """The same prompts before and after: a strength of each prompt, skewed, times the factor, and noise of its own."""
    tokens = rng.integers(5, 20, n)
    strength = rng.gamma(4, 0.25, (n, 1)) * rng.uniform(0.5, 1.5, N_NEURONS)
    noise = rng.normal(0, 0.2, (2, n, N_NEURONS))
    return activations(strength + noise[0], tokens), activations(factor * strength + noise[1], tokens)


@covers
def shifts(rng: np.random.Generator, runs: int) -> list[Coverage]:
    """Relative change of a set's activation, truth −30 %."""
    rows = []
    for n in (8, 16, 32):
        found = [
            activation_shift(*sides(rng, n, 0.7), ROWS, n_resamples=RESAMPLES, seed=i).table.iloc[0]
            for i in range(runs)
        ]
        low, high = (np.array([one[end] for one in found]) for end in ("low", "high"))
        names = ("relative activation shift", "activation_shift", "skewed prompts, −30 %", str(n))
        rows.append(coverage(names, -0.3, low, high))
    return rows


@covers
def reciprocal_shifts(rng: np.random.Generator, runs: int) -> list[Coverage]:
    """RAS where both sides shift clearly (30 % each), where they hardly do (3 %), and where neither does."""
    rows = []
    for change, data in ((0.3, "both shift by 30 %"), (0.03, "both shift by 3 %"), (0.0, "no shift, RAS 0")):
        for n in (8, 32) if change else (32,):
            found = [
                ras(*sides(rng, n, 1 - change), *sides(rng, n, 1 + change), ROWS, controls=CONTROLS,
                    n_resamples=RESAMPLES, seed=i).interval
                for i in range(runs)
            ]  # fmt: skip
            names = ("RAS", "ras, measure_series", data, f"{n} and {n}")
            rows.append(coverage(names, change, *np.array([tuple(one) for one in found]).T))
    return rows


@covers
def jaccard_of_a_choice(rng: np.random.Generator, runs: int) -> list[Coverage]:
    """The interval of resampled sets against what it stands for.

    The Jaccard index with the set of as many new prompts.
    """
    rows, groups, neurons, top = [], 3, 400, 20
    for n in (8, 24):
        for lead, data in ((2.0, "clear lead"), (0.6, "faint lead")):
            low, high, again = [], [], []
            for i in range(runs):
                rise = np.zeros(neurons)
                rise[:top] = lead
                chosen, sums = zip(*(choice(rng, rise, groups, n, top) for _ in range(2)), strict=True)
                likeness = np.concatenate([jaccard(chosen[0], s) for s in resampled_sets(sums[0], top, groups, 100, i)])
                ends = np.quantile(likeness, (0.025, 0.975))
                low.append(ends[0])
                high.append(ends[1])
                again.append(float(jaccard(chosen[0], chosen[1][None])[0]))
            names = ("Jaccard under resampling, for new prompts", "find_safety_neurons", data, f"3 × {n}")
            rows.append(coverage(names, np.array(again), np.array(low), np.array(high)))
    return rows


def choice(
    rng: np.random.Generator, rise: np.ndarray, groups: int, n: int, top: int
) -> tuple[np.ndarray, list[GroupSums]]:
    """The set that drawn prompts choose, and their sums."""
    ones = np.ones(n)
    sums = [
        GroupSums(*(rng.normal(shift, 1, (n, len(rise))).astype(np.float32) for shift in (0, rise)), ones, ones)
        for _ in range(groups)
    ]
    return counts(sums, top)[0] >= groups, sums
