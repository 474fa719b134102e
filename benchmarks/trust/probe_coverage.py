"""The probe's AUROC and d' are cross-fitted.

Coverage of the value expected of a probe fitted on as many chats, and p under the null.
"""

import numpy as np
from scipy.stats import norm

from benchmarks.trust.simulated import Calibration, Coverage, calibrates, calibration, coverage, covers
from rim_lens.inference_time.probe_fit import folds_of, grams, held_out_scores, permutation_p
from rim_lens.inference_time.probe_intervals import held_out_statistics, selected_layer, supervised_statistics
from rim_lens.stats import auroc

WIDTH, FOLDS, FITS, TOGETHER = 24, 5, 20_000, 50


def expected(n_plus: int, n_minus: int, distance: float) -> tuple[float, float]:
    """Mean AUROC and d' on new chats of directions fitted on as many chats as all folds but one hold."""
    rng, share = np.random.default_rng(0), 1 - 1 / FOLDS
    directions = rng.normal(size=(FITS, WIDTH)) * np.sqrt(1 / (share * n_plus) + 1 / (share * n_minus))
    directions[:, 0] += distance
    reach = distance * directions[:, 0] / np.linalg.norm(directions, axis=1)
    return float(norm.cdf(reach / np.sqrt(2)).mean()), float(reach.mean())


def drawn(
    rng: np.random.Generator, n_plus: int, n_minus: int, distance: float, depth: int = 1
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Normal residuals [row, depth, 1, width], labels and folds; the last depth separates them."""
    refused = np.arange(n_plus + n_minus) < n_plus
    x = rng.normal(size=(len(refused), depth, 1, WIDTH))
    x[refused, -1, 0, 0] += distance
    return x, refused, folds_of(refused, FOLDS, rng)


@covers
def probe_statistics(rng: np.random.Generator, runs: int) -> list[Coverage]:
    """Normal residuals in 24 dimensions."""
    rows = []
    for n_plus, n_minus in ((16, 16), (24, 24), (30, 10), (40, 40)):
        for distance in (0.0, 0.5, 1.0, 1.5, 2.0, 3.0):
            found = []
            for start in range(0, runs, TOGETHER):  # as many cells of one probe, all separated alike
                x, refused, fold = drawn(rng, n_plus, n_minus, distance, min(TOGETHER, runs - start))
                x[refused, :-1, 0, 0] += distance
                gram = grams(x)
                scores = held_out_scores(gram, refused[:, None], fold)[:, 0]
                found.append(supervised_statistics(gram, scores, refused, fold))
            truth = expected(n_plus, n_minus, distance)
            for name, column, value in zip(("AUROC", "d'"), ("auroc", "d_prime"), truth, strict=True):
                low, high = (np.concatenate([one[f"{column}_{end}"] for one in found]) for end in ("low", "high"))
                data = f"distance {distance:g} sd, expected {value:.2f}"
                names = (f"{name}, cross-fitted", "probe_refusal", data, f"{n_plus}+{n_minus}")
                rows.append(coverage(names, value, low, high))
    return rows


@covers
def probe_layer(rng: np.random.Generator, runs: int) -> list[Coverage]:
    """AUROC with the layer chosen on the training folds: of 8 layers none separates, so that any choice is worth 0.5.

    Or one does.
    """
    rows = []
    for n in (16, 32):
        for distance in (0.0, 3.0):
            ends = []
            for _ in range(max(1, runs // 4)):  # each takes a second
                x, refused, fold = drawn(rng, n, n, distance, depth=8)
                found = selected_layer(grams(x), refused, fold)
                ends.append((found["low"], found["high"]))
            value = expected(n, n, distance)[0]
            names = ("AUROC, layer chosen", "probe_refusal", f"8 layers, distance {distance:g} sd", f"{n}+{n}")
            rows.append(coverage(names, value, *np.array(ends).T))
    return rows


@covers
def unsupervised_probe(rng: np.random.Generator, runs: int) -> list[Coverage]:
    """Scores on a component that was fitted on other pairs, taken as given: its own AUROC and d'."""
    rows = []
    for n in (16, 40):
        for distance in (0.5, 1.5, 3.0):
            found, truths = [], []
            for _ in range(runs):
                x, refused, _ = drawn(rng, n, n, distance)
                direction = rng.normal(size=WIDTH) / np.sqrt(n)
                direction[0] += distance
                direction /= np.linalg.norm(direction)
                found.append(held_out_statistics((x[:, 0, 0] @ direction)[:, None], refused))
                truths.append((norm.cdf(distance * direction[0] / np.sqrt(2)), distance * direction[0]))
            for name, column, truth in (("AUROC", "auroc", 0), ("d'", "d_prime", 1)):
                low, high = (np.array([one[f"{column}_{end}"][0] for one in found]) for end in ("low", "high"))
                names = (
                    f"{name}, component as given",
                    "probe_refusal(pairs=)",
                    f"distance {distance:g} sd",
                    f"{n}+{n}",
                )
                rows.append(coverage(names, np.array([one[truth] for one in truths]), low, high))
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
