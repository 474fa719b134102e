"""Planted truth: how often each analyzer finds heads and neurons that were set by hand, and what it finds without any.

Precision at k: the share of the first k that were planted; recall at k: the share of the planted that are among them, k
being how many were planted. `false` counts findings that the method itself calls significant and that were not planted.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from benchmarks.trust.planted_models import use_tests

use_tests()

from planted import COT_HEAD, REFUSAL_HEAD, SECOND_HEAD, planted_model  # noqa: E402
from planted_neurons import planted_neurons, save_shift  # noqa: E402

from rim_lens.behavior.refusal_score import RefusalTokens, refusal_score  # noqa: E402
from rim_lens.capture.neurons import neuron_activations  # noqa: E402
from rim_lens.causal.ablation_test import ablation_test  # noqa: E402
from rim_lens.inference_time.interchange import interchange_sweep  # noqa: E402
from rim_lens.inference_time.patching import patching_sweep  # noqa: E402
from rim_lens.inference_time.probe import probe_refusal  # noqa: E402
from rim_lens.inference_time.refusal_heads import find_refusal_heads  # noqa: E402
from rim_lens.inference_time.sweep import ablation_sweep  # noqa: E402
from rim_lens.model.swap import swap_of  # noqa: E402
from rim_lens.training_time.counterfactuals import CounterfactualPairs  # noqa: E402
from rim_lens.training_time.ras import ras  # noqa: E402
from rim_lens.training_time.safety_neurons import find_safety_neurons  # noqa: E402

ALPHA, N_PROMPTS, FEW, N_CONTROLS = 0.05, 48, 12, 40
NOT_NULL = {REFUSAL_HEAD, SECOND_HEAD, COT_HEAD}


@dataclass(frozen=True)
class Recovery:
    """One analyzer on one family in one seed.

    Planted things found among the first k, and false findings of those possible.
    """

    analyzer: str
    family: str
    found: int
    k: int
    false: int
    possible: int


@dataclass(frozen=True, eq=False)
class Planted:
    """A planted model with its chats and what it answers in them."""

    seed: int
    family: str

    def __post_init__(self) -> None:
        model, truth = planted_model(self.seed, N_PROMPTS, family=self.family)
        tokens = RefusalTokens((truth.refusal_token,), ("Sorry",))
        off, on = (
            model.render(truth.harmful, thinking="off"),
            model.render(truth.harmful, thinking="prefilled", cot=truth.cots),
        )
        against = RefusalTokens((truth.comply_token,), ("Sure",))
        labels = [
            np.where(
                refusal_score(model, chats, tokens) > refusal_score(model, chats, against), "refused", "complied"
            ).tolist()
            for chats in (off, on)
        ]
        object.__setattr__(self, "parts", (model, truth, tokens, off, on, *labels))

    def shuffled(self, labels: Sequence[str]) -> list[str]:
        """The labels dealt out at random: nothing goes with them any more."""
        return [labels[i] for i in np.random.default_rng(self.seed).permutation(len(labels))]


def top(found: Sequence, planted: set) -> tuple[int, int]:
    """How many of the first k are planted, and k."""
    k = len(planted)
    return len(set(found[:k]) & planted), k


def attention(one: Planted) -> list[Recovery]:
    """find_refusal_heads with the model's answers and with answers dealt out at random."""
    model, _, _, off, on, off_labels, on_labels = one.parts
    rows, n_heads = [], model.n_layers * model.n_heads
    for name, chats, labels, head in (
        ("cot_divergence", on, on_labels, COT_HEAD),
        ("empty_span", off, off_labels, REFUSAL_HEAD),
    ):
        planted = {head} | ({SECOND_HEAD} if one.family == "redundant" and head == REFUSAL_HEAD else set())
        found = find_refusal_heads(model, chats, labels, contrasts=[name], min_group=3)
        others = set(found.candidates()) - {REFUSAL_HEAD, COT_HEAD, SECOND_HEAD}
        rows.append(
            Recovery(f"find_refusal_heads, {name}", one.family, *top(found.ranked(name), planted), len(others), n_heads)
        )
        null = find_refusal_heads(model, chats, one.shuffled(labels), contrasts=[name], min_group=3)
        rows.append(Recovery(f"find_refusal_heads, {name}", "shuffled answers", 0, 0, len(null.candidates()), n_heads))
    return rows


