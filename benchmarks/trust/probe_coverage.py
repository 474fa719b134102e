"""The probe's AUROC and d' are cross-fitted: coverage of the true value of the directions that were fitted, and p under the null."""

import numpy as np
from scipy.stats import norm

from benchmarks.trust.simulated import Calibration, Coverage, calibrates, calibration, coverage, covers
from rim_lens.inference_time.probe import _statistics
from rim_lens.inference_time.probe_fit import folds_of, grams, held_out_scores, permutation_p
from rim_lens.stats import auroc

WIDTH = 24


def scored(rng: np.random.Generator, n: int, distance: float) -> tuple[np.ndarray, np.ndarray, float, float]:
    """(held-out scores, labels, true AUROC and true d' of the fitted directions, mean over folds)."""
    refused = np.arange(2 * n) < n
    x = rng.normal(size=(2 * n, WIDTH))
    x[refused, 0] += distance
    fold = folds_of(refused, 5, rng)
    scores = held_out_scores(grams(x[:, None, None]), refused[:, None], fold)[:, 0]
    reach = []
    for held in range(5):
        rest = fold != held
        direction = x[rest & refused].mean(axis=0) - x[rest & ~refused].mean(axis=0)
        reach.append(distance * direction[0] / np.linalg.norm(direction))
    return scores, refused, float(norm.cdf(np.array(reach) / np.sqrt(2)).mean()), float(np.mean(reach))


@covers
def probe_statistics(rng: np.random.Generator, runs: int) -> list[Coverage]:
    """Normal residuals in 24 dimensions."""
    rows = []
    for n in (16, 40):
        for distance in (0.0, 1.5, 3.0):
            drawn = [scored(rng, n, distance) for _ in range(runs)]
            found = [_statistics(scores[:, None], refused) for scores, refused, _, _ in drawn]
            for name, column, truth in (("AUROC", "auroc", 2), ("d'", "d_prime", 3)):
                low, high = (np.array([one[f"{column}_{end}"][0] for one in found]) for end in ("low", "high"))
                names = (f"{name}, cross-fitted", "probe_refusal", f"distance {distance:g} sd", f"{n}+{n}")
                rows.append(coverage(names, np.array([one[truth] for one in drawn]), low, high))
    return rows


@calibrates
def probe_p(rng: np.random.Generator, runs: int) -> list[Calibration]:
    """Labels that have nothing to do with the residuals."""
    p = []
    for _ in range(runs):
        refused = np.arange(32) < 16
        fold = folds_of(refused, 5, rng)
        gram = grams(rng.normal(size=(32, 1, 1, WIDTH)))
        area = auroc(held_out_scores(gram, refused[:, None], fold)[:, 0], refused)
        p.append(permutation_p(gram, refused, fold, area, 99, rng)[0])
    return [calibration(("permutation with refitting", "probe_refusal", "normal", "16+16"), np.array(p))]
