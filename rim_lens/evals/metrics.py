"""Rates with their 95 % intervals as Inspect's metrics.

Wilson's interval for one answer per prompt. Where prompts are asked several times (wordings of a prefilled CoT, epochs)
answers are not independent trials: the interval is then the bootstrap's over prompts and wordings, as in `measure_rim`.
"""

from collections import defaultdict
from collections.abc import Sequence
from math import nan

from inspect_ai.scorer import CORRECT, Metric, SampleScore, Value, metric

from rim_lens.behavior.judge import LABELS


@metric(scores="unreduced")
def label_rates() -> Metric:
    """Rates of each label (refused, partial, complied, incoherent, unjudged), each with its interval, and n."""

    def compute(scores: list[SampleScore]) -> Value:
        return {name: value for label in LABELS for name, value in rate(label, scores, label).items()} | counted(scores)

    return compute


@metric(scores="unreduced")
def solved_rate() -> Metric:
    """Share of problems solved, with its interval, and n."""

    def compute(scores: list[SampleScore]) -> Value:
        return rate("solved", scores, CORRECT) | counted(scores)

    return compute


def rate(name: str, scores: Sequence[SampleScore], value: str) -> dict[str, float]:
    """Share of answers with this value, and the ends of its 95 % interval; NaN where there are none."""
    hits = [score.score.value == value for score in scores]
    low, high = interval(scores, hits)
    return {name: sum(hits) / len(hits) if hits else nan, f"{name}_low": low, f"{name}_high": high}


def counted(scores: Sequence[SampleScore]) -> dict[str, float]:
    """How many answers were judged, to how many prompts."""
    return {"n": len(scores), "n_prompts": len({cell_of(score)[0] for score in scores})}


def interval(scores: Sequence[SampleScore], hits: Sequence[bool]) -> tuple[float, float]:
    """The 95 % interval of the share of hits."""
    import numpy as np

    from rim_lens.stats import bootstrap_crossed, wilson

    cells: dict[tuple[str, int], list[bool]] = defaultdict(list)
    for one, hit in zip(scores, hits, strict=True):
        cells[cell_of(one)].append(hit)
    prompts, wordings = (list(dict.fromkeys(cell[axis] for cell in cells)) for axis in (0, 1))
    if len(wordings) <= 1 and all(len(answers) == 1 for answers in cells.values()):
        low, high = wilson(sum(hits), len(hits))
        return low, high
    if len(prompts) < 2:
        return nan, nan  # one prompt says nothing about others
    table = np.full((len(prompts), len(wordings)), nan)
    for (prompt, wording), answers in cells.items():
        table[prompts.index(prompt), wordings.index(wording)] = np.mean(answers)
    low, high = bootstrap_crossed(table).interval
    return low, high


def cell_of(score: SampleScore) -> tuple[str, int]:
    """Which prompt was asked, with which wording (-1: none)."""
    about = score.sample_metadata or {}
    return str(about.get("prompt_id", score.sample_id)), int(about.get("wording", -1))
