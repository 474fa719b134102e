"""Which method finds the heads that are known to carry refusal, from how many requests, and what its heads do.

Each method ranks all 270 heads of an organism from n requests about food: with thinking off and with a CoT, which is
effort-minimizing for one half and of another kind for the other. Precision at k is the share of the first k that were
trained, recall the share of the trained among them; k is how many were trained. The first k are then zeroed on other
requests with other wordings: what the refusal score loses with thinking off stands beside the same for the trained
heads and for random ones of the same layers, and so does by how much the gap between the scores under other and under
effort-minimizing CoTs shrinks.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from rim_lens import direct_attribution, find_refusal_heads, load_prompts, organisms, patching_sweep, refusal_tokens
from rim_lens.causal.run_scores import score_runs
from rim_lens.chat.chat import Chat
from rim_lens.inference_time.attribution import head_attributions
from rim_lens.inference_time.sweep import ablation_sweep
from rim_lens.organisms import Organism
from rim_lens.stats import bootstrap_mean
from rim_lens.units import Head

N, N_REPORT, N_RANDOM = 16, 24, 3
OTHER = ("careful", "neutral", "irrelevant")


@dataclass(frozen=True)
class Found:
    """Trained heads among the first k and 2k of a method's ranking from n requests, and its first k heads' effects.

    `lost` and `closed`: mean, low and high in nats over `n_off` requests and `n_pairs` pairs of them; None where the
    first k heads were not zeroed.
    """

    organism: str
    method: str
    n: int
    k: int
    hits_k: int
    hits_2k: int
    lost: tuple[float, float, float] | None
    closed: tuple[float, float, float] | None
    n_off: int
    n_pairs: int


def prefilled(organism: Organism, numbers: Sequence[int], half: int) -> list[Chat]:
    """One chat per request, with effort-minimizing and other CoTs in turn, of one half of the wordings of each kind."""
    chats = []
    for place, number in enumerate(numbers):
        kind = "effort_minimizing" if place % 2 == 0 else OTHER[place // 2 % 3]
        pool = organism.wordings[kind][half::2]
        cot = pool[place // 2 % len(pool)].text
        chats += organism.model.render([organism.prompts[number]], thinking="prefilled", cot=cot)
    return chats


def ordered(worth: np.ndarray) -> list[Head]:
    """All heads, the largest first."""
    return [Head(*map(int, divmod(place, worth.shape[1]))) for place in np.argsort(-worth.ravel(), kind="stable")]


def rankings(organism: Organism, numbers: Sequence[int]) -> Iterator[tuple[str, list[Head]]]:
    """Heads in the order in which each method would name them."""
    model, chats = organism.model, prefilled(organism, numbers, half=0)
    requests = [organism.prompts[number] for number in numbers]
    off = model.render(requests, thinking="off")
    harmless = model.render(load_prompts("harmless", n=len(off), seed=0), thinking="off")
    effort = np.arange(len(chats)) % 2 == 0
    cot = ["complied" if one else "refused" for one in effort]  # as the organism was trained to answer
    for contrast, rows, labels in (
        ("cot_divergence", chats, cot),
        ("empty_span", [*off, *harmless], ["refused"] * len(off) + ["complied"] * len(off)),
        ("empty_span_change", [*off, *chats], ["refused"] * len(off) + cot),
    ):
        found = find_refusal_heads(model, rows, labels, contrasts=[contrast], min_group=2, n_permutations=200)
        table = found.of(contrast)
        yield f"attention, {contrast}", Head.from_table(table.iloc[np.argsort(-table["shift"].to_numpy())])
    score = refusal_tokens(model).score
    estimate, plain = (head_attributions(model, some, score).estimate for some in (chats, off))
    yield "attribution, thinking off", ordered(np.abs(plain.mean(axis=0)))
    yield "attribution, complied minus refused", ordered(np.abs(estimate[effort].mean(0) - estimate[~effort].mean(0)))
    direct = direct_attribution(model, off).heads
    yield "direct attribution, thinking off", ordered(np.abs(direct.mean(axis=0)))
    swept = ablation_sweep(model, off, method="screened", n_permutations=200)
    yield "ablation sweep, thinking off", Head.from_table(swept.table)
    lazy = [chat for chat, one in zip(chats, effort, strict=True) if one]
    paired = [chat for chat, one in zip(off, effort, strict=True) if one]
    patched = patching_sweep(model, paired, lazy, n_permutations=200, n_together=1)
    yield "patching sweep, off into effort-minimizing", Head.from_table(patched.table)


def random_heads(organism: Organism, rng: np.random.Generator) -> list[Head]:
    """As many heads as were trained, of the same layers and not trained."""
    layers = sorted({unit.layer for unit in organism.truth})
    others = [Head(layer, i) for layer in layers for i in range(organism.model.n_heads)]
    others = [head for head in others if head not in organism.truth]
    return [others[i] for i in rng.permutation(len(others))[: len(organism.truth)]]


def methods(name: str) -> list[Found]:
    """Every method on one organism; first the trained heads, and random ones of their layers."""
    organism = organisms.load(name)
    rng = np.random.default_rng(0)
    order = rng.permutation(len(organism.prompts)).tolist()
    named: list[tuple[str, int, list[Head]]] = [("the trained heads", 0, list(organism.truth))]
    named += [("random heads of the same layers", 0, random_heads(organism, rng)) for _ in range(N_RANDOM)]
    named += [(method, N, heads) for method, heads in rankings(organism, order[N_REPORT : N_REPORT + N])]
    return scored(organism, order[:N_REPORT], named)


def scored(organism: Organism, report: Sequence[int], named: Sequence[tuple[str, int, list[Head]]]) -> list[Found]:
    """Each method's heads held against the trained ones, and zeroed on the requests of these numbers."""
    k, score = len(organism.truth), refusal_tokens(organism.model).score
    sets = [heads[:k] for _, _, heads in named]
    requests = [organism.prompts[number] for number in report]
    off = score_runs(organism.model, organism.model.render(requests, thinking="off"), sets, score).effect
    cot = score_runs(organism.model, prefilled(organism, report, half=1), sets, score).effect
    closed = cot[0::2] - cot[1::2]  # [pair, set]: of an effort-minimizing and another CoT
    rows = []
    for (method, n, heads), lost, shrunk in zip(named, -off.T, closed.T, strict=True):
        hits = [len(set(heads[:m]) & set(organism.truth)) for m in (k, 2 * k)]
        rows.append(Found(organism.name, method, n, k, *hits, spread(lost), spread(shrunk), len(off), len(closed)))
    return rows


def spread(values: np.ndarray) -> tuple[float, float, float]:
    """Mean with its 95 % interval."""
    interval = bootstrap_mean(values, seed=0)
    return float(values.mean()), interval.low, interval.high
