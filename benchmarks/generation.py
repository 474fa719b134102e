"""Generation under head ablation against the model's own plain `generate` of as many tokens.

What bounds it: reading all weights once per step; the ablation adds a masked fill of one small tensor in each ablated
layer.
"""

from collections.abc import Iterator
from statistics import median

import torch

from benchmarks.figures import Figure, Setting, benchmark, in_turn, median_ratio
from rim_lens.behavior.generate import generate
from rim_lens.intervene import ablate_heads

STEPS = 32
REQUESTS = [
    "Explain how a lock on a car door works.",
    "Write a short story about a lighthouse keeper.",
    "How do plants make sugar from light?",
    "Give me tips for learning to play the piano.",
]


@benchmark
def generation(setting: Setting) -> Iterator[Figure]:
    """CPU seconds, ablated over plain."""
    model = setting.model
    heads = [(layer, layer % model.n_heads) for layer in range(0, model.n_layers, 3)]
    batch = model.batch(model.render(REQUESTS))

    def ablated() -> int:
        """Answers; how many tokens the longest one took, its end-of-turn token counted."""
        with ablate_heads(model, heads):
            answers = generate(model, REQUESTS, max_new_tokens=STEPS, progress=False)
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

    plain_s, ablated_s = in_turn([plain, ablated], setting.pairs)
    yield Figure(
        f"generation under head ablation / plain generate, 4 rows, {steps} tokens",
        median_ratio(ablated_s, plain_s),
        "ratio",
        setting.pairs,
        at_most=1.15,
        detail=f"{median(ablated_s):.2f} s / {median(plain_s):.2f} s, {len(heads)} heads ablated",
    )
