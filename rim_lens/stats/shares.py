"""Shares of answers, and their differences on the same prompts, from outcomes [prompt, wording, sample].

    one answer per prompt          Wilson's interval; Tango's interval and McNemar's p for a difference
    several samples per prompt     Wilson's interval for as many trials as the answers are worth, prompts being the
    groups
                                   (`wilson_of_groups`); a difference from the spread over prompts of each prompt's
                                   difference
    several wordings per prompt    prompts and wordings are both resampled (`crossed`), samples averaged within them

Prompts are what was drawn: more samples of the same prompts narrow an interval only by the noise of sampling that they
take away.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from rim_lens.stats.crossed import bootstrap_crossed, bootstrap_crossed_difference
from rim_lens.stats.intervals import Interval, paired_difference, wilson, wilson_of_groups
from rim_lens.stats.permutation import Seed

Outcomes = Float[np.ndarray, "prompt wording sample"]  # 0 or 1, NaN where there is no answer


@dataclass(frozen=True)
class ShareDifference:
    """A difference of two shares on the same prompts.

    `gained` and `lost` prompts where each has one answer per side.
    """

    value: float
    interval: Interval
    p: float | None
    n_prompts: int
    gained: int | None
    lost: int | None
    method: str


def share_interval(outcomes: Outcomes, seed: Seed = 0, level: float = 0.95) -> Interval:
    """The interval of the share of hits among all answers.

    N is the number of prompts, at least 2 where it is not 1 answer each.
    """
    _, wordings, samples = outcomes.shape
    if wordings > 1:
        return bootstrap_crossed(outcomes, seed=seed, level=level).interval
    answered = ~np.isnan(outcomes[:, 0])
    hits, sizes = np.nansum(outcomes[:, 0], axis=1), answered.sum(axis=1)
    if samples == 1:
        return wilson(int(hits.sum()), int(sizes.sum()), level)
    return wilson_of_groups(hits, sizes.astype(np.float64), level)


def share_difference(after: Outcomes, before: Outcomes, seed: Seed = 0, level: float = 0.95) -> ShareDifference:
    """Share of hits in `after` minus share in `before`, the same prompts in the same order."""
    if after.shape[1:] == before.shape[1:] == (1, 1):
        paired = paired_difference(after[:, 0, 0].astype(bool), before[:, 0, 0].astype(bool), level)
        method = "Tango interval, exact McNemar p"
        return ShareDifference(
            paired.value, paired.interval, paired.p, len(after), paired.only_a, paired.only_b, method
        )
    difference = bootstrap_crossed_difference(after, before, seed=seed, level=level)
    low, high = np.clip(tuple(difference.interval), -1, 1)
    wordings, samples = (max(after.shape[axis], before.shape[axis]) for axis in (1, 2))
    method = (
        f"bootstrap over prompts and {difference.n_wordings} wordings" if wordings > 1 else "bootstrap over prompts"
    )
    method += f", {samples} samples within each" if samples > 1 else ""
    interval = Interval(float(low), float(high), level)
    return ShareDifference(difference.value, interval, difference.p, difference.n_prompts, None, None, method)
