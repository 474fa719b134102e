"""The figures of `python -m benchmarks` on a CUDA device.

Run `python -m benchmarks.gpu [--model NAME]` or `make bench-gpu`.

Seconds are those of the device between two events around the work; memory is the allocator's peak. A first, unmeasured
call of every action loads kernels. Both sides of a ratio are measured in turn, and ratios are medians of pairs.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import torch
from rich.console import Console

from benchmarks.figures import Figure, median_ratio
from benchmarks.prompts import REQUEST, chat_of
from rim_lens.behavior.generate import generate
from rim_lens.capture.neurons import neuron_activations
from rim_lens.inference_time.span_attention import span_attention
from rim_lens.inference_time.sweep import ablation_sweep
from rim_lens.intervene import ablate_heads
from rim_lens.model.lens_model import LensModel
from rim_lens.model.load import load_model

MEGABYTE = 1 << 20
STEPS = 64


def device_seconds(action: Callable[[], Any]) -> float:
    """Seconds between an event before and an event after the action, everything that it started done."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    action()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1000


def in_turn(actions: list[Callable[[], Any]], times: int) -> list[list[float]]:
    """Seconds of each action, [action][time], every second turn backwards, after one unmeasured call of each."""
    for action in actions:
        action()
    taken: list[list[float]] = [[] for _ in actions]
    for turn in range(times):
        order = range(len(actions)) if turn % 2 == 0 else reversed(range(len(actions)))
        for i in order:
            taken[i].append(device_seconds(actions[i]))
    return taken


def peak_megabytes(action: Callable[[], Any]) -> float:
    """Peak of the allocator above what was held before."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    action()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / MEGABYTE


def reading(model: LensModel, pairs: int) -> Iterator[Figure]:
    """Span attention and neuron moments against the plain forward pass of the same batch."""
    for rows, length in ((8, 512), (2, 2048), (1, 4096)):
        chats = [chat_of(model, length, seed) for seed in range(rows)]
        tokens = model.batch(chats).tokens

        def plain(tokens: torch.Tensor = tokens) -> None:
            with torch.no_grad():
                model.hf(tokens, use_cache=False, logits_to_keep=1)

        actions = [
            plain,
            lambda c=chats: span_attention(model, c),
            lambda c=chats: neuron_activations(model, c, "user", progress=False),
        ]
        base, spans, neurons = in_turn(actions, pairs)
        for name, taken, limit in (("span attention", spans, 1.08), ("neuron moments", neurons, 1.25)):
            yield Figure(
                f"{name} / plain forward, {rows} x {length} tokens",
                median_ratio(taken, base),
                "ratio",
                pairs,
                at_most=limit,
                detail=f"{1000 * median(taken):.1f} ms / {1000 * median(base):.1f} ms",
            )
        extra = peak_megabytes(actions[1]) - peak_megabytes(plain)
        yield Figure(f"span attention, extra peak memory, {rows} x {length} tokens", extra, "MB", 1)


def sweeping(model: LensModel, pairs: int) -> Iterator[Figure]:
    """The exact sweep against whole passes, head by head."""
    chats = model.render([REQUEST])
    plain, exact = in_turn(
        [lambda: ablation_sweep(model, chats, method="plain"), lambda: ablation_sweep(model, chats)], max(1, pairs // 2)
    )
    yield Figure(
        "whole passes / exact sweep of all heads",
        median_ratio(plain, exact),
        "times faster",
        len(exact),
        at_least=2.0,
        detail=f"{median(plain):.2f} s / {median(exact):.2f} s",
    )


def answering(model: LensModel, pairs: int) -> Iterator[Figure]:
    """Generation under head ablation against `generate` of transformers, as many tokens."""
    requests = [f"{REQUEST} ({number})" for number in range(16)]
    heads = [(layer, layer % model.n_heads) for layer in range(0, model.n_layers, 3)]
    batch = model.batch(model.render(requests))

    def ablated() -> int:
        with ablate_heads(model, heads):
            answers = generate(model, requests, max_new_tokens=STEPS, progress=False)
        return max(len(one.response_ids) + (not one.truncated) for one in answers)

    steps = ablated()

    def plain() -> None:
        with torch.no_grad():
            model.hf.generate(
                batch.tokens,
                attention_mask=batch.mask.long(),
                max_new_tokens=steps,
                min_new_tokens=steps,
                do_sample=False,
                pad_token_id=model.pad_id,
            )

    base, changed = in_turn([plain, ablated], pairs)
    yield Figure(
        f"generation under head ablation / plain generate, {len(requests)} rows, {steps} tokens",
        median_ratio(changed, base),
        "ratio",
        pairs,
        at_most=1.15,
        detail=f"{median(changed):.2f} s / {median(base):.2f} s",
    )


def main() -> int:
    """Measure and print; 1 where a limit is not kept, 2 where there is no device."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--model", default="smollm2-135m-instruct", help="what to measure on")
    parser.add_argument("--dtype", default="bfloat16", help="weights' type (default bfloat16)")
    parser.add_argument("--pairs", type=int, default=5, help="pairs a ratio is the median of (default 5)")
    chosen = parser.parse_args()
    console = Console()
    if not torch.cuda.is_available():
        console.print("make bench-gpu needs a CUDA device; torch finds none here. `make bench` measures on the CPU.")
        return 2
    from benchmarks.__main__ import table_of

    model = load_model(chosen.model, device="cuda", dtype=chosen.dtype)
    console.print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {model}")
    figures = [one for part in (reading, sweeping, answering) for one in part(model, chosen.pairs)]
    console.print(table_of(figures))
    return 0 if all(one.holds for one in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
