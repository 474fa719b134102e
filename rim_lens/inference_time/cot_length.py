"""Attention by segment over the length of the chain of thought: what a longer CoT takes attention from.

    mass[S](t) = mean over the chats whose CoT has about t tokens of a head's span attention to S, or of the mean over
    heads

Chats are put into bins of their CoT's length, each bin with about as many chats; where there are few distinct lengths
(given CoTs cut to size), each length is a bin of its own. Intervals are BCa bootstraps over the chats of a bin. Mass
must grow with length for a head that attends evenly; lift (mass over the segment's share of the keys) does not.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from rim_lens.errors import RimLensError
from rim_lens.inference_time.span_attention import SpanAttention
from rim_lens.results import Result
from rim_lens.stats import bootstrap_means
from rim_lens.units import AnyHead, Head

FEWEST = 3  # chats in a bin


@dataclass(frozen=True, eq=False)
class AttentionByLength(Result):
    """Attention to each segment by the number of CoT tokens before the query.

    `table`: one row per segment and bin: `cot_low`, `cot_high` and `cot_tokens` (fewest, most and mean tokens of the
    CoT), `mass` and `lift` with 95 % intervals, `n` chats. `head`: which head, or that it is the mean over all.
    """

    figure: ClassVar = "attention:length_curve"

    table: pd.DataFrame
    head: str
    queries: str

    def caption(self) -> str:
        """Head, queries, n."""
        n = int(self.table.groupby("cot_tokens")["n"].max().sum())
        return f"{self.head}; queries: {self.queries} position; n = {n} chats in bins of their CoT's length."


def attention_by_length(
    spans: SpanAttention, head: AnyHead | None = None, *, n_bins: int = 4, seed: int = 0
) -> AttentionByLength:
    """Span attention to every segment, by length of the CoT.

    Args:
        spans: of chats with CoTs of different lengths; chats without a CoT are left out.
        head: (layer, head); None takes the mean over all heads.
        n_bins: bins of about as many chats each.
        seed: of the bootstrap.

    Raises:
        RimLensError: an unknown head, CoTs that are all of one length, or fewer than 3 chats in a bin.
    """
    n_layers, n_heads = spans.mass.shape[1:3]
    head = None if head is None else Head.parse(head)
    if head is not None and not (0 <= head[0] < n_layers and 0 <= head[1] < n_heads):
        raise RimLensError(f"There is no head {head}; the attention is of {n_layers} layers of {n_heads} heads.")
    tokens = spans.n_keys[:, spans.segments.index("cot")]
    with_cot = tokens > 0
    bins = _bins(tokens[with_cot], n_bins)
    chosen = {name: _of_head(getattr(spans, name), head)[with_cot] for name in ("mass", "lift")}
    rows = []
    for number in range(bins.max() + 1):
        inside = bins == number
        length = tokens[with_cot][inside]
        about = {
            "cot_low": length.min(),
            "cot_high": length.max(),
            "cot_tokens": length.mean(),
            "n": int(inside.sum()),
        }
        measured = {
            name: (values[inside], bootstrap_means(values[inside], seed=seed)) for name, values in chosen.items()
        }
        for i, segment in enumerate(spans.segments):
            if not (spans.n_keys[with_cot][inside, i] > 0).all():
                continue  # a segment that some of the chats lack has no mean over them
            row: dict[str, object] = {"segment": segment, **about}
            for name, (values, ends) in measured.items():
                row |= {name: values[:, i].mean(), f"{name}_low": ends.low[i], f"{name}_high": ends.high[i]}
            rows.append(row)
    name = "mean over all heads" if head is None else str(head)
    return AttentionByLength(pd.DataFrame(rows), name, spans.queries, manifest=spans.manifest)


def _of_head(
    values: Float[np.ndarray, "prompt layer head segment"], head: Head | None
) -> Float[np.ndarray, "prompt segment"]:
    values = np.asarray(values, dtype=np.float64)
    return values.mean(axis=(1, 2)) if head is None else values[:, head[0], head[1]]


def _bins(tokens: Float[np.ndarray, "chat"], n_bins: int) -> Int[np.ndarray, "chat"]:
    """The bin of every chat, numbered from the shortest CoT."""
    lengths = np.unique(tokens)
    if len(lengths) < 2 or n_bins < 2:
        raise RimLensError("Attention by CoT length needs chats whose CoTs differ in length, and at least 2 bins.")
    edges = lengths if len(lengths) <= n_bins else np.unique(np.quantile(tokens, np.arange(n_bins) / n_bins))
    bins = np.searchsorted(edges, tokens, side="right") - 1
    if np.bincount(bins).min() < FEWEST:
        raise RimLensError(
            f"A bin of CoT length has fewer than {FEWEST} chats ({len(tokens)} chats in all); use more chats or "
            "fewer bins."
        )
    return bins
