"""Standardised effects of a two-class contrast, for every head, neuron or layer at once.

All functions take values ``[n, ...]`` with one row per prompt and labels ``[n]``, and return one number per
trailing element. AUROC is the probability that a positive row scores above a negative one, ties counted half:
the Mann-Whitney U divided by n₁n₀. Cohen's d is the difference of means over the pooled standard deviation;
Hedges' g multiplies it by the small-sample factor J = Γ(ν/2) / (√(ν/2) Γ((ν−1)/2)), ν = n₁ + n₀ − 2 (Hedges
1981). d' divides by the root mean square of both standard deviations instead (Green and Swets 1966), so it
does not depend on how many rows per class has.

Intervals of standardised effects are J e ± t_ν SE, J = 1 − 3/(4ν − 1), with the larger of two standard errors: that of
normal values, and the infinitesimal jackknife's, which follows the data's skew and tails. Percentiles of a bootstrap
are not a substitute: repeated rows shrink the spread of a resample, so its effects are too large (a 95 % interval of
d_z = 1 over 8 pairs covered 78 %; this one covers 95 % or more).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float
from scipy import special, stats

from rim_lens.errors import RimLensError


def two_classes(
    values: Float[np.ndarray, "n ..."], labels: Bool[np.ndarray, "n"], at_least: int = 1
) -> tuple[Float[np.ndarray, "n ..."], Bool[np.ndarray, "n"]]:
    """Values as float64 and labels as booleans; RimLensError unless both classes have ``at_least`` rows."""
    values, labels = np.asarray(values, dtype=np.float64), np.asarray(labels)
    if labels.ndim != 1 or values.ndim == 0 or len(values) != len(labels):
        raise RimLensError(f"A contrast needs one label per row, got labels {labels.shape} for values {values.shape}.")
    if not np.isin(labels, (0, 1)).all():
        raise RimLensError("The labels of a contrast must be booleans (or 0 and 1).")
    labels = labels.astype(bool)
    positive, negative = int(labels.sum()), int((~labels).sum())
    if min(positive, negative) < at_least:
        raise RimLensError(
            f"A contrast needs at least {at_least} rows of each class, got {positive} positive and {negative} "
            "negative ones; use more prompts, or prompts on which the model does not always behave alike."
        )
    return values, labels


def auroc(scores: Float[np.ndarray, "n ..."], labels: Bool[np.ndarray, "n"]) -> Float[np.ndarray, "..."]:
    """P(score of a positive row > score of a negative row) + ½ P(equal); 0.5 means no separation.

    n: rows; assumes only that rows are exchangeable within a class. An element with a NaN score gives NaN.
    """
    scores, labels = two_classes(scores, labels)
    positive, negative = labels.sum(), (~labels).sum()
    ranks = stats.rankdata(scores, axis=0)
    return (ranks[labels].sum(axis=0) - positive * (positive + 1) / 2) / (positive * negative)


def cohens_d(values: Float[np.ndarray, "n ..."], labels: Bool[np.ndarray, "n"]) -> Float[np.ndarray, "..."]:
    """(mean of positive − mean of negative rows) / pooled standard deviation, in standard deviations.

    n: at least 2 rows per class; assumes similar spread in both classes. Values that are constant within both
    classes give 0 where the means agree and ±inf where they do not.
    """
    values, labels = two_classes(values, labels, at_least=2)
    positive, negative = labels.sum(), (~labels).sum()
    pooled = (
        (positive - 1) * values[labels].var(axis=0, ddof=1) + (negative - 1) * values[~labels].var(axis=0, ddof=1)
    ) / (positive + negative - 2)
    return _standardise(values, labels, pooled)


def hedges_g(values: Float[np.ndarray, "n ..."], labels: Bool[np.ndarray, "n"]) -> Float[np.ndarray, "..."]:
    """Cohen's d with its upward bias for small n removed (exact gamma-function factor)."""
    freedom = len(np.asarray(labels)) - 2
    effect = cohens_d(values, labels)
    factor = np.exp(special.gammaln(freedom / 2) - special.gammaln((freedom - 1) / 2)) / np.sqrt(freedom / 2)
    return effect * factor


def standardised_interval(
    groups: Sequence[Float[np.ndarray, "n ..."]], shares: Sequence[float], level: float = 0.95
) -> tuple[Float[np.ndarray, "..."], Float[np.ndarray, "..."]]:
    """Bounds of e = (mean of the first group − mean of the second, if any) / √(Σ share · variance) for every element.

    Shares sum to 1: n_g / N for Cohen's d, ½ for d', (1,) for one group of differences (d_z). An effect that is
    infinite or 0 because nothing varies is its own bound.
    """
    freedom = sum(len(group) for group in groups) - len(groups)
    centred = [group - group.mean(axis=0) for group in groups]
    variances = [(part**2).sum(axis=0) / (len(part) - 1) for part in centred]
    pooled = sum(share * variance for share, variance in zip(shares, variances, strict=True))
    difference = groups[0].mean(axis=0) - (groups[1].mean(axis=0) if len(groups) == 2 else 0.0)
    rounding = 1e-9 * np.max([np.abs(group).max(axis=0) for group in groups], axis=0)
    constant = np.sqrt(pooled) <= rounding
    safe = np.where(constant, 1.0, pooled)
    effect = difference / np.sqrt(safe)
    normal = jackknife = np.zeros_like(effect)
    for sign, part, share, variance in zip((1, -1), centred, shares, variances, strict=False):
        n = len(part)
        normal = normal + variance / safe / n + effect**2 * (share * variance / safe) ** 2 / (2 * n)
        moved = sign * part / np.sqrt(safe) - effect * share * (part**2 - variance) / (2 * safe)
        jackknife = jackknife + (moved**2).sum(axis=0) / n / max(n - 1, 1)
    centre = effect * (1 - 3 / (4 * freedom - 1))
    half = stats.t.ppf((1 + level) / 2, freedom) * np.sqrt(np.maximum(normal, jackknife))
    with np.errstate(divide="ignore", invalid="ignore"):
        alone = np.where(np.abs(difference) <= rounding, 0.0, difference / 0.0)
    return np.where(constant, alone, centre - half), np.where(constant, alone, centre + half)


def d_prime(values: Float[np.ndarray, "n ..."], labels: Bool[np.ndarray, "n"]) -> Float[np.ndarray, "..."]:
    """(mean of positive − mean of negative rows) / √(½(var₁ + var₀)), the sensitivity index of signal detection.

    n: at least 2 rows per class; equals √2 Φ⁻¹(AUROC) for normal values.
    """
    values, labels = two_classes(values, labels, at_least=2)
    variance = (values[labels].var(axis=0, ddof=1) + values[~labels].var(axis=0, ddof=1)) / 2
    return _standardise(values, labels, variance)


def _standardise(
    values: Float[np.ndarray, "n ..."], labels: Bool[np.ndarray, "n"], variance: Float[np.ndarray, "..."]
) -> Float[np.ndarray, "..."]:
    difference = values[labels].mean(axis=0) - values[~labels].mean(axis=0)
    # Rounding leaves constant values with a spread of ~1e-16 of their size; dividing by it would invent an effect.
    rounding = 1e-12 * np.abs(values).max(axis=0)
    constant = np.sqrt(variance) <= rounding
    difference = np.where(constant & (np.abs(difference) <= rounding), 0.0, difference)
    with np.errstate(divide="ignore", invalid="ignore"):
        scaled = difference / np.where(constant, 0.0, np.sqrt(variance))
    return np.where(constant & (difference == 0), 0.0, scaled)
