"""Sets of neurons and their matched random controls.

A set is an array of rows (layer, unit), or (layer, expert, unit) in a mixture of experts. Its controls are random sets
with as many neurons in each layer and in each decile of base activation within the layer.
"""

from typing import Any

import numpy as np
from jaxtyping import Float, Int

from rim_lens.capture.neuron_activations import Measure, NeuronActivations
from rim_lens.errors import RimLensError
from rim_lens.stats import matched_neuron_sets
from rim_lens.units import Neuron

NeuronRows = Any  # SafetyNeurons, rows (layer, unit), or a list of such tuples or of names


def neuron_rows(neurons: NeuronRows) -> Int[np.ndarray, "neuron index"]:
    """The rows of a set, whatever form it is given in.

    Raises:
        RimLensError: an empty set, or something that is not a set of neurons.
    """
    rows_given = getattr(neurons, "rows", neurons)
    rows = (
        rows_given
        if isinstance(rows_given, np.ndarray)
        else np.array([Neuron.parse(one).place for one in rows_given or []])
    )
    if rows.ndim != 2 or len(rows) == 0 or rows.shape[1] not in (2, 3) or rows.dtype.kind not in "iu":
        raise RimLensError(
            f"Neurons must be a non-empty set of rows (layer, unit) or (layer, expert, unit), got shape {rows.shape}."
        )
    return rows.astype(np.int64)


def neuron_names(rows: Int[np.ndarray, "neuron index"]) -> list[str]:
    """L12N345, or L12E3N45 in a mixture of experts."""
    return [str(Neuron.parse(row)) for row in rows.tolist()]


def matched_controls(
    neurons: NeuronRows,
    n_sets: int = 1000,
    *,
    base: NeuronActivations | Float[np.ndarray, "layer ..."] | None = None,
    seed: int = 0,
    measure: Measure = "magnitude",
) -> Int[np.ndarray, "set neuron index"]:
    """Random sets matched on layer and base-activation decile, never the set itself (`rim_lens.stats.controls`).

    Args:
        neurons: the set.
        n_sets: how many; a p-value can be no smaller than 1 / (n_sets + 1).
        base: activations that the deciles are taken of, at the reference checkpoint; those that the set was found with
            where it is a `SafetyNeurons`.
        seed: of the draw.
        measure: which activation the deciles are of.

    Raises:
        RimLensError: fewer than `n_sets` such sets exist.
    """
    base = getattr(neurons, "base", None) if base is None else base
    if base is None:
        raise RimLensError("Matched controls need base activations to take deciles of; pass base=.")
    values = base.values(measure) if isinstance(base, NeuronActivations) else np.asarray(base)
    return matched_neuron_sets(neuron_rows(neurons), values, n_sets, seed)


def of_sets(
    values: Float[np.ndarray, "layer ..."], sets: Int[np.ndarray, "set neuron index"]
) -> Float[np.ndarray, "set neuron"]:
    """The values of every set's neurons."""
    return np.asarray(values, dtype=np.float64)[tuple(np.moveaxis(sets, -1, 0))]
