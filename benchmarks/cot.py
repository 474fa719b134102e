"""Importance of each sentence of a CoT: what a sentence costs beyond the first pass, in passes of the whole chat.

Hidden from what follows the CoT (the default, early answering included) a sentence costs the close tag's tokens. Hidden
from all that is later it costs the tokens behind it, which no prefix can share.
"""

from collections.abc import Iterator
from statistics import median

import torch

from benchmarks.figures import Figure, Setting, benchmark, in_turn
from benchmarks.prompts import REQUEST
from rim_lens.inference_time.cot_importance import cot_importance

SENTENCE = "The lock turns a small lever that moves a rod inside the door. "
N_SENTENCES = 12
LIMIT = 0.2


@benchmark
def cot(setting: Setting) -> Iterator[Figure]:
    """Cost per sentence, and scores against a whole pass each."""
    model = setting.model
    chats = model.render([REQUEST], thinking="prefilled", cot=(SENTENCE * N_SENTENCES).strip())
    batch = model.batch(chats)

    def whole() -> None:
        with torch.no_grad():
            model.decision_logits(batch)

    actions = [whole, *(lambda q=queries: cot_importance(model, chats, queries=q) for queries in ("answer", "later"))]
    passes, *runs = in_turn(actions, setting.pairs)
    for name, taken in zip(("what follows the CoT", "all that is later"), runs, strict=True):
        costs = [(run - one) / one / N_SENTENCES for run, one in zip(taken, passes, strict=True)]
        yield Figure(
            f"a sentence hidden from {name}, {N_SENTENCES} sentences, {len(chats[0])} tokens",
            median(costs),
            "forward passes per sentence",
            setting.pairs,
            at_most=LIMIT if name == "what follows the CoT" else None,
            detail=f"{median(taken):.2f} s, one pass {median(passes):.2f} s",
        )
