"""Does the shift of safety neurons predict how much safety a checkpoint forgets?

Outcomes: refusals lost (the fall of the refusal rate) and the drop of the mean refusal score, from the reference
checkpoint. The score depends on how a checkpoint words its refusals, so the refusals lost come first where answers were
judged. Predictors side by side: RAS on the safety neurons, mean RAS of matched control sets, the safety loss and the
task gain alone, weight distance, activation distance, forward KL on the safety prompts and on the new task. Each
predictor's Pearson and Spearman correlation with the outcome over the checkpoints, with p and bootstrap interval; for
the best one, the share of resamples in which it beats each other one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd

from rim_lens.capture.neuron_activations import Measure
from rim_lens.capture.neuron_sets import NeuronRows, matched_controls, neuron_rows
from rim_lens.errors import RimLensError
from rim_lens.model.lens_model import LensModel
from rim_lens.results import Manifest, Result
from rim_lens.stats import Correlation, benjamini_hochberg, bootstrap_mean, correlation, correlation_difference
from rim_lens.stats.line import FittedLine, fitted_line
from rim_lens.training_time.ras import ras
from rim_lens.training_time.series_measures import (
    AtCheckpoint,
    activation_distance,
)
from rim_lens.training_time.shift import gain_of, loss_of

PREDICTORS = (
    "ras_safety",
    "ras_control",
    "safety_loss",
    "task_gain",
    "weight_distance",
    "activation_distance",
    "forward_kl",
    "task_kl",
)
OUTCOMES = ("refusals_lost", "refusal_drop")
FEWEST = 4
MOST_ZEROS = 1 / 3  # a predictor that is 0 at so many checkpoints has no correlation worth the name


@dataclass(frozen=True, eq=False)
class Forgetting(Result):
    """What a series forgets, and what predicts it.

    `table`: one row per checkpoint but the reference; `refusals_lost` is a share of the prompts. `correlations`: one
    row per outcome and predictor, with Pearson's r, Spearman's ρ, their p, intervals and the number of checkpoints, how
    many `zeros` the predictor has, and q over all rows; NaN for a predictor that does not vary or is 0 at a third of
    the checkpoints, and for an outcome that does not vary. The p-values suppose independent checkpoints: over the doses
    of one lineage two unrelated quantities that grow with the dose reach p < .05 far too often. `best`: one row per
    outcome, the predictor with the largest r, and against each other predictor the share of resampled checkpoints in
    which it correlates more (`certainty`: the smallest of these shares). `ras`: RAS in all variants by checkpoint;
    `ras_layers`: RAS of the set's neurons in each layer, with p against the control sets' in that layer and q over all
    layers and checkpoints.
    """

    figure: ClassVar = "forgetting:forgetting_scatter"

    table: pd.DataFrame
    correlations: pd.DataFrame
    best: pd.DataFrame
    ras: pd.DataFrame
    reference: str
    n_neurons: int
    n_controls: int
    n_safety: int
    n_task: int
    ras_layers: pd.DataFrame | None = None

    def __repr__(self) -> str:
        return f"Forgetting({len(self.table)} checkpoints against {self.reference}; {self.caption()})"

    def line(self, predictor: str = "ras_safety", outcome: str = "refusal_drop") -> FittedLine:
        """The outcome on a predictor over the checkpoints: least-squares line with its 95 % band.

        Raises:
            RimLensError: a column that is not in the table, or a predictor that does not vary.
        """
        missing = [name for name in (predictor, outcome) if name not in self.table]
        if missing:
            raise RimLensError(f"The series has no {missing[0]!r}; there are {', '.join(self.table.columns)}.")
        return fitted_line(self.table[predictor].to_numpy(float), self.table[outcome].to_numpy(float))

    def caption(self) -> str:
        """The best predictor of each outcome, and how sure that is."""
        words = []
        for row in self.best.itertuples():
            words.append(
                f"{row.outcome}: {row.predictor} r = {row.pearson:.2f} [{row.low:.2f}, {row.high:.2f}], p = "
                f"{row.p:.2g}, n = {row.n}, better than the next in {100 * row.certainty:.0f} % of resamples"
            )
        return "; ".join(words)


def forgetting_of(
    model: LensModel | None,
    measurements: Sequence[AtCheckpoint],
    neurons: NeuronRows,
    refused: Mapping[str, float] | None = None,
    *,
    n_controls: int = 1000,
    measure: Measure = "magnitude",
    n_resamples: int = 2000,
    seed: int = 0,
) -> Forgetting:
    """Forgetting and its predictors from what `measure_series` returned, the reference first.

    Args:
        model: for the manifest.
        measurements: one at every checkpoint, at least four besides the reference.
        neurons: the set that `measurements` hold values per prompt of.
        refused: refusal rate of every checkpoint by name, 0 to 1, from answers.
        n_controls: matched random sets for RAS.
        measure: "magnitude" or "signed".
        n_resamples: of the bootstraps.
        seed: of control sets and bootstraps.

    Raises:
        RimLensError: fewer than four checkpoints besides the reference, or a refusal rate missing.
    """
    first, others = measurements[0], measurements[1:]
    need_enough(len(others))
    names = [measurement.checkpoint.name for measurement in measurements]
    missing = [name for name in names if refused is not None and name not in refused]
    if missing:
        raise RimLensError(f"Refusal rates are missing for {', '.join(missing)}; give one for every checkpoint.")
    rows = neuron_rows(neurons)
    controls = matched_controls(neurons, n_controls, base=first.safety, seed=seed, measure=measure)
    table, variants, layers = [], [], []
    for one in others:
        shifted = ras(
            first.safety, one.safety, first.task, one.task, rows,
            controls=controls, measure=measure, n_resamples=n_resamples, seed=seed,
        )  # fmt: skip
        variants.append(shifted.table.assign(checkpoint=one.checkpoint.name))
        layers.append(shifted.layers.assign(checkpoint=one.checkpoint.name))
        place = shifted.table.iloc[0]
        interval = {"ras_low": place.low, "ras_high": place.high, "ras_p": place.p, "ras_control": place.control_mean}
        table.append({**row_of(first, one, rows, measure, seed), "ras_safety": shifted.value, **interval})
    whole = pd.DataFrame(table)
    if refused is not None:
        lost = [refused[first.checkpoint.name] - refused[name] for name in whole["checkpoint"]]
        whole.insert(4, "refusals_lost", lost)
    by_layer = pd.concat(layers, ignore_index=True)
    by_layer["q"] = benjamini_hochberg(by_layer["p"].to_numpy())
    correlations, best = correlate(whole, n_resamples=n_resamples, seed=seed)
    return Forgetting(
        table=whole,
        correlations=correlations,
        best=best,
        ras=pd.concat(variants, ignore_index=True),
        reference=first.checkpoint.name,
        n_neurons=len(rows),
        n_controls=n_controls,
        n_safety=first.safety.n_prompts,
        n_task=first.task.n_prompts,
        ras_layers=by_layer,
        manifest=Manifest.collect(model, seed=seed, positions=first.safety.positions, measure=measure),
    )


def row_of(first: AtCheckpoint, one: AtCheckpoint, rows: np.ndarray, measure: Measure, seed: int) -> dict[str, object]:
    """What one checkpoint forgot, and the predictors that need no control sets."""
    drop = first.refusal - one.refusal
    low, high = bootstrap_mean(drop, seed=seed)
    f = [side.values(measure)[tuple(rows.T)].mean() for side in (first.safety, one.safety, first.task, one.task)]
    return {
        "checkpoint": one.checkpoint.name,
        "arm": one.checkpoint.arm,
        "step": one.checkpoint.step,
        "seed": one.checkpoint.seed,
        "refusal_score": float(one.refusal.mean()),
        "refusal_drop": float(drop.mean()),
        "drop_low": low,
        "drop_high": high,
        "safety_loss": float(loss_of(f[0], f[1])),
        "task_gain": float(gain_of(f[2], f[3])),
        "weight_distance": one.weight_distance,
        "activation_distance": activation_distance(first.safety, one.safety, measure),
        "forward_kl": float(one.kl.mean()),
        "task_kl": float(one.task_kl.mean()) if len(one.task_kl) else np.nan,
    }


def correlate(table: pd.DataFrame, *, n_resamples: int = 2000, seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Correlations of every predictor with every outcome in the table, and the best predictor of each outcome.

    Raises:
        RimLensError: fewer than four checkpoints, or no outcome that varies.
    """
    need_enough(len(table))
    predictors = [name for name in PREDICTORS if name in table and not table[name].isna().all()]
    rows, best = [], []
    outcomes = [name for name in OUTCOMES if name in table]
    if all(np.ptp(table[name].to_numpy(dtype=float)) == 0 for name in outcomes):
        what = " and ".join(outcomes)
        raise RimLensError(f"{what}: the same at all checkpoints, so nothing can predict it; use stronger training.")
    for outcome in outcomes:
        y = table[outcome].to_numpy(dtype=float)
        zeros = {name: int((table[name].to_numpy(dtype=float) == 0).sum()) for name in predictors}
        varying = [
            name
            for name in predictors
            if np.ptp(y) > 0
            and np.ptp(table[name].to_numpy(dtype=float)) > 0  # not so where a value is NaN
            and zeros[name] < MOST_ZEROS * len(y)
        ]
        by_predictor = {name: correlation(table[name].to_numpy(dtype=float), y, n_resamples, seed) for name in varying}
        for name in predictors:
            about = {"outcome": outcome, "predictor": name, "n": len(y), "zeros": zeros[name]}
            rows.append({**about, **numbers(by_predictor.get(name))})
        if varying:
            best.append({"outcome": outcome, **best_of(table, y, by_predictor, n_resamples, seed)})
    correlations = pd.DataFrame(rows)
    for kind in ("pearson", "spearman"):
        correlations[f"{kind}_q"] = benjamini_hochberg(correlations[f"{kind}_p"].to_numpy(dtype=float))
    return correlations, pd.DataFrame(best)


