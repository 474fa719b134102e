"""Span attention at the decision position, against the plain SDPA forward of the same batch and TransformerLens.

What bounds it: the forward pass itself. One softmax row per head costs a matrix-vector product per layer; the rest of
the difference is the check of segments and the copy of the rows.
"""

from collections.abc import Iterator, Sequence
from statistics import median

import torch

from benchmarks.figures import Figure, Setting, benchmark, in_turn, median_ratio
from benchmarks.memory import peak_bytes
from benchmarks.prompts import chat_of
from rim_lens.chat.chat import Chat
from rim_lens.inference_time.span_attention import span_attention
from rim_lens.model.lens_model import LensModel

MEGABYTE = 1 << 20
CURVE = (512, 1024, 2048)


def plain_forward(model: LensModel, chats: Sequence[Chat]) -> None:
    """The model's own forward pass with SDPA attention and the last logits only."""
    tokens = torch.stack([torch.from_numpy(chat.token_ids) for chat in chats])
    with torch.no_grad():
        model.hf(tokens, use_cache=False, logits_to_keep=1)


def cached_patterns(model: LensModel, chats: Sequence[Chat]) -> None:
    """The same rows by TransformerLens: all patterns kept, then the last row of each."""
    tokens = torch.stack([torch.from_numpy(chat.token_ids) for chat in chats])
    with torch.no_grad():
        _, cache = model.bridge.run_with_cache(tokens, names_filter=lambda name: name.endswith("attn.hook_pattern"))
        torch.stack([cache["pattern", layer][:, :, -1] for layer in range(model.n_layers)])


@benchmark
def span_attention_time(setting: Setting) -> Iterator[Figure]:
    """Ratio to the plain forward at three shapes, and to `run_with_cache` at 2048 tokens."""
    model = setting.model
    for rows, length in ((4, 512), (1, 2048), (1, 4096)):
        chats = [chat_of(model, length, seed) for seed in range(rows)]
        actions = [lambda c=chats: plain_forward(model, c), lambda c=chats: span_attention(model, c)]
        if length == 2048:
            actions.append(lambda c=chats: cached_patterns(model, c))
        plain, spans, *cached = in_turn(actions, setting.pairs)
        yield Figure(
            f"span attention / plain forward, {rows} x {length} tokens",
            median_ratio(spans, plain),
            "ratio",
            setting.pairs,
            at_most=1.08,
            detail=f"{median(spans):.2f} s / {median(plain):.2f} s",
        )
        if cached:
            yield Figure(
                "run_with_cache on patterns / span attention, 1 x 2048 tokens",
                median_ratio(cached[0], spans),
                "times faster",
                setting.pairs,
                at_least=3.0,
                detail=f"{median(cached[0]):.2f} s / {median(spans):.2f} s",
            )


@benchmark
def span_attention_memory(setting: Setting) -> Iterator[Figure]:
    """Peak of tensors beyond the plain forward's, over length."""
    model, extra = setting.model, {}
    for length in CURVE:
        chats = [chat_of(model, length)]
        plain = peak_bytes(lambda c=chats: plain_forward(model, c))
        extra[length] = (peak_bytes(lambda c=chats: span_attention(model, c)) - plain) / MEGABYTE
        limit = {"at_most": 64.0} if length == 2048 else {}
        yield Figure(
            f"span attention, extra peak memory at {length} tokens",
            extra[length],
            "MB",
            1,
            detail=f"plain forward {plain / MEGABYTE:.0f} MB",
            **limit,
        )
    short, _, long = CURVE
    growth = max(extra[long], 1.0) / max(extra[short], 1.0)
    yield Figure(
        f"span attention, growth of extra memory, {short} to {long} tokens",
        growth,
        "times",
        1,
        at_most=1.1 * long / short,
        detail=f"linear is {long / short:g}; less than 1 MB counts as 1 MB",
    )
