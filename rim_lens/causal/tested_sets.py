"""Which units are tested, of which kind, and the control sets that each dose of them is held against."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from rim_lens.capture.neuron_sets import matched_controls, neuron_rows
from rim_lens.capture.neurons import neuron_activations
from rim_lens.causal.ablation import Kind
from rim_lens.chat.chat import Chat
from rim_lens.errors import RimLensError
from rim_lens.model.direct_path import output_norms
from rim_lens.model.lens_model import LensModel
from rim_lens.stats import count_head_sets, matched_head_sets
from rim_lens.units import Neuron, heads_from

Units = Sequence[Any]


def units_from(units: Any) -> tuple[Kind, list[Any]]:
    """Of which kind the units are, and a list of `Head`s, of rows of neurons (a plain pair is a head) or of one vector.

    Raises:
        RimLensError: a direction that is not a vector with a length.
    """
    rows = getattr(units, "rows", units)
    if hasattr(units, "vector") or (isinstance(rows, np.ndarray | Tensor) and rows.ndim == 1):
        vector = np.asarray(getattr(units, "vector", rows), dtype=np.float64)
        if vector.ndim != 1 or not np.isfinite(vector).all() or not vector.any():
            raise RimLensError(f"A direction to ablate is a finite vector other than 0, got shape {vector.shape}.")
        return "direction", [vector]
    if isinstance(rows, np.ndarray) or (len(rows) > 0 and is_neuron(rows[0])):
        return "neurons", [tuple(row) for row in neuron_rows(units).tolist()]
    return "heads", heads_from(rows)


def is_neuron(one: Any) -> bool:
    """Whether one unit is a neuron by its type, its name or its number of indices."""
    return (
        isinstance(one, Neuron) or (isinstance(one, str) and "N" in one) or (not isinstance(one, str) and len(one) == 3)
    )


def dose_sets(
    model: LensModel,
    units: Any,
    kind: Kind,
    chosen: list[Any],
    doses: Sequence[int] | None,
    n_controls: int,
    controls: Int[np.ndarray, "set neuron index"] | None = None,
    seed: int = 0,
    chats: Sequence[Chat] = (),
) -> dict[int, list[Units]]:
    """For each dose the first units, and after them their control sets.

    Neurons without a base activation of their own are matched by what they do at the decision position of the chats.
    """
    if not chosen:
        raise RimLensError("There are no heads or neurons to test; pass at least one, such as L12H3.")
    wanted = [len(chosen)] if doses is None else sorted({int(k) for k in doses})
    fitting = [k for k in wanted if 1 <= k <= len(chosen)]
    if not fitting:
        raise RimLensError(f"None of the doses {wanted} fits a list of {len(chosen)} {kind}; doses count {kind}.")
    sets: dict[int, list[Units]] = {}
    for k in fitting:
        drawn: Any
        if kind == "direction":
            drawn = directions(model, chosen[0], n_controls, controls, seed)
        elif kind == "heads":
            possible = count_head_sets(chosen[:k], model.n_heads)
            drawn = matched_head_sets(chosen[:k], model.n_heads, min(n_controls, possible), seed) if n_controls else []
        elif controls is not None:
            drawn = np.asarray(controls)[:, :k].tolist()
        elif n_controls == 0:
            drawn = []
        else:
            base, written = (getattr(units, name, None) for name in ("base", "written"))
            if base is None:
                base = neuron_activations(model, list(chats), "decision", progress=False).magnitude
                written = output_norms(model)
            rows = np.array(chosen[:k])
            drawn = matched_controls(rows, n_controls, base=base, written=written, seed=seed).tolist()
        plain = tuple if kind == "neurons" else lambda one: one
        sets[k] = [chosen[:k], *([plain(one) for one in row] for row in drawn)]
    return sets


def directions(
    model: LensModel,
    vector: Float[np.ndarray, " d_model"],
    n: int,
    controls: Float[np.ndarray, "set d_model"] | None,
    seed: int,
) -> list[list[Float[np.ndarray, " d_model"]]]:
    """Sets of one other direction: `controls`, or random ones."""
    if len(vector) != model.d_model:
        raise RimLensError(f"A direction of {model.name} has {model.d_model} numbers, got {len(vector)}.")
    drawn = np.random.default_rng(seed).normal(size=(n, len(vector))) if controls is None else np.asarray(controls)
    return [[one] for one in drawn]
