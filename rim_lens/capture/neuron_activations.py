"""What `neuron_activations` measured: moments of every neuron, and values per prompt where they were asked for."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from rim_lens.errors import RimLensError
from rim_lens.results import Result
from rim_lens.units import index_columns

Measure = Literal["magnitude", "signed"]


@dataclass(frozen=True, eq=False)
class NeuronActivations(Result):
    """Moments over `n_tokens` chosen tokens of the prompts, each [layer, unit] or [layer, expert, unit].

    Shared experts and dense layers of a mixture stand in blocks on its axis of experts, NaN where they end
    (`rim_lens.model.mixture_layers`).

    `mean` of a, its population `variance`, `magnitude` = mean |a| and `firing_rate` = share of tokens with a >
    `threshold`. `prompt_mean` and `prompt_magnitude` are the same means within each prompt, [prompt, layer, ...], or
    [prompt, neuron] in the order of `prompt_neurons` where only those were kept; None where nothing was.
    """

    positions: str
    n_tokens: int
    threshold: float
    mean: Float[np.ndarray, "layer ..."]
    variance: Float[np.ndarray, "layer ..."]
    magnitude: Float[np.ndarray, "layer ..."]
    firing_rate: Float[np.ndarray, "layer ..."]
    prompt_tokens: Int[np.ndarray, "prompt"]
    prompt_mean: Float[np.ndarray, "prompt ..."] | None = None
    prompt_magnitude: Float[np.ndarray, "prompt ..."] | None = None
    prompt_neurons: Int[np.ndarray, "neuron index"] | None = None

    @property
    def n_neurons(self) -> int:
        """Neurons of the model."""
        return int(np.isfinite(self.mean).sum())

    def __repr__(self) -> str:
        shape = " × ".join(map(str, self.mean.shape))
        return (
            f"NeuronActivations({shape} neurons, {self.positions}, {self.n_tokens} tokens of {self.n_prompts} prompts)"
        )

    @property
    def n_prompts(self) -> int:
        """Prompts measured."""
        return len(self.prompt_tokens)

    def values(self, measure: Measure = "magnitude") -> Float[np.ndarray, "layer ..."]:
        """f(a; D) of every neuron: mean |a| ("magnitude") or mean a ("signed")."""
        return self.magnitude if _checked(measure) == "magnitude" else self.mean

    def of_prompts(
        self, neurons: Int[np.ndarray, "neuron index"], measure: Measure = "magnitude"
    ) -> Float[np.ndarray, "prompt neuron"]:
        """f(a; prompt) of the given neurons; their token-weighted mean over prompts is `values`.

        Raises:
            RimLensError: values per prompt of these neurons were not kept.

        """
        values = self.prompt_magnitude if _checked(measure) == "magnitude" else self.prompt_mean
        if values is None:
            raise RimLensError(
                "No values per prompt were kept; measure with neuron_activations(..., per_prompt=neurons)."
            )
        rows = np.asarray(neurons)
        if self.prompt_neurons is None:
            return values[(slice(None), *rows.T)]
        column = {tuple(row): i for i, row in enumerate(self.prompt_neurons.tolist())}
        missing = [tuple(row) for row in rows.tolist() if tuple(row) not in column]
        if missing:
            raise RimLensError(
                f"Values per prompt of {len(missing)} of {len(rows)} neurons were not kept ({missing[0]} first); "
                "measure again with per_prompt= these neurons."
            )
        return values[:, [column[tuple(row)] for row in rows.tolist()]]

    def merge(self, other: "NeuronActivations") -> "NeuronActivations":
        """The activations over the prompts of both, these first.

        Raises:
            RimLensError: they were measured on other positions, thresholds or neurons.

        """
        mine = (self.positions, self.threshold, self.mean.shape, self._kept())
        theirs = (other.positions, other.threshold, other.mean.shape, other._kept())
        if mine != theirs:
            raise RimLensError(
                f"Activations of {mine[0]} over {mine[2]} neurons and of {theirs[0]} over {theirs[2]} cannot be "
                "merged; measure both with the same positions, threshold and per_prompt."
            )
        n, share = self.n_tokens + other.n_tokens, other.n_tokens / (self.n_tokens + other.n_tokens)
        shift = other.mean - self.mean
        within = (1 - share) * self.variance + share * other.variance
        return replace(
            self,
            n_tokens=n,
            mean=self.mean + share * shift,
            variance=within + share * (1 - share) * shift**2,
            magnitude=(1 - share) * self.magnitude + share * other.magnitude,
            firing_rate=(1 - share) * self.firing_rate + share * other.firing_rate,
            prompt_tokens=np.concatenate([self.prompt_tokens, other.prompt_tokens]),
            prompt_mean=_joined(self.prompt_mean, other.prompt_mean),
            prompt_magnitude=_joined(self.prompt_magnitude, other.prompt_magnitude),
        )

    def _kept(self) -> object:
        neurons = None if self.prompt_neurons is None else self.prompt_neurons.tolist()
        return self.prompt_mean is not None, neurons

    def to_dataframe(self) -> pd.DataFrame:
        """One row per neuron: its indices and its moments."""
        index = dict(zip(index_columns(self.mean.ndim), (i.ravel() for i in np.indices(self.mean.shape)), strict=True))
        moments = {name: getattr(self, name).ravel() for name in ("mean", "variance", "magnitude", "firing_rate")}
        return pd.DataFrame({**index, **moments}).loc[np.isfinite(self.mean).ravel()].reset_index(drop=True)


def _checked(measure: str) -> str:
    if measure not in ("magnitude", "signed"):
        raise RimLensError(f"Unknown measure {measure!r}; use 'magnitude' (mean |a|) or 'signed' (mean a).")
    return measure


def _joined(a: np.ndarray | None, b: np.ndarray | None) -> np.ndarray | None:
    return None if a is None or b is None else np.concatenate([a, b])
