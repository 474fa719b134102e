"""What `measure_series` computes against what it needs, and how quickly the package starts.

A checkpoint needs every prompt once. Counted are the tokens of all passes over more than one column, padding left out;
one column at a time is decoding. The right answers to problems are needed too, each token once.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from benchmarks.figures import Figure, Setting, benchmark
from rim_lens.data.prompts import load_prompts
from rim_lens.training_time.checkpoints import Checkpoints
from rim_lens.training_time.series_measurement import measure_series
from rim_lens.training_time.series_problems import right_answer

ROOT = Path(__file__).parents[1]
N_PROMPTS, NEURONS, HEADS = 8, [(3, 7), (12, 100), (20, 9)], [(12, 3), (20, 5)]


@benchmark
def series_passes(setting: Setting) -> Iterator[Figure]:
    """Tokens of one `measure_series` with everything asked, at two checkpoints, over those that it needs."""
    model = setting.model
    series = Checkpoints.from_folder(ROOT / "assets" / "organism").only(["aligned", "effort-36"])
    harmful, maths = (load_prompts(name).sample(N_PROMPTS, seed=0) for name in ("harmful", "maths"))
    computed = 0

    def count(module: object, args: tuple, kwargs: dict) -> None:
        nonlocal computed
        tokens = kwargs.get("input_ids", args[0] if args else None)
        if tokens.shape[1] > 1:
            batch = model.active_batch
            inside = tokens.numel() if batch is None else int(batch.mask[: len(tokens), -tokens.shape[1] :].sum())
            computed += min(tokens.numel(), inside)

    handle = model.hf.base_model.register_forward_pre_hook(count, with_kwargs=True)
    try:
        measure_series(
            model, series, harmful, maths, neurons=NEURONS, heads=HEADS, answers=True, solve=True, max_new_tokens=8,
            maths_tokens=4, cot_budget=4,
        )  # fmt: skip
    finally:
        handle.remove()
    worked = all(problem.rationale for problem in maths)
    asked = [*model.render(harmful.texts), *(right_answer(model, one, worked) for one in maths)]
    if not worked:  # then the neurons are read on the problems alone
        asked += model.render(maths.texts, thinking="on")
    needed = len(series) * sum(map(len, asked))
    yield Figure(
        "measure_series with everything asked, tokens of its passes / tokens of its prompts",
        computed / needed,
        "ratio",
        len(series),
        at_most=1.1,
        detail=f"{computed} / {needed} tokens",
    )


@benchmark
def start(setting: Setting) -> Iterator[Figure]:
    """CPU seconds of `import rim_lens` beyond the interpreter's own, and of `rim-lens --help`."""
    bare = cpu_seconds(["-c", "pass"], setting.pairs)
    yield Figure(
        "import rim_lens", cpu_seconds(["-c", "import rim_lens"], setting.pairs) - bare, "s", setting.pairs, at_most=0.1
    )
    whole = cpu_seconds(["-m", "rim_lens.cli", "--help"], setting.pairs)
    yield Figure("rim-lens --help", whole, "s", setting.pairs, at_most=0.4)


def cpu_seconds(arguments: list[str], times: int) -> float:
    """Median of the CPU seconds that the interpreter takes with these arguments."""
    taken = []
    for _ in range(times):
        before = os.times()
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True, cwd=ROOT)
        after = os.times()
        taken.append(after.children_user + after.children_system - before.children_user - before.children_system)
    return median(taken)
