"""Methods that look for heads by paths and directions, scored like those of `benchmarks.trust.methods`.

Total effect: what zeroing a head does to the difference of logits; self-repair: |total − direct effect|. Path patching
to the logits: a head is zeroed, all other heads and all MLPs are frozen. Each head costs passes of its own, so that
only the heads with the largest direct attribution are tried, twice as many as were trained. Receiver heads: kurtosis of
the attention that sentences receive, in CoTs of eight sentences put together from the wordings. Refusal direction: what
a head writes along it, requests about food minus harmless ones.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from benchmarks.trust.methods import N_REPORT, Found, N, ordered, scored
from rim_lens import (
    direct_attribution,
    load_prompts,
    organisms,
    path_patching,
    receiver_heads,
    refusal_direction,
    self_repair,
)
from rim_lens.capture.activations import head_outputs
from rim_lens.chat.chat import Chat
from rim_lens.inference_time.write_vectors import write_vectors
from rim_lens.organisms import Organism
from rim_lens.units import Head

N_PATHS, N_SENTENCES, GAP = 4, 8, 2
SHARES = (0.5, 0.25, 0.25)


def long_cots(organism: Organism, numbers: Sequence[int]) -> list[Chat]:
    """One chat per request, its CoT put together from the first halves of the wordings of all kinds."""
    rng = np.random.default_rng(0)
    pool = [wording.text for kind in organism.wordings.values() for wording in kind[::2]]
    return [
        organism.model.render(
            [organism.prompts[number]], thinking="prefilled", cot=" ".join(rng.choice(pool, N_SENTENCES, replace=False))
        )[0]
        for number in numbers
    ]


def rankings(organism: Organism, numbers: Sequence[int]) -> Iterator[tuple[str, int, list[Head]]]:
    """Heads in the order in which each method would name them, and from how many requests."""
    model, requests = organism.model, [organism.prompts[number].text for number in numbers]
    off = model.render(requests, thinking="off")
    receivers = receiver_heads(model, long_cots(organism, numbers), gap=GAP, n_permutations=19)  # p is not read
    yield "receiver heads, distance controlled for", len(numbers), receivers.ranked()
    uncontrolled = receivers.table.sort_values("kurtosis_uncontrolled", ascending=False, kind="stable")
    yield "receiver heads, without the control", len(numbers), Head.from_table(uncontrolled)
    attribution = direct_attribution(model, off)
    repair = self_repair(model, off, attribution, n_permutations=200).table
    for name, column in (("total effect, thinking off", "total"), ("self-repair, thinking off", "response")):
        largest = repair.iloc[np.argsort(-repair[column].abs().to_numpy(), kind="stable")]
        yield name, len(off), Head.from_table(largest)
    first = attribution.ranked(2 * len(organism.truth))
    paths = [path_patching(model, [head], (), off[:N_PATHS]).table.set_index("path") for head in first]
    largest = np.argsort([-abs(table.loc["direct", "effect"]) for table in paths], kind="stable")
    yield "path patching to the logits, thinking off", N_PATHS, [first[i] for i in largest]
    harmless = load_prompts("harmless", n=len(off), seed=0).texts
    direction = refusal_direction(model, requests, harmless, shares=SHARES, n_controls=1)
    along = write_vectors(model, direction.vector)
    food, other = (
        head_outputs(model, some)[:, :, 0].mul(along).sum(-1).mean(0).numpy()
        for some in (off, model.render(harmless, thinking="off"))
    )
    yield "writes the refusal direction, thinking off", len(off), ordered(food - other)


def path_methods(name: str) -> list[Found]:
    """Every such method on one organism, on the requests of `methods`."""
    organism = organisms.load(name)
    order = np.random.default_rng(0).permutation(len(organism.prompts)).tolist()
    return scored(organism, order[:N_REPORT], list(rankings(organism, order[N_REPORT : N_REPORT + N])))
