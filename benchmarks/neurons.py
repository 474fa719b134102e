"""Neuron moments against the plain SDPA forward of the same batches and TransformerLens, and by number of prompts.

What bounds the time: the forward pass. A neuron's moments take four reductions over its activations, which were just
written and are read block by block while they are in the processor's cache; about 3 % of a layer's matrix products.
`run_with_cache` runs TransformerLens' own forward with eager attention and keeps every activation until the pass ends;
on short prompts, where attention is cheap for both, it is nearer to the plain forward, so that figure is shown and the
limit is kept on the longer ones.

What bounds the memory: one layer's neurons of one batch, whatever the number of prompts; a prompt adds its mask, its
indices and its number of tokens. The growth from 64 to 1024 prompts is held to 1 MB, a kilobyte a prompt; keeping the
activations of even these short prompts would add 700 MB. Tensors are counted allocation by allocation, arrays and
Python's objects by tracemalloc.
"""

import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from statistics import median

import torch

from benchmarks.figures import Figure, Setting, benchmark, in_turn, median_ratio
from benchmarks.memory import peak_bytes
from benchmarks.prompts import REQUEST, chat_of
from rim_lens.capture.neurons import neuron_activations
from rim_lens.chat.chat import Chat
from rim_lens.model.lens_model import LensModel

MEGABYTE = 1 << 20
BATCH = 16
SHAPES = ((16, 64), (4, 512))  # prompts, tokens
FEW, MANY, SHORT = 64, 1024, 4  # prompts; tokens of each


def plain_passes(model: LensModel, chats: Sequence[Chat], batch_size: int = BATCH) -> None:
    """The model's own forward pass with SDPA attention and the last logits only, batch by batch."""
    with torch.no_grad():
        for _, batch in model.batches(chats, batch_size):
            inputs = model.hf_inputs(batch.mask, batch.positions)
            model.hf(batch.tokens, **inputs, use_cache=False, logits_to_keep=1)


def moments(model: LensModel, chats: Sequence[Chat]) -> None:
    """Moments over all tokens, nothing kept per prompt."""
    neuron_activations(model, chats, "all", batch_size=BATCH, progress=False)


def cached_posts(model: LensModel, chats: Sequence[Chat]) -> None:
    """The same mean, mean of squares, mean |a| and firing rate by TransformerLens, from cached `mlp.hook_post`."""
    with torch.no_grad():
        for _, batch in model.batches(chats, BATCH):
            _, cache = model.bridge.run_with_cache(
                batch.tokens, attention_mask=batch.mask.long(), names_filter=lambda name: name.endswith("mlp.hook_post")
            )
            for layer in range(model.n_layers):
                post = cache["post", layer][batch.mask]
                _ = post.mean(0), post.square().mean(0), post.abs().mean(0), (post > 0).float().mean(0)


def last_tokens(chat: Chat, n: int) -> Chat:
    """The last tokens of a chat as a chat of its own."""
    return replace(
        chat, token_ids=chat.token_ids[-n:], segment_ids=chat.segment_ids[-n:], decision_position=n - 1, n_rendered=n
    )


def peak_of_all(action: Callable[[], None]) -> int:
    """Peak of tensors plus peak of everything else made in a call."""
    tracemalloc.start()
    try:
        tensors = peak_bytes(action)
        return tensors + tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@benchmark
def neuron_moments_time(setting: Setting) -> Iterator[Figure]:
    """Ratio to the plain forward and to `run_with_cache` at two shapes."""
    model = setting.model
    for rows, length in SHAPES:
        chats = [chat_of(model, length, seed) for seed in range(rows)]
        plain, ours, cached = in_turn(
            [partial(way, model, chats) for way in (plain_passes, moments, cached_posts)], setting.pairs
        )
        yield Figure(
            f"neuron moments / plain forward, {rows} x {length} tokens",
            median_ratio(ours, plain),
            "ratio",
            setting.pairs,
            at_most=1.08,
            detail=f"{median(ours):.2f} s / {median(plain):.2f} s",
        )
        yield Figure(
            f"run_with_cache on mlp.hook_post / neuron moments, {rows} x {length} tokens",
            median_ratio(cached, ours),
            "times faster",
            setting.pairs,
            at_least=1.4 if (rows, length) == SHAPES[-1] else None,
            detail=f"{median(cached):.2f} s / {median(ours):.2f} s",
        )


@benchmark
def neuron_moments_memory(setting: Setting) -> Iterator[Figure]:
    """Peak with few and with many prompts of one length, so that batches are of one shape."""
    model = setting.model
    chat = last_tokens(model.render(REQUEST)[0], SHORT)
    moments(model, [chat] * BATCH)  # unmeasured: everything is loaded
    peak = {n: peak_of_all(lambda n=n: moments(model, [chat] * n)) / MEGABYTE for n in (FEW, MANY)}
    yield Figure(
        f"neuron moments, growth of peak memory from {FEW} to {MANY} prompts",
        peak[MANY] - peak[FEW],
        "MB",
        1,
        at_most=1.0,
        detail=f"{peak[FEW]:.1f} MB and {peak[MANY]:.1f} MB, {len(chat)} tokens per prompt",
    )
