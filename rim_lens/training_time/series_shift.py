"""Activation shift at every checkpoint of a series: the set's neurons against matched controls, overall and per layer.

See `shift` for the quantity. Safety and task prompts are shown apart, since RAS needs a loss in one and a gain in the
other. p-values are two-sided against the control sets; q corrects them over all checkpoints and layers
(Benjamini-Hochberg), the whole set's and the layers' tests each among themselves.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import pandas as pd

from rim_lens.capture.neuron_activations import Measure
from rim_lens.capture.neuron_sets import NeuronRows, matched_controls, neuron_names, neuron_rows
from rim_lens.results import Manifest, Result
from rim_lens.stats import benjamini_hochberg
from rim_lens.training_time.series_measures import AtCheckpoint
from rim_lens.training_time.shift import activation_shift


@dataclass(frozen=True, eq=False)
class SeriesShift(Result):
    """Shift of a set of neurons at every checkpoint, against a reference.

    `table`: one row per checkpoint, kind of `prompts` ("safety", "task") and `scope` ("all", or a layer, "L3"), with
    the columns of `ActivationShift.table` and q. `neurons`: the same for each neuron by itself, without intervals: its
    name, f before and after, and the relative change.
    """

    figure: ClassVar = "series_shift:shift_over_series"

    table: pd.DataFrame
    neurons: pd.DataFrame
    reference: str
    n_neurons: int
    n_controls: int
    n_safety: int
    n_task: int

    def __repr__(self) -> str:
        n = self.table["checkpoint"].nunique()
        return f"SeriesShift({self.n_neurons} neurons at {n} checkpoints against {self.reference})"

    def caption(self) -> str:
        """What is compared with what."""
        return (
            f"Relative change of the mean |activation| of {self.n_neurons} neurons against {self.reference}, "
            f"{self.n_safety} safety and {self.n_task} task prompts, {self.n_controls} matched random sets"
        )


def series_shift(
    measurements: Sequence[AtCheckpoint],
    neurons: NeuronRows,
    *,
    n_controls: int = 1000,
    measure: Measure = "magnitude",
    n_resamples: int = 2000,
    seed: int = 0,
) -> SeriesShift:
    """Shifts from what `measure_series` returned, the reference first.

    Args:
        measurements: one at every checkpoint.
        neurons: the set that `measurements` hold values per prompt of.
        n_controls: matched random sets.
        measure: "magnitude" or "signed".
        n_resamples: of the bootstrap over prompts.
        seed: of controls and bootstrap.
    """
    rows, first = neuron_rows(neurons), measurements[0]
    controls = matched_controls(neurons, n_controls, base=first.safety, seed=seed, measure=measure)
    frames, single = [], []
    for one in measurements[1:]:
        for name, before, after in (("safety", first.safety, one.safety), ("task", first.task, one.task)):
            shift = activation_shift(
                before, after, rows, controls=controls, measure=measure, n_resamples=n_resamples, seed=seed
            )
            where = {"checkpoint": one.checkpoint.name, "arm": one.checkpoint.arm, "step": one.checkpoint.step}
            frames.append(shift.table.assign(**where, prompts=name))
            alone = shift.neurons[["f_before", "f_after", "change"]]
            single.append(alone.assign(neuron=neuron_names(rows), checkpoint=one.checkpoint.name, prompts=name))
    table = pd.concat(frames, ignore_index=True)
    family = table["scope"].eq("all").map({True: "set", False: "layer"})
    table["q"] = table.groupby(family)["p"].transform(lambda p: benjamini_hochberg(p.to_numpy()))
    front = ["checkpoint", "arm", "step", "prompts"]
    return SeriesShift(
        table=table[[*front, *(name for name in table if name not in front)]],
        neurons=pd.concat(single, ignore_index=True),
        reference=first.checkpoint.name,
        n_neurons=len(rows),
        n_controls=n_controls,
        n_safety=first.safety.n_prompts,
        n_task=first.task.n_prompts,
        manifest=Manifest.collect(None, seed=seed, measure=measure, reference=dict(first.safety.manifest.model)),
    )
