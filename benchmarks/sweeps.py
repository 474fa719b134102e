"""Ablation of every head on a prompt of about 50 tokens: against a loop of TransformerLens `run_with_hooks`.

The loop costs the same for every head, so each turn times a share of the heads, another one each turn, and scales up.
What bounds the sweeps: matrix products. A run resumed at layer l needs the layers behind it, half of a pass on average,
and no unembedding but the last one; the loop's remaining cost is its own eager attention, hooks and small matrices.
"""

from collections.abc import Iterator
from statistics import median

import numpy as np
import torch

from benchmarks.figures import Figure, Setting, benchmark, median_ratio, seconds
from benchmarks.prompts import REQUEST
from rim_lens.behavior.refusal_score import log_odds, refusal_tokens
from rim_lens.chat.chat import Chat
from rim_lens.inference_time.sweep import AblationSweep, ablation_sweep
from rim_lens.model.lens_model import LensModel

SHARE = 10  # a turn of the loop does every tenth head
LIMITS = {"exact": 4.0, "suffix": 12.0, "screened": 25.0}


class Loop:
    """TransformerLens' own way, head by head."""

    def __init__(self, model: LensModel, chat: Chat) -> None:
        self.bridge, self.ids = model.bridge, refusal_tokens(model).ids
        self.tokens = torch.from_numpy(chat.token_ids)[None]
        self.clean = self.score([])

    def score(self, hooks: list) -> float:
        """Refusal score with hooks."""
        with torch.no_grad():
            logits = self.bridge.run_with_hooks(self.tokens, return_type="logits", fwd_hooks=hooks)
        return log_odds(logits[:, -1], self.ids).item()

    def effect(self, layer: int, head: int, first: int = 0) -> float:
        """Effect of zeroing a head from column `first` on."""

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
    loop = Loop(model, chat)
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
    found = set(done["screened"].ranked(10)) & set(done["exact"].ranked(10))
    yield Figure(
        "screened sweep, found of the true top 10",
        len(found),
        "heads",
        1,
        at_least=9,
        detail=f"{len(done['screened'].table)} heads measured exactly",
    )
