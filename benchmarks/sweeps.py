"""Ablation of every head on a prompt of about 50 tokens: against a loop of TransformerLens `run_with_hooks`.

The loop costs the same for every head, so each turn times a share of the heads, another one each turn, and scales up.
What bounds the sweeps: matrix products. A run resumed at layer l needs the layers behind it, half of a pass on average,
and no unembedding but the last one; the loop's remaining cost is its own eager attention, hooks and small matrices.
"""

from collections.abc import Iterator
from statistics import mean, median

import numpy as np
import torch

from benchmarks.figures import Figure, Setting, benchmark, median_ratio, seconds
from benchmarks.prompts import REQUEST
from rim_lens.behavior.refusal_score import log_odds, refusal_score, refusal_tokens
from rim_lens.causal.ablation_test import ablation_test
from rim_lens.causal.run_scores import score_runs
from rim_lens.chat.chat import Chat
from rim_lens.data.prompts import load_prompts
from rim_lens.inference_time.sweep import AblationSweep, ablation_sweep
from rim_lens.intervene import ablate_heads
from rim_lens.model.lens_model import LensModel
from rim_lens.units import Head

SHARE = 10  # a turn of the loop does every tenth head
LIMITS = {"exact": 4.0, "suffix": 12.0, "screened": 30.0}
N_PROMPTS, N_SCREENED = 16, 10


class Loop:
    """TransformerLens' own way, head by head."""

    def __init__(self, model: LensModel, chats: list[Chat]) -> None:
        self.bridge, self.ids = model.bridge, refusal_tokens(model).ids
        self.tokens = torch.from_numpy(np.stack([chat.token_ids for chat in chats]))
        self.clean = self.score([])

    def score(self, hooks: list) -> np.ndarray:
        """Refusal score of every prompt with hooks."""
        with torch.no_grad():
            logits = self.bridge.run_with_hooks(self.tokens, return_type="logits", fwd_hooks=hooks)
        return log_odds(logits[:, -1], self.ids).numpy()

    def effect(self, layer: int, head: int, first: int = 0) -> float:
        """Effect on the only prompt."""
        return float(self.effects(layer, head, first)[0])

    def effects(self, layer: int, head: int, first: int = 0) -> np.ndarray:
        """Effect of zeroing a head from column `first` on, in every prompt."""

        def zero(z: torch.Tensor, hook: object) -> torch.Tensor:
            z[:, first:, head] = 0
            return z

        return self.score([(f"blocks.{layer}.attn.hook_z", zero)]) - self.clean


