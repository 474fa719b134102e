"""Cross-fitted difference-of-means scores for all layers and positions at once, through inner products only.

With G[i, j] = x_i · x_j, a direction w = Σ_i a_i x_i scores row j as x_j · w = (G a)_j and has length √(aᵀ G a). For
the difference of means a_i is 1/n_refused or −1/n_complied on the rows fitted on and 0 on those held out; scores are
divided by the direction's length and counted from the middle between the two means, so that scores of different folds
compare. The first principal component of paired differences D_i has a = leading eigenvector of D Dᵀ (not centred: the
mean difference is what is looked for), oriented along the mean difference; it uses no label of the scored chats.
"""

import numpy as np
from jaxtyping import Bool, Float, Int

from rim_lens.stats import auroc, d_prime
from rim_lens.stats.intervals import normal_quantile

Gram = Float[np.ndarray, "cell row row"]
ROUNDING = 1e-5  # of the largest value: what padding and batch order do to float32 activations
BLOCK = 32  # permutations scored together


def grams(values: Float[np.ndarray, "row depth position d_model"]) -> Gram:
    """Inner products of centred rows for every depth and position (a *cell*, in C order).

    A cell in which all rows are the same up to rounding (the first depth, at a template's token) gets zeros.
    """
    blocks = []
    for depth in np.moveaxis(values, 1, 0):
        cells = np.moveaxis(depth, 0, 1)
        centred = cells - cells.mean(axis=1, keepdims=True)
        centred[np.abs(centred).max(axis=(1, 2)) <= ROUNDING * np.abs(cells).max(axis=(1, 2))] = 0
        blocks.append(centred @ np.swapaxes(centred, 1, 2))
    return np.concatenate(blocks)


def folds_of(labels: Bool[np.ndarray, "row"], n_folds: int, rng: np.random.Generator) -> Int[np.ndarray, "row"]:
    """A fold for every row, each class dealt out evenly."""
    fold = np.empty(len(labels), dtype=np.int64)
    for group in (True, False):
        rows = rng.permutation(np.flatnonzero(labels == group))
        fold[rows] = np.arange(len(rows)) % n_folds
    return fold


def held_out_scores(
    gram: Gram,
    labels: Bool[np.ndarray, "row draw"],
    fold: Int[np.ndarray, "row"],
    kept: Bool[np.ndarray, "row draw"] | None = None,
) -> Float[np.ndarray, "row draw cell"]:
    """Score of every row on the direction fitted without its fold, for several labellings (draws) at once.

    `kept`: the rows that each draw may be fitted on; all where not given.
    """
    scores = np.empty((len(gram), *labels.shape))
    for held in np.unique(fold):
        fitted = (fold != held)[:, None] if kept is None else (fold != held)[:, None] & kept
        plus, minus = labels & fitted, ~labels & fitted
        with np.errstate(invalid="ignore"):  # a draw without rows of one class has no direction, and scores 0
            plus, minus = ((side / side.sum(axis=0)).astype(gram.dtype) for side in (plus, minus))
        projected = gram @ (plus - minus)  # [cell, row, draw]
        length = np.sqrt(np.maximum(np.einsum("crd,rd->cd", projected, plus - minus), 0.0))
        middle = np.einsum("crd,rd->cd", projected, (plus + minus) / 2)
        with np.errstate(invalid="ignore", divide="ignore"):
            scaled = (projected - middle[:, None]) / length[:, None]
        scaled = np.where(length[:, None] > 0, scaled, 0.0)
        scores[:, fold == held] = scaled[:, fold == held]
    return np.moveaxis(scores, 0, -1)


def permutation_p(
    gram: Gram,
    labels: Bool[np.ndarray, "row"],
    fold: Int[np.ndarray, "row"],
    observed: Float[np.ndarray, "cell"],
    n_permutations: int,
    rng: np.random.Generator,
) -> Float[np.ndarray, "cell"]:
    """(relabellings whose refitted AUROC is at least the observed + 1) / (m + 1); labels move within folds."""
    count = np.zeros(len(gram))
    for start in range(0, n_permutations, BLOCK):
        size = min(BLOCK, n_permutations - start)
        drawn = np.stack([within_folds(labels, fold, rng) for _ in range(size)], axis=1)
        scores = held_out_scores(gram, drawn, fold)
        for draw in range(size):
            count += auroc(scores[:, draw], drawn[:, draw]) >= observed - 1e-12
    return (count + 1) / (n_permutations + 1)


def within_folds(
    labels: Bool[np.ndarray, "row"], fold: Int[np.ndarray, "row"], rng: np.random.Generator
) -> Bool[np.ndarray, "row"]:
    """Labels shuffled within each fold, so that folds stay balanced."""
    shuffled = labels.copy()
    for held in np.unique(fold):
        rows = np.flatnonzero(fold == held)
        shuffled[rows] = labels[rng.permutation(rows)]
    return shuffled


def leading_difference(differences: Float[np.ndarray, "pair d_model"], scale: float) -> Float[np.ndarray, "d_model"]:
    """Unit first principal component of paired differences, uncentred, along their mean.

    0 where no difference stands out of the rounding of values of size `scale`.
    """
    differences = np.asarray(differences, dtype=np.float64)
    if np.abs(differences).max() <= ROUNDING * scale:
        return np.zeros(differences.shape[1])
    _, vectors = np.linalg.eigh(differences @ differences.T)
    direction = vectors[:, -1] @ differences
    return direction / np.linalg.norm(direction) * (1.0 if direction @ differences.mean(axis=0) >= 0 else -1.0)


def auroc_interval(
    area: Float[np.ndarray, "..."],
    n_plus: int,
    n_minus: int,
    level: float = 0.95,
    inflated: Float[np.ndarray, "..."] | float = 1.0,
) -> tuple[Float[np.ndarray, "..."], Float[np.ndarray, "..."]]:
    """Score-type interval of an AUROC from its value and the group sizes; not degenerate at 0 and 1.

    All θ with (area − θ)² ≤ z² V(θ), V of `auroc_variance` times `inflated` (Newcombe 2006, Statistics in Medicine 25,
    method 5), found by bisection.
    """
    z = normal_quantile(level)

    def reached(theta: np.ndarray) -> np.ndarray:
        return (area - theta) ** 2 <= z**2 * inflated * auroc_variance(theta, n_plus, n_minus)

    area = np.asarray(area, dtype=np.float64)
    ends = []
    for border in (0.0, 1.0):
        inside, outside = area.copy(), np.full(area.shape, border)
        for _ in range(50):
            half = (inside + outside) / 2
            ok = reached(half) | (half == area)
            inside, outside = np.where(ok, half, inside), np.where(ok, outside, half)
        ends.append(inside)
    return ends[0], ends[1]


def auroc_variance(theta: Float[np.ndarray, "..."], n_plus: int, n_minus: int) -> Float[np.ndarray, "..."]:
    """V(θ) = θ(1−θ)/(mn) · [1 + (n* − 1)((1−θ)/(2−θ) + θ/(1+θ))], n* = (m + n)/2 (Newcombe 2006).

    The m + n scores are independent.
    """
    spread = 1 + ((n_plus + n_minus) / 2 - 1) * ((1 - theta) / (2 - theta) + theta / (1 + theta))
    return theta * (1 - theta) * spread / (n_plus * n_minus)


def best_cell(scores: Float[np.ndarray, "row cell"], refused: Bool[np.ndarray, "row"]) -> int:
    """The column with the largest AUROC; d' decides between equals."""
    return int(np.lexsort((d_prime(scores, refused), np.round(auroc(scores, refused), 6)))[-1])