def sweeps(one: Planted) -> list[Recovery]:
    """Ablation, patching and interchange.

    A false finding is a head with q < 0.05 and a tenth of the planted heads' effect.
    """
    model, truth, tokens, off, on, *_ = one.parts
    n_heads = model.n_layers * model.n_heads
    both = {REFUSAL_HEAD, COT_HEAD}
    twins = model.render(truth.harmless[:FEW], thinking="off")
    ablated = ablation_sweep(model, on[:FEW], tokens)
    patched = patching_sweep(model, off[:FEW], on[:FEW], tokens)
    exchanged = interchange_sweep(model, off[:FEW], twins, tokens)
    rows = []
    for name, table, ranked, planted in (
        ("ablation_sweep", ablated.table, ablated.ranked(), both),
        ("patching_sweep", patched.table, patched.ranked(), both),
        (
            "interchange_sweep",
            exchanged.table[exchanged.table["direction"] == "into_harmful"],
            exchanged.ranked(),
            {REFUSAL_HEAD},
        ),
    ):
        heads = list(zip(table["layer"], table["head"], strict=True))
        size = dict(zip(heads, table["effect"].abs(), strict=True))
        least = 0.1 * min(size[head] for head in planted)
        false = [
            head
            for head, q in zip(heads, table["q"], strict=True)
            if head not in both and q < ALPHA and size[head] > least
        ]
        rows.append(Recovery(name, one.family, *top(ranked, planted), len(false), n_heads))
    return rows


def redundancy(one: Planted) -> list[Recovery]:
    """Two heads that cover for each other.

    One ablated shows next to nothing, both show all, and a sweep of pairs finds them.
    """
    model, truth, tokens, off, *_ = one.parts
    pair = {REFUSAL_HEAD, SECOND_HEAD}
    single = ablation_sweep(model, off[:FEW], tokens)
    twins = model.render(truth.harmless[:FEW], thinking="off")
    exchanged = interchange_sweep(model, off[:FEW], twins, tokens)
    zeroed = exchanged.pairs[exchanged.pairs["intervention"] == "zero"].iloc[0]
    names = {f"L{layer}H{head}" for layer, head in pair}
    grid = single.effect.mean(axis=0)
    joint = float(zeroed["effect_both"])
    silent = sum(int(abs(grid[head]) < 0.2 * abs(joint)) for head in pair)
    return [
        Recovery("ablation of one of the two shows < 20 % of both", "redundant", silent, 2, 0, 0),
        Recovery("interchange_sweep", "redundant", *top(exchanged.ranked(), pair), 0, 0),
        Recovery("largest interaction of pairs", "redundant", int({zeroed["a"], zeroed["b"]} == names), 1, 0, 0),
    ]


def causal(one: Planted) -> list[Recovery]:
    """ablation_test: the planted set, and random sets of as many heads, each against its own controls."""
    model, _, tokens, off, *_ = one.parts
    options = {"tokens": tokens, "generated": False, "n_controls": N_CONTROLS, "alternative": "less", "seed": one.seed}
    planted = [REFUSAL_HEAD, SECOND_HEAD] if one.family == "redundant" else [REFUSAL_HEAD]
    row = ablation_test(model, planted, off[:FEW], **options).table.iloc[0]
    # One of eight heads has 7 others in its layer, so that p cannot be below 1/8; two of one layer have 27 other pairs.
    found = row["p"] < ALPHA or row["p"] <= 1 / (row["n_controls"] + 1)
    rng, false, n_random = np.random.default_rng(one.seed), 0, 3
    free = [[h for h in range(model.n_heads) if (layer, h) not in NOT_NULL] for layer in range(model.n_layers)]
    for _ in range(n_random):
        heads = [(int(layer), int(rng.choice(free[layer]))) for layer in rng.choice(model.n_layers, 2, replace=False)]
        false += int(ablation_test(model, heads, off[:FEW], **options).table["p"].iloc[0] < ALPHA)
    counted = (int(found), 1) if one.family != "null" else (0, 0)
    return [Recovery("ablation_test, p < 0.05 or the smallest there is", one.family, *counted, false, n_random)]