def numbers(correlation: Correlation | None) -> dict[str, float]:
    """A correlation as columns; NaN where the predictor does not vary."""
    columns: dict[str, float] = {}
    for kind in ("pearson", "spearman"):
        value, p = (
            (np.nan, np.nan) if correlation is None else (getattr(correlation, kind), getattr(correlation, f"{kind}_p"))
        )
        low, high = (np.nan, np.nan) if correlation is None else getattr(correlation, f"{kind}_interval")
        columns |= {kind: value, f"{kind}_p": p, f"{kind}_low": low, f"{kind}_high": high}
    return columns


def best_of(
    table: pd.DataFrame, y: np.ndarray, correlations: Mapping[str, Correlation], n_resamples: int, seed: int
) -> dict[str, object]:
    """The predictor with the largest r, and the shares of resamples in which it beats each other one."""
    ranked = sorted(correlations, key=lambda name: -correlations[name].pearson)
    first = ranked[0]
    against = {
        other: correlation_difference(
            table[first].to_numpy(dtype=float), table[other].to_numpy(dtype=float), y, "pearson", n_resamples, seed
        ).certainty
        for other in ranked[1:]
    }
    one = correlations[first]
    low, high = one.pearson_interval
    return {
        "predictor": first,
        "n": len(y),
        "pearson": one.pearson,
        "p": one.pearson_p,
        "low": low,
        "high": high,
        "certainty": min(against.values(), default=np.nan),
        **{f"beats_{other}": share for other, share in against.items()},
    }


def need_enough(n: int) -> None:
    """Raise for fewer than four checkpoints besides the reference."""
    if n < FEWEST:
        raise RimLensError(
            f"A correlation over {n} checkpoints says nothing; at least {FEWEST} besides the reference are needed."
        )
