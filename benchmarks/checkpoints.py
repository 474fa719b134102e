"""A series of adapters: neuron moments at every checkpoint against as many plain forward passes, and one swap.

What bounds the series: the forward passes. What a checkpoint adds is its swap (below), the fingerprint of the changed
parameters, and the reductions of `neurons`. What bounds a swap: memory. Every changed weight is read from the kept
base, the product of two thin matrices is added, and it is written in place; then sha256 reads it once, so that what is
measured next is recorded with the fingerprint of the weights it was measured on. The first swap also copies the base
weights; it is shown.
"""

from collections.abc import Iterator
from pathlib import Path
from statistics import median

from benchmarks.figures import Figure, Setting, benchmark, in_turn, median_ratio, seconds
from benchmarks.neurons import moments, plain_passes
from rim_lens.data.prompts import load_prompts
from rim_lens.model.swap import swap_of
from rim_lens.training_time.checkpoints import Checkpoints

SERIES = Path(__file__).parents[1] / "assets" / "organism"
N_ADAPTERS, N_PROMPTS = 8, 96


@benchmark
def swap(setting: Setting) -> Iterator[Figure]:
    """Seconds from one adapter to the next, in turn, with the new fingerprint."""
    model, series = setting.model, Checkpoints.from_folder(SERIES)
    stored = [series.weights(model, item) for item in series if item.source is not None]
    first = seconds(lambda: swap_of(model).put(stored[0]))
    _ = model.fingerprint
    writing, hashing = [], []
    try:
        for turn in range(2 * setting.pairs):
            writing.append(seconds(lambda t=turn: swap_of(model).put(stored[(t + 1) % len(stored)])))
            hashing.append(seconds(lambda: model.fingerprint))
    finally:
        swap_of(model).put(None)
    yield Figure(
        "swap to another adapter and its fingerprint",
        median(a + b for a, b in zip(writing, hashing, strict=True)),
        "s",
        len(writing),
        at_most=0.5,
        detail=f"weights {median(writing):.2f} s, fingerprint {median(hashing):.2f} s; the first swap {first:.2f} s",
    )


@benchmark
def checkpoint_series(setting: Setting) -> Iterator[Figure]:
    """Moments at eight adapters over 96 prompts, swaps in and out included, against eight plain forward passes."""
    model, series = setting.model, Checkpoints.from_folder(SERIES)
    adapters = [item.name for item in series if item.source is not None][-N_ADAPTERS:]
    some = Checkpoints([series[name] for name in adapters], base=series.base, reference=adapters[0])
    some.check(model)
    texts = [prompt.text for prompt in load_prompts("harmful")]
    chats = model.render([texts[i % len(texts)] for i in range(N_PROMPTS)])

    def plain() -> None:
        for _ in range(len(some)):
            plain_passes(model, chats)

    def measured() -> None:
        for _, shown in some.loaded(model):
            moments(shown, chats)

    plain_s, ours = in_turn([plain, measured], setting.pairs, warm_up=False)
    yield Figure(
        f"neuron moments at {len(some)} adapters / {len(some)} plain forwards, {N_PROMPTS} prompts",
        median_ratio(ours, plain_s),
        "ratio",
        setting.pairs,
        at_most=1.15,
        detail=f"{median(ours):.1f} s / {median(plain_s):.1f} s, {sum(map(len, chats))} tokens",
    )
