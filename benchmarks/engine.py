"""vLLM beside transformers, in one process: `make bench-engine`, or `python -m benchmarks.engine`.

First the numbers of both, which should be equal (`engine_equality`), then seconds, the processor's on a CPU and those
of the clock on CUDA: both sides of a ratio in turn, medians of pairs. vLLM's cache of prompts is emptied before every
run, since no prompt is asked twice in a study. Numbers are compared on a CPU alone, in float32.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import torch
from rich.console import Console

from benchmarks.__main__ import table_of
from benchmarks.engine_equality import HEADS, equality
from benchmarks.figures import Clock, Figure, in_turn, median_ratio
from rim_lens.behavior.generate import generate
from rim_lens.causal.ablation_test import ablation_test
from rim_lens.data.prompts import load_prompts
from rim_lens.intervene.heads import ablate_heads
from rim_lens.model.lens_model import LensModel
from rim_lens.model.load import load_model

ROWS, TOKENS = 16, 48  # of plain and changed answers
SHARED = 0.4  # of a GPU's memory for vLLM, where transformers' model lies on it too


def fresh(engine: LensModel, action: Callable[[], Any]) -> Callable[[], Any]:
    """The action with no prompt in vLLM's cache."""

    def run() -> Any:
        engine.engine.llm.reset_prefix_cache()  # type: ignore[union-attr]
        return action()

    return run


def requests(n: int) -> list[str]:
    """Half harmful, half harmless."""
    return [text for name in ("harmful", "harmless") for text in load_prompts(name, n=n // 2).texts]


def interventions(engine: LensModel, here: LensModel, pairs: int, clock: Clock) -> Iterator[Figure]:
    """Answers under changes against plain answers; plain answers of transformers too."""
    prompts = requests(ROWS)
    options = {"max_new_tokens": TOKENS, "temperature": 0, "progress": False}

    def plain(model: LensModel = engine) -> None:
        generate(model, prompts, **options)

    def ablated(heads: Any) -> None:
        with ablate_heads(engine, heads):
            generate(engine, prompts, **options)

    spread = [(layer, layer % engine.n_heads) for layer in range(0, engine.n_layers, 3)]
    own = [[(layer, (layer + row) % engine.n_heads) for layer, _ in spread] for row in range(ROWS)]
    actions = [plain, lambda: ablated(spread), lambda: ablated(own), lambda: plain(here)]
    base, one_set, sets, there = in_turn([fresh(engine, one) for one in actions], pairs, clock=clock)
    for name, taken, limit in (
        (f"one set of {len(spread)} heads ablated / plain, in vLLM", one_set, 1.10),
        (f"a set of heads of its own for each of {ROWS} rows / plain, in vLLM", sets, 1.10),
        ("plain in transformers / plain in vLLM", there, None),
    ):
        yield Figure(
            f"{name}, {ROWS} x up to {TOKENS} tokens",
            median_ratio(taken, base),
            "ratio",
            pairs,
            at_most=limit,
            detail=f"{median(taken):.1f} s / {median(base):.1f} s",
        )


def causal_test(
    engine: LensModel, here: LensModel, sets: int, rows: int, tokens: int, clock: Clock
) -> Iterator[Figure]:
    """The generated test of heads, one pair."""
    prompts, options = load_prompts("harmful", n=rows).texts, {"max_new_tokens": tokens, "n_controls": 1}

    def test(model: LensModel) -> None:
        ablation_test(model, HEADS, prompts, n_generated_controls=sets - 1, **options)

    actions = [fresh(engine, lambda: test(engine)), lambda: test(here)]
    (there,), (mine,) = in_turn(actions, 1, warm_up=False, clock=clock)
    yield Figure(
        f"ablation_test in transformers / in vLLM, {sets} sets x {rows} prompts x up to {tokens} tokens",
        mine / there,
        "times faster",
        1,
        at_least=1.5,
        detail=f"{mine:.0f} s / {there:.0f} s",
    )


def rollouts(engine: LensModel, here: LensModel, rows: int, budget: int, clock: Clock) -> Iterator[Figure]:
    """Thoughts that end where the model ends them, one pair."""
    prompts = requests(rows)
    options = {"thinking": "on", "cot_budget": budget, "max_new_tokens": 8, "temperature": 0, "progress": False}
    cots: list[int] = []

    def run(model: LensModel) -> None:
        answers = generate(model, prompts, **options)
        cots[:] = [int(one.chat.where("cot").sum()) for one in answers]

    actions = [fresh(engine, lambda: run(engine)), lambda: run(here)]
    (there,), (mine,) = in_turn(actions, 1, warm_up=False, clock=clock)
    lengths = f"{rows} CoTs of {min(cots)} to {max(cots)} tokens (median {median(cots):g})"
    yield Figure(
        f"rollouts in transformers / in vLLM, {lengths}",
        mine / there,
        "times faster",
        1,
        at_least=1.5,
        detail=f"{mine:.0f} s / {there:.0f} s",
    )


def main() -> int:
    """Measure and print; 1 where a limit is not kept."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine", description=__doc__)
    parser.add_argument("--model", default="smollm2-135m-instruct", help="what to measure on")
    parser.add_argument("--parts", nargs="+", default=["equality", "interventions", "test", "rollouts"])
    parser.add_argument("--prompts", type=int, default=64, help="of the comparison of numbers (default 64)")
    parser.add_argument("--pairs", type=int, default=3, help="pairs a ratio is the median of (default 3)")
    parser.add_argument("--sets", type=int, default=20, help="sets of heads in the causal test (default 20)")
    parser.add_argument("--rows", type=int, default=32, help="prompts in the causal test and rollouts (default 32)")
    parser.add_argument("--tokens", type=int, default=64, help="longest answer in the causal test (default 64)")
    parser.add_argument("--budget", type=int, default=1024, help="longest CoT of the rollouts (default 1024)")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    on_cuda = torch.cuda.is_available()
    dtype, clock = ("bfloat16", time.perf_counter) if on_cuda else ("float32", time.process_time)
    options: dict[str, Any] = {"max_model_len": max(chosen.budget, 256) + 512}
    options |= {"gpu_memory_utilization": SHARED} if on_cuda else {}
    here = load_model(chosen.model, dtype=dtype)
    engine = load_model(chosen.model, engine="vllm", dtype=dtype, engine_options=options)
    console, figures = Console(), []
    console.print(f"{engine}, {here}, torch {torch.__version__}, {torch.cuda.get_device_name() if on_cuda else 'CPU'}")
    parts: dict[str, Callable[[], Iterator[Figure]]] = {
        "equality": lambda: equality(engine, here, requests(chosen.prompts), max_new_tokens=8, cot_budget=16),
        "interventions": lambda: interventions(engine, here, chosen.pairs, clock),
        "test": lambda: causal_test(engine, here, chosen.sets, chosen.rows, chosen.tokens, clock),
        "rollouts": lambda: rollouts(engine, here, chosen.rows, chosen.budget, clock),
    }
    if on_cuda:
        del parts["equality"]
    for name in [part for part in chosen.parts if part in parts]:
        for figure in parts[name]():
            figures.append(figure)
            console.print(f"{figure.name}: {figure.value:.4g} {figure.unit} of {figure.n}  [dim]{figure.detail}[/dim]")
    console.print(table_of(figures))
    return 0 if all(one.holds for one in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
