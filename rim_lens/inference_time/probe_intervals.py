"""AUROC and d' of cross-fitted scores.

The intervals are for a probe fitted on as many chats, not for these directions alone.

Held-out scores are not independent: folds share most of the chats that they were fitted on. Two variances bracket that
of a cross-fitted statistic θ:

    V_rows    of θ as if the scores were independent rows (too small: directions would be given)
    V_refit   = Σ_class (m − 1)/m Σ_{i in class} (θ₍ᵢ₎ − mean)², θ₍ᵢ₎ cross-fitted anew without chat i (the jackknife;
    too large:
              what pairs of chats do together, one in the fit and one scored, it counts twice, Efron and Stein 1981)

The interval takes √(V_rows V_refit), never less than V_rows, with Student's t. By simulation it covers 94 to 98 % of
the value expected of a probe fitted on as many chats as the training folds hold (docs/trust.md); V_rows alone covers 84
to 95 %, Nadeau and Bengio's corrected variance over repeated folds 80 to 91 %, LeDell's influence curve 79 to 89 %,
V_refit and a bootstrap that refits 98 to 100 %.
"""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import stats

from rim_lens.inference_time.probe_fit import BLOCK, Gram, auroc_interval, auroc_variance, best_cell, held_out_scores
from rim_lens.stats import auroc, d_prime
from rim_lens.stats.effects import standardised_interval
from rim_lens.stats.intervals import normal_quantile

Cells = Float[np.ndarray, "cell"]


def supervised_statistics(
    gram: Gram, scores: Float[np.ndarray, "row cell"], refused: Bool[np.ndarray, "row"], fold: Int[np.ndarray, "row"]
) -> dict[str, Cells]:
    """AUROC and d' of the cross-fitted direction of every cell, with intervals that count the fitting."""
    return held_out_statistics(scores, refused, refit_variances(gram, refused, fold))


def held_out_statistics(
    scores: Float[np.ndarray, "row cell"],
    refused: Bool[np.ndarray, "row"],
    refit: tuple[Cells, Cells] | None = None,
    level: float = 0.95,
) -> dict[str, Cells]:
    """AUROC and d' of held-out scores.

    `refit` are both jackknife variances, without which the directions count as given.
    """
    area, n_plus, n_minus = auroc(scores, refused), int(refused.sum()), int((~refused).sum())
    t = float(stats.t.ppf((1 + level) / 2, len(refused) - 2))
    d_low, d_high = standardised_interval([scores[refused], scores[~refused]], (0.5, 0.5), level)
    with np.errstate(invalid="ignore"):  # complete separation of constants has infinite bounds
        centre, half = (d_low + d_high) / 2, (d_high - d_low) / 2
    wider = [np.ones(area.shape), np.ones(area.shape)]
    if refit is not None:
        wider[0] = (t / normal_quantile(level)) ** 2 * inflation(auroc_variance(area, n_plus, n_minus), refit[0])
        wider[1] = inflation((half / t) ** 2, refit[1])
    low, high = auroc_interval(area, n_plus, n_minus, level, wider[0])
    known = np.isfinite(centre) & np.isfinite(wider[1])
    half = half * np.sqrt(np.where(known, wider[1], 1.0))
    return {
        "auroc": area,
        "auroc_low": low,
        "auroc_high": high,
        "d_prime": d_prime(scores, refused),
        "d_prime_low": np.where(known, centre - half, d_low),
        "d_prime_high": np.where(known, centre + half, d_high),
    }


def inflation(rows: Float[np.ndarray, "..."], refit: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """√(V_rows V_refit) / V_rows, at least 1; 1 where the rows do not vary (complete separation)."""
    safe = np.where(rows > 0, rows, 1.0)
    return np.where(rows > 0, np.sqrt(np.maximum(refit / safe, 1.0)), 1.0)


def refit_variances(gram: Gram, refused: Bool[np.ndarray, "row"], fold: Int[np.ndarray, "row"]) -> tuple[Cells, Cells]:
    """Jackknife variances of AUROC and d', every chat left out of fitting and scoring once."""
    n = len(refused)
    areas, sensitivities = np.empty((n, len(gram))), np.empty((n, len(gram)))
    for start in range(0, n, BLOCK):
        rows = np.arange(start, min(start + BLOCK, n))
        inside = np.arange(n)[:, None] != rows
        labels = np.broadcast_to(refused[:, None], inside.shape)
        scores = held_out_scores(gram, labels, fold, inside)
        for draw, row in enumerate(rows):
            some = inside[:, draw]
            areas[row] = auroc(scores[some, draw], refused[some])
            sensitivities[row] = d_prime(scores[some, draw], refused[some])
    return jackknife_variance(areas, refused), jackknife_variance(sensitivities, refused)


def jackknife_variance(
    values: Float[np.ndarray, "row ..."], refused: Bool[np.ndarray, "row"]
) -> Float[np.ndarray, "..."]:
    """Variance of a statistic of two samples from its values without each row; 0 where one is not finite."""
    total = np.zeros(values.shape[1:])
    for group in (refused, ~refused):
        part = values[group]
        with np.errstate(invalid="ignore"):
            total = total + (len(part) - 1) * part.var(axis=0)
    return np.where(np.isfinite(total), total, 0.0)


def selected_layer(
    gram: Gram, refused: Bool[np.ndarray, "row"], fold: Int[np.ndarray, "row"], level: float = 0.95
) -> dict[str, Any]:
    """AUROC of scores whose layer was chosen without the scored fold; the interval counts the choice and the fit."""
    n = len(refused)
    area = nested_auroc(gram, refused, fold)
    rests = [np.delete(np.arange(n), row) for row in range(n)]
    without = np.array([nested_auroc(gram[:, rest][:, :, rest], refused[rest], fold[rest]) for rest in rests])
    n_plus, n_minus = int(refused.sum()), int((~refused).sum())
    t = float(stats.t.ppf((1 + level) / 2, n - 2))
    wider = inflation(auroc_variance(np.array(area), n_plus, n_minus), jackknife_variance(without, refused))
    low, high = auroc_interval(np.array(area), n_plus, n_minus, level, (t / normal_quantile(level)) ** 2 * wider)
    return {"auroc": area, "low": float(low), "high": float(high), "n": float(n)}


def nested_auroc(gram: Gram, refused: Bool[np.ndarray, "row"], fold: Int[np.ndarray, "row"]) -> float:
    """AUROC of scores whose cell was chosen by a cross-validation within the other folds."""
    outer = held_out_scores(gram, refused[:, None], fold)[:, 0]
    chosen = np.empty(len(refused))
    for held in np.unique(fold):
        rest = np.flatnonzero(fold != held)
        inner_fold = fold[rest] if len(np.unique(fold[rest])) > 1 else np.arange(len(rest)) % 2
        inner = held_out_scores(gram[:, rest][:, :, rest], refused[rest][:, None], inner_fold)[:, 0]
        cell = best_cell(inner, refused[rest])
        chosen[fold == held] = outer[fold == held, cell] / (inner[:, cell].std() or 1.0)
    return float(auroc(chosen, refused))