@benchmark
def sweeps(setting: Setting) -> Iterator[Figure]:
    """Time of the three sweeps, their scores, and what screening finds."""
    model = setting.model
    chat = model.render(REQUEST)[0]
    tag = int(np.flatnonzero(chat.where("assistant_tag"))[0])
    loop = Loop(model, [chat])
    heads = [(layer, head) for layer in range(model.n_layers) for head in range(model.n_heads)]
    ways = {
        "exact": {},
        "suffix": {"positions": "suffix"},
        "screened": {"method": "screened"},
    }
    done: dict[str, AblationSweep] = {}
    taken: dict[str, list[float]] = {name: [] for name in (*ways, "loop")}
    error = {"exact": 0.0, "suffix": 0.0}

    def run(name: str) -> None:
        done[name] = ablation_sweep(model, [chat], **ways[name])  # type: ignore[arg-type]

    run("screened")  # unmeasured: everything is loaded
    for turn in range(setting.pairs):
        some = heads[turn % SHARE :: SHARE]
        by_hand: dict[tuple[int, int], float] = {}
        taken["loop"].append(
            seconds(lambda s=some, b=by_hand: b.update({one: loop.effect(*one) for one in s})) * len(heads) / len(some)
        )
        for name in ways:
            taken[name].append(seconds(lambda n=name: run(n)))
        worst = max(abs(done["exact"].effect[0][one] - value) for one, value in by_hand.items())
        error["exact"] = max(error["exact"], float(worst))
        one = some[len(some) // 2]
        worst = abs(done["suffix"].effect[0][one] - loop.effect(*one, first=tag))
        error["suffix"] = max(error["suffix"], float(worst))

    for name, limit in LIMITS.items():
        yield Figure(
            f"loop of run_with_hooks / {name} sweep, {len(chat)} tokens",
            median_ratio(taken["loop"], taken[name]),
            "times faster",
            setting.pairs,
            at_least=limit,
            detail=f"{median(taken['loop']):.1f} s / {median(taken[name]):.1f} s, {len(chat) - tag} suffix tokens",
        )
    for name, value in error.items():
        yield Figure(f"{name} sweep, largest difference of scores", value, "nats", setting.pairs, at_most=1e-4)
    found = []
    for prompt in near(model, len(chat), N_SCREENED):
        exact, screened = (ablation_sweep(model, [prompt], method=method) for method in ("exact", "screened"))
        found.append(len(set(screened.ranked(10)) & set(exact.ranked(10))))
    yield Figure(
        "screened sweep, found of the true top 10, mean over prompts",
        mean(found),
        "heads",
        len(found),
        at_least=9,
        detail=f"{min(found)} to {max(found)}; {len(done['screened'].table)} heads measured exactly",
    )


def near(model: LensModel, length: int, n: int) -> list[Chat]:
    """Harmful requests whose chats are nearest to a length."""
    return sorted(model.render(load_prompts("harmful").texts), key=lambda one: abs(len(one) - length))[:n]


@benchmark
def sweep_of_prompts(setting: Setting) -> Iterator[Figure]:
    """Heads zeroed in many prompts at once, against a loop that takes the prompts as one batch.

    What bounds it: the tokens that differ between prompts, in the layers above the head; the tokens that all prompts
    begin with are computed once per head. By count of multiplications the loop does 4.6 times the work.
    """
    model, score = setting.model, refusal_tokens(setting.model).score
    chats = near(model, 50, 4 * N_PROMPTS)
    chats = [one for one in chats if len(one) == len(chats[0])][:N_PROMPTS]  # the loop has no mask
    loop = Loop(model, chats)
    every = [(layer, head) for layer in range(model.n_layers) for head in range(model.n_heads)]
    ratios, worst = [], 0.0
    score_runs(model, chats, [[every[0]]], score)
    for turn in range(setting.pairs):
        some, by_hand = every[turn % SHARE :: SHARE], []
        slow = seconds(lambda some=some, by_hand=by_hand: by_hand.extend(loop.effects(*one) for one in some))
        runs = []
        fast = seconds(
            lambda some=some, runs=runs: runs.append(score_runs(model, chats, [[one] for one in some], score))
        )
        ratios.append(slow / fast)
        worst = max(worst, float(np.abs(np.array(by_hand).T - runs[0].effect).max()))
    yield Figure(
        f"loop of run_with_hooks / exact sweep, {len(chats)} prompts of {len(chats[0])} tokens",
        median(ratios),
        "times faster",
        setting.pairs,
        at_least=7,
        detail=f"a tenth of the heads per pair, largest difference of scores {worst:.1g} nats",
    )


@benchmark
def ablation_at_decision(setting: Setting) -> Iterator[Figure]:
    """`ablation_test` of eight heads at the decision position with 100 control sets, against whole passes."""
    model, tokens = setting.model, refusal_tokens(setting.model)
    texts = load_prompts("harmful").sample(2 * N_PROMPTS, seed=0).texts
    heads = [Head(layer, layer % model.n_heads) for layer in range(3, model.n_layers, 4)]
    chats, ratios = model.render(texts), []
    for _ in range(setting.pairs):
        fast = seconds(
            lambda: ablation_test(model, heads, texts, positions="decision", n_controls=100, generated=False)
        )

        def whole() -> None:
            with ablate_heads(model, heads, positions="decision"):
                refusal_score(model, chats, tokens)

        ratios.append(fast / (101 * seconds(whole)))
    yield Figure(
        f"ablation_test at the decision position, 100 control sets, {len(texts)} prompts / 101 whole passes",
        median(ratios),
        "ratio",
        setting.pairs,
        at_most=0.25,
    )
