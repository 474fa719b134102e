"""Sets of neurons and their matched random controls.

A set is an array of rows (layer, unit), or (layer, expert, unit) in a mixture of experts. Its controls are random sets
with as many neurons in each layer, and among those of a layer that are as active and write as much.
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
    written: Float[np.ndarray, "layer unit"] | None = None,
    seed: int = 0,
    measure: Measure = "magnitude",
) -> Int[np.ndarray, "set neuron index"]:
    """Random sets matched on layer, base activation |a| and what is written, |a|·‖W_out‖; never the set itself.

    The most active neurons of a layer are exchanged with one another only (`rim_lens.stats.activation_strata`).

    Args:
        neurons: the set.
        n_sets: how many; a p-value can be no smaller than 1 / (n_sets + 1).
        base: activations to match, at the reference checkpoint; those that the set was chosen with where it is a
            `SafetyNeurons`.
        written: ‖W_out‖ of each neuron, `model.output_norms`; the set's own where it is a `SafetyNeurons`. Without it,
            and in mixtures of experts, sets are matched on |a| alone.
        seed: of the draw.
        measure: which activation is matched.

    Raises:
        RimLensError: fewer than `n_sets` such sets exist.
    """
    base = getattr(neurons, "base", None) if base is None else base
    if base is None:
        raise RimLensError("Matched controls need base activations to match; pass base=.")
    values = base.values(measure) if isinstance(base, NeuronActivations) else np.asarray(base)
    written = getattr(neurons, "written", None) if written is None else written
    return matched_neuron_sets(neuron_rows(neurons), values, n_sets, seed, written)


def of_sets(
    values: Float[np.ndarray, "layer ..."], sets: Int[np.ndarray, "set neuron index"]
) -> Float[np.ndarray, "set neuron"]:
    """The values of every set's neurons."""
    return np.asarray(values, dtype=np.float64)[tuple(np.moveaxis(sets, -1, 0))]