def probe(one: Planted) -> list[Recovery]:
    """probe_refusal: AUROC above 0.9 with the layer chosen honestly, and cells with q < 0.05 for shuffled answers."""
    model, _, _, off, _, labels, _ = one.parts
    found = probe_refusal(model, off, labels, n_permutations=200, seed=one.seed)
    null = probe_refusal(model, off, one.shuffled(labels), n_permutations=200, seed=one.seed)
    return [
        Recovery("probe_refusal, AUROC > 0.9", one.family, int(found.selected["auroc"] > 0.9), 1, 0, 0),
        Recovery("probe_refusal", "shuffled answers", 0, 0, int((null.table["q"] < ALPHA).sum()), len(null.table)),
    ]


def neurons(seed: int) -> list[Recovery]:
    """find_safety_neurons with decoys in every group, its null, and RAS of planted and of random sets."""
    one = planted_neurons(seed)
    n_neurons, rows = one.model.n_layers * one.model.d_mlp, []
    found = find_safety_neurons(one.model, one.pairs, top=0.02, n_resamples=20, seed=seed)
    chosen = [tuple(row) for row in found.rows.tolist()]
    rows.append(
        Recovery(
            "find_safety_neurons",
            "decoys in each group",
            *top(chosen, one.neurons),
            len(set(chosen) - one.neurons),
            n_neurons,
        )
    )
    dealt = np.random.default_rng(seed).permutation(len(one.pairs.harmful))
    nothing = CounterfactualPairs(
        one.pairs.harmful,
        tuple(one.pairs.harmful[i] for i in dealt),
        tuple(f"g{i % 3}" for i in range(len(dealt))),
        "given",
        "user",
    )
    null = find_safety_neurons(one.model, nothing, top=0.02, n_resamples=20, seed=seed)
    rows.append(Recovery("find_safety_neurons", "pairs that differ in nothing", 0, 0, len(null), n_neurons))
    return rows + shifted_sets(one, seed)


def shifted_sets(one: object, seed: int) -> list[Recovery]:
    """RAS between two checkpoints, planted neurons having lost 40 % on safety and gained 50 % on the task."""
    rng = np.random.default_rng(seed)
    model = one.model
    with TemporaryDirectory() as place:
        save_shift(Path(place) / "after", one, 0.4, 0.5)
        swap = swap_of(model)
        sides = []
        for prompts in ([p.text for p in one.harmful], [p.text for p in one.task]):
            chats = model.render(prompts)
            before = neuron_activations(model, chats, "user", per_prompt=True, progress=False)
            swap.put(stored(model, Path(place) / "after"))
            after = neuron_activations(model, chats, "user", per_prompt=True, progress=False)
            swap.put(None)
            sides += [before, after]
    options = {"n_controls": 200, "n_resamples": 100, "seed": seed}
    p = ras(*sides, sorted(one.neurons), **options).p
    others = [(i, j) for i in range(model.n_layers) for j in range(model.d_mlp) if (i, j) not in one.neurons]
    false = 0
    for _ in range(5):
        drawn = [others[i] for i in rng.choice(len(others), len(one.neurons), replace=False)]
        false += int(ras(*sides, drawn, **options).p < ALPHA)
    return [Recovery("ras, p < 0.05", "shifted", int(p < ALPHA), 1, false, 5)]


def stored(model: object, folder: Path) -> object:
    """The stored weights of an adapter folder."""
    from rim_lens.model.adapter_weights import LoraWeights

    return LoraWeights(model.hf, folder)


HEAD_PARTS: dict[str, list[Callable[[Planted], list[Recovery]]]] = {
    "plain": [attention, sweeps, causal, probe],
    "redundant": [redundancy, causal],
    "null": [causal],
}


def recoveries(seeds: Sequence[int]) -> list[Recovery]:
    """Every analyzer on every family in every seed."""
    rows = []
    for seed in seeds:
        for family, parts in HEAD_PARTS.items():
            one = Planted(seed, family)
            for part in parts:
                rows += part(one)
        rows += neurons(seed)
    return rows
