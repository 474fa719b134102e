"""Drift along a direction: how far checkpoints move prompts along the reference's refusal direction, layer by layer.

With u the unit direction, x_l(p) the stream entering layer l at the decision position of prompt p, and s_l the standard
deviation of x_l · u over all prompts at the reference:

    displacement(c, l, p) = ( x_l(p) at checkpoint c − x_l(p) at the reference ) · u / s_l
    random                = the mean displacement along random directions: how far everything moves
    CKA(c, l)             = linear CKA of X at the reference and at c over the same prompts, 1: same up to rotation

CKA is unbiased over prompts (Song et al. 2012), so that few prompts in many dimensions do not make it 1.

Sources: Arditi et al. 2024 (direction); Kornblith et al. 2019, "Similarity of Neural Network Representations
Revisited".
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from jaxtyping import Float

from rim_lens.capture.activations import residuals
from rim_lens.errors import RimLensError
from rim_lens.intervene.steer import vectors_of
from rim_lens.model.as_chats import as_chats
from rim_lens.model.lens_model import LensModel
from rim_lens.model.requests import Prompts
from rim_lens.results import Manifest, Result
from rim_lens.stats import bootstrap_means, empirical_p
from rim_lens.training_time.checkpoints import Checkpoints

LEAST = 4  # prompts of each kind, for an unbiased CKA


@dataclass(frozen=True, eq=False)
class DirectionDrift(Result):
    """How checkpoints move prompts along a direction of the reference.

    `table`: one row per checkpoint, kind of prompts ("harmful", "harmless") and depth (stream entering layer l; the
    last is behind the last block) with the mean `displacement` in standard deviations of the reference, its 95 %
    interval over `n` prompts, the 2.5 and 97.5 % quantiles of `n_random` random directions (`random_low`,
    `random_high`), two-sided `p` among them, and `cka` with the reference. `displacement`: every prompt's, harmful ones
    first.
    """

    figure: ClassVar = "direction:direction_drift_curves"

    table: pd.DataFrame
    displacement: Float[np.ndarray, "checkpoint prompt depth"]
    checkpoints: list[str]
    reference: str
    n_random: int

    def caption(self) -> str:
        """Over how many checkpoints and prompts."""
        n = self.table.groupby("prompts")["n"].first()
        return (
            f"{len(self.checkpoints)} checkpoints against {self.reference}; n = {n['harmful']} harmful, "
            f"{n['harmless']} harmless prompts; {self.n_random} random directions."
        )


def direction_drift(
    model: LensModel,
    checkpoints: Checkpoints,
    direction: Any,
    harmful: Prompts,
    harmless: Prompts,
    *,
    n_random: int = 100,
    batch_size: int = 16,
    seed: int = 0,
) -> DirectionDrift:
    """Measure the drift of every checkpoint from the first one.

    Args:
        model: the series' base model; it has the weights it had before when the function returns.
        checkpoints: the series, the reference first.
        direction: a vector [d_model] or a `RefusalDirection`, of the reference. Best measured on other prompts than
            those that it was fitted on.
        harmful: requests (rendered with thinking off) or chats.
        harmless: the same.
        n_random: random directions.
        batch_size: chats of a pass.
        seed: of the random directions and bootstraps.

    Raises:
        RimLensError: fewer than two checkpoints, or fewer than four prompts of a kind.

    """
    sides = {"harmful": as_chats(model, harmful), "harmless": as_chats(model, harmless)}
    if len(checkpoints) < 2 or min(map(len, sides.values())) < LEAST:
        raise RimLensError(
            f"direction_drift needs a reference, a later checkpoint and {LEAST} prompts of each kind; got "
            f"{len(checkpoints)} checkpoints, {len(sides['harmful'])} harmful and {len(sides['harmless'])} harmless "
            "prompts."
        )
    chats = [*sides["harmful"], *sides["harmless"]]
    vector = vectors_of(model, direction)[0].numpy().astype(np.float64)
    along = np.stack([vector, *np.random.default_rng(seed).normal(size=(n_random, model.d_model))])
    along /= np.linalg.norm(along, axis=1, keepdims=True)
    kinds = {"harmful": slice(0, len(sides["harmful"])), "harmless": slice(len(sides["harmful"]), None)}
    rows, moved, names = [], [], []
    first: Float[np.ndarray, "prompt depth d_model"] | None = None
    for checkpoint, at in checkpoints.loaded(model):
        x = residuals(at, chats, batch_size=batch_size)[:, :, 0].numpy().astype(np.float64)
        if first is None:
            first, spread = x, (x @ along.T).std(axis=0, ddof=1)  # [depth, direction]
            continue
        shift = ((x - first) @ along.T) / np.where(spread > 0, spread, np.nan)
        moved.append(shift[:, :, 0])
        names.append(checkpoint.name)
        for kind, part in kinds.items():
            similar = [unbiased_cka(first[part, depth], x[part, depth]) for depth in range(x.shape[1])]
            where = {"checkpoint": checkpoint.name, "arm": checkpoint.arm, "step": checkpoint.step, "prompts": kind}
            rows.append(_rows(where, shift[part], similar, seed))
    return DirectionDrift(
        table=pd.concat(rows, ignore_index=True),
        displacement=np.stack(moved),
        checkpoints=names,
        reference=checkpoints[0].name,
        n_random=n_random,
        manifest=Manifest.collect(model, seed=seed),
    )


def _rows(
    where: dict[str, Any], shift: Float[np.ndarray, "prompt depth direction"], similar: list[float], seed: int
) -> pd.DataFrame:
    mean = shift.mean(axis=0)
    low, high = bootstrap_means(shift[:, :, 0], seed=seed)
    bounds = np.quantile(mean[:, 1:], (0.025, 0.975), axis=1)
    columns = {"depth": np.arange(len(mean)), "n": len(shift), "displacement": mean[:, 0], "low": low, "high": high}
    p = np.full(len(mean), np.nan)  # where all prompts have the same stream there is no spread to measure in
    moved = np.isfinite(mean).all(axis=1)
    p[moved] = empirical_p(mean[moved, 0], mean[moved, 1:].T)
    columns |= {"random_low": bounds[0], "random_high": bounds[1], "p": p}
    return pd.DataFrame({**where, **columns, "cka": similar})


def unbiased_cka(x: Float[np.ndarray, "row d_model"], y: Float[np.ndarray, "row d_model"]) -> float:
    """Linear CKA with the unbiased estimator of HSIC; NaN where one of the two does not vary."""
    own = _hsic(x, x) * _hsic(y, y)
    return _hsic(x, y) / float(np.sqrt(own)) if own > 0 else float("nan")


def _hsic(x: Float[np.ndarray, "row d_model"], y: Float[np.ndarray, "row d_model"]) -> float:
    """Song et al. 2012, equation 5, of linear kernels of centred rows."""
    n = len(x)
    k, kernel = ((one - one.mean(axis=0)) @ (one - one.mean(axis=0)).T for one in (x, y))
    np.fill_diagonal(k, 0.0)
    np.fill_diagonal(kernel, 0.0)
    crossed = k.sum() * kernel.sum() / ((n - 1) * (n - 2)) - 2 * (k.sum(axis=0) @ kernel.sum(axis=0)) / (n - 2)
    return float((np.sum(k * kernel) + crossed) / (n * (n - 3)))
