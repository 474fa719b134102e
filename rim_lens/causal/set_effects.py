"""The effect of changing a set of heads, prompt by prompt, and its place among the effects of control sets.

effect    = mean over prompts of (after − before)
p         = (controls at least as extreme + 1) / (m + 1)      two-sided: twice the smaller side
recovered = effect / (mean target − mean before), the share of a gap that the change closes
"""

from typing import Any

import numpy as np
from jaxtyping import Float

from rim_lens.stats import Interval, bootstrap, bootstrap_mean, empirical_p, paired_difference, percentile
from rim_lens.stats.controls import Alternative


def set_effect(
    before: Float[np.ndarray, "prompt"],
    after: Float[np.ndarray, "prompt"],
    controls: Float[np.ndarray, "set prompt"],
    *,
    is_share: bool,
    alternative: Alternative = "two-sided",
    seed: int = 0,
) -> dict[str, Any]:
    """Effect with its 95 % interval over prompts, and percentile and p among the controls (NaN without controls).

    Shares (values 0 and 1) get Tango's interval of a paired difference, scores a BCa bootstrap over prompts.
    """
    effect = float((after - before).mean())
    low, high = _interval(before, after, is_share, seed)
    null = (controls - before).mean(axis=1)
    place = {"control_mean": np.nan, "control_low": np.nan, "control_high": np.nan, "percentile": np.nan, "p": np.nan}
    if len(null):
        bounds = np.quantile(null, (0.025, 0.975))
        place = {
            "control_mean": float(null.mean()),
            "control_low": float(bounds[0]),
            "control_high": float(bounds[1]),
            "percentile": float(percentile(effect, null)),
            "p": float(empirical_p(effect, null, alternative)),
        }
    return {
        "n": len(before),
        "alternative": alternative,
        "before": float(before.mean()),
        "after": float(after.mean()),
        "effect": effect,
        "low": low,
        "high": high,
        "n_controls": len(null),
        **place,
    }


def alternative_for(measure: str, refusal: Alternative) -> Alternative:
    """The alternative of one measure, where `refusal` was expected to fall ("less") or to return ("greater").

    Compliance with harmful requests is expected to move the other way; nothing is expected of costs.
    """
    if refusal == "two-sided" or not measure.endswith("harmful"):
        return "two-sided"
    if measure.startswith("complied"):
        return "greater" if refusal == "less" else "less"
    return "two-sided" if measure.startswith(("partial", "incoherent", "unjudged")) else refusal


def _interval(
    before: Float[np.ndarray, "prompt"], after: Float[np.ndarray, "prompt"], is_share: bool, seed: int
) -> Interval:
    if is_share:
        return paired_difference(after.astype(bool), before.astype(bool)).interval
    return bootstrap_mean(after - before, seed=seed)


def recovered_share(
    before: Float[np.ndarray, "prompt"],
    after: Float[np.ndarray, "prompt"],
    target: Float[np.ndarray, "prompt"],
    seed: int = 0,
) -> tuple[float, Interval]:
    """Share of the gap between `before` and `target` closed by the change, with a percentile interval over prompts.

    The interval is wide, or spans everything, where the gap itself is not clearly different from 0.
    """

    def share(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> float:
        gap = float((c - a).mean())
        return float((b - a).mean()) / gap if gap else float("nan")

    interval = bootstrap(share, before, after, target, n_resamples=1000, seed=seed, method="percentile")
    return share(before, after, target), interval
