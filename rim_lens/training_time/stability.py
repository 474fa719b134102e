"""Which neurons are among the top in every group of prompts, and would other prompts of the same kind have chosen them?

For groups k with harmful prompts D_k and their refusal-forcing twins D̃_k:

    top_k = the m neurons with the largest f(a; D̃_k) − f(a; D_k) > 0          count(a) = number of k with a in top_k

Stability: prompts are resampled with replacement within each group (pairs stay together), the choice is repeated, and
the resampled set is compared with the set by Jaccard's index |A ∩ B| / |A ∪ B|.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from rim_lens.capture.neuron_activations import Measure, NeuronActivations
from rim_lens.training_time.shift import prompt_resamples

RESAMPLES_AT_ONCE = 16


@dataclass(frozen=True, eq=False)
class GroupSums:
    """Sums over tokens of each prompt of one group, flat over neurons: harmful and forced."""

    harmful: Float[np.ndarray, "prompt neuron"]
    forced: Float[np.ndarray, "prompt neuron"]
    harmful_tokens: Float[np.ndarray, "prompt"]
    forced_tokens: Float[np.ndarray, "prompt"]

    @classmethod
    def of(
        cls, harmful: NeuronActivations, forced: NeuronActivations, measure: Measure, inside: Sequence[int]
    ) -> "GroupSums":
        """Of the prompts `inside` the group, from activations with values per prompt of all neurons."""
        sides = []
        for side in (harmful, forced):
            values = side.prompt_magnitude if measure == "magnitude" else side.prompt_mean
            assert values is not None  # measured with per_prompt=True
            tokens = side.prompt_tokens[inside].astype(float)
            sides.append((values[inside].reshape(len(inside), -1) * tokens[:, None].astype(np.float32), tokens))
        return cls(sides[0][0], sides[1][0], sides[0][1], sides[1][1])

    def differences(self, weights: Float[np.ndarray, "resample prompt"]) -> Float[np.ndarray, "resample neuron"]:
        """f(a; D̃) − f(a; D) with each prompt counted `weights` times."""
        w = weights.astype(np.float32)
        forced = w @ self.forced / (w @ self.forced_tokens.astype(np.float32))[:, None]
        return forced - w @ self.harmful / (w @ self.harmful_tokens.astype(np.float32))[:, None]


def in_top(differences: Float[np.ndarray, "row neuron"], m: int) -> Bool[np.ndarray, "row neuron"]:
    """True at each row's m largest values, as far as they are above 0."""
    chosen = np.zeros(differences.shape, dtype=bool)
    columns = np.argpartition(-differences, m - 1, axis=1)[:, :m]
    np.put_along_axis(chosen, columns, True, axis=1)
    return chosen & (differences > 0)


def counts(groups: list[GroupSums], m: int) -> tuple[Int[np.ndarray, "neuron"], Float[np.ndarray, "group neuron"]]:
    """In how many groups each neuron is among the top m, and its difference in each group."""
    whole = [group.differences(np.ones((1, len(group.harmful)))) for group in groups]
    differences = np.concatenate(whole)
    return in_top(differences, m).sum(axis=0), differences


def resampled_sets(
    groups: list[GroupSums], m: int, needed: int, n_resamples: int, seed: int
) -> Iterator[Bool[np.ndarray, "resample neuron"]]:
    """The sets that resampled prompts choose, some resamples at a time."""
    draws = [prompt_resamples(len(group.harmful), n_resamples, seed + k) for k, group in enumerate(groups)]
    for start in range(0, n_resamples, RESAMPLES_AT_ONCE):
        part = slice(start, start + RESAMPLES_AT_ONCE)
        tops = [in_top(group.differences(draw[part]), m) for group, draw in zip(groups, draws, strict=True)]
        yield np.greater_equal(np.sum(tops, axis=0, dtype=np.int16), needed)


def jaccard(chosen: Bool[np.ndarray, "neuron"], others: Bool[np.ndarray, "row neuron"]) -> Float[np.ndarray, "row"]:
    """|A ∩ B| / |A ∪ B| with each row; 0 where both are empty."""
    either = (others | chosen).sum(axis=1)
    return (others & chosen).sum(axis=1) / np.maximum(either, 1)
