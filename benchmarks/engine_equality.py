"""What vLLM answers and measures beside what transformers does: the same weights, float32, greedy."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np

from benchmarks.figures import Figure
from rim_lens.behavior.generate import Generation, generate
from rim_lens.behavior.refusal_score import refusal_score
from rim_lens.capture.neurons import neuron_activations
from rim_lens.inference_time.span_attention import span_attention
from rim_lens.intervene.heads import ablate_heads
from rim_lens.intervene.neurons import ablate_neurons
from rim_lens.model.lens_model import LensModel

HEADS = [(3, 1), (5, 0), (12, 4), (20, 8)]
NEURONS = [(4, 7), (9, 100), (21, 1500)]
# heads and neurons ablated
CHANGES: dict[str, tuple[list[Any], list[Any]]] = {
    "whole": ([], []),
    "heads ablated": (HEADS, []),
    "neurons ablated": ([], NEURONS),
    "heads and neurons ablated": (HEADS, NEURONS),
}
READ = 16  # prompts that attention and neurons are read on
CLOSE = 1e-4

Shown = tuple[list[int], list[int]]


def shown(one: Generation) -> Shown:
    """The tokens of the prompt with its CoT, and of the answer."""
    return one.chat.token_ids.tolist(), list(one.response_ids)


def answers(model: LensModel, prompts: Sequence[str], heads: Any, neurons: Any, **options: Any) -> list[Shown]:
    """Greedy answers with a CoT of the model's own; heads and neurons once for all rows, or a list of them per row."""
    with ExitStack() as stack:
        if heads:
            stack.enter_context(ablate_heads(model, heads))
        if neurons:
            stack.enter_context(ablate_neurons(model, neurons))
        found = generate(model, prompts, thinking="on", temperature=0, progress=False, **options)
    return [shown(one) for one in found]


def largest(a: Any, b: Any) -> float:
    """Largest difference of two arrays, in units of the second one's largest value where that is above 1."""
    a, b = np.asarray(a), np.asarray(b)
    return float(np.abs(a - b).max() / max(1.0, np.abs(b).max()))


def equal(name: str, a: Sequence[Shown], b: Sequence[Shown]) -> Figure:
    """How many of the answers are the same, token for token."""
    same = sum(one == other for one, other in zip(a, b, strict=True))
    return Figure(f"equal answers: {name}", same, "answers", len(b), at_least=len(b))


def equality(engine: LensModel, here: LensModel, prompts: Sequence[str], **options: Any) -> Iterator[Figure]:
    """Answers one change after the other, all changes in one batch, and prompts alone; then what passes read."""
    expected = {name: answers(here, prompts, *units, **options) for name, units in CHANGES.items()}
    for name, units in CHANGES.items():
        yield equal(name, answers(engine, prompts, *units, **options), expected[name])
    mixed = answers(
        engine,
        [prompt for _ in CHANGES for prompt in prompts],
        [heads for heads, _ in CHANGES.values() for _ in prompts],
        [neurons for _, neurons in CHANGES.values() for _ in prompts],
        **options,
    )
    yield equal("the four in one batch", mixed, [one for name in CHANGES for one in expected[name]])
    alone = [answers(engine, [prompt], HEADS, NEURONS, **options)[0] for prompt in prompts]
    yield equal("each prompt alone, heads and neurons ablated", alone, expected["heads and neurons ablated"])
    for what, difference, n in readings(engine, here, prompts):
        yield Figure(f"largest difference: {what}", difference, "", n, at_most=CLOSE)
    yield Figure("hooks left in the engine", sum(engine.engine.call("lens_hooks")), "hooks", 1, at_most=0)  # type: ignore


def readings(engine: LensModel, here: LensModel, prompts: Sequence[str]) -> Iterator[tuple[str, float, int]]:
    """Largest difference between what passes of both read, and between prompts alone and in a batch."""
    for name, (heads, neurons) in CHANGES.items():
        scores = []
        for model in (engine, here):
            with ExitStack() as stack:
                stack.enter_context(ablate_heads(model, heads))
                stack.enter_context(ablate_neurons(model, neurons))
                scores.append(refusal_score(model, prompts))
        yield f"refusal score in nats, {name}", largest(*scores), len(prompts)
    alone = [float(refusal_score(engine, [prompt])[0]) for prompt in prompts[:READ]]
    together = refusal_score(engine, prompts)[:READ]
    yield "refusal score, prompts alone and together", largest(alone, together), len(alone)
    some = here.render(prompts[:READ], thinking="prefilled", cot="I think about it.")
    reads: dict[str, Callable[[LensModel, Any], Any]] = {
        "attention mass of segments": lambda model, chats: span_attention(model, chats).mass,
        "neurons' means": lambda model, chats: neuron_activations(model, chats, "all", progress=False).mean,
        "neurons' variances": lambda model, chats: neuron_activations(model, chats, "all", progress=False).variance,
    }
    for name, read in reads.items():
        yield name, largest(read(engine, some), read(here, some)), len(some)
    masses = [span_attention(engine, [chat]).mass[0] for chat in some]
    yield "attention mass, prompts alone and together", largest(masses, span_attention(engine, some).mass), len(some)
