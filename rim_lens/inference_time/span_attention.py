"""Span attention: how much each head looks at each segment (design 3.1).

    mass = mean_q Σ_{k in segment} pattern[q, k]          in [0, 1]; segments sum to 1
    lift = mass / (|segment| / |keys|)                     1 where the segment gets what its length would give it

q runs over the query positions, the decision position by default; keys are the tokens up to each query. With an
attention sink segments sum to less than 1. In sliding-window layers keys outside the window count as keys, with mass 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import ClassVar

import numpy as np
import pandas as pd
from jaxtyping import Float

from rim_lens.capture.attention import segment_masses
from rim_lens.chat.chat import Chat
from rim_lens.chat.positions import Positions, positions_in, words_of
from rim_lens.chat.segments import SEGMENTS
from rim_lens.model.as_chats import as_chats
from rim_lens.model.lens_model import LensModel
from rim_lens.model.requests import Prompts
from rim_lens.model.taps import Backend
from rim_lens.results import Manifest, Result


@dataclass(frozen=True, eq=False)
class SpanAttention(Result):
    """Attention mass and lift of every head on every segment, prompt by prompt."""

    figure: ClassVar = "attention:segment_map"

    mass: Float[np.ndarray, "prompt layer head segment"]
    lift: Float[np.ndarray, "prompt layer head segment"]  # NaN for empty segments
    n_keys: Float[np.ndarray, "prompt segment"]  # keys of the segment that a query may attend to, mean over queries
    requests: list[str]
    thinking: list[str]
    queries: str
    segments: tuple[str, ...] = SEGMENTS

    def segment(self, name: str, of: str = "mass") -> Float[np.ndarray, "prompt layer head"]:
        """`mass` or `lift` on one segment."""
        return {"mass": self.mass, "lift": self.lift}[of][..., self.segments.index(name)]

    def to_dataframe(self) -> pd.DataFrame:
        """One row per layer, head and segment: mean and standard deviation over the n prompts with the segment."""
        present = self.n_keys > 0
        index = pd.MultiIndex.from_product(
            [range(self.mass.shape[1]), range(self.mass.shape[2]), self.segments], names=["layer", "head", "segment"]
        )
        columns = {
            f"{name}_{statistic}": _over_present(values, present, statistic).reshape(-1)
            for name, values in (("mass", self.mass), ("lift", self.lift))
            for statistic in ("mean", "sd")
        }
        count = np.broadcast_to(present.sum(axis=0), self.mass.shape[1:]).reshape(-1)
        return pd.DataFrame({**columns, "n": count}, index=index).reset_index()


def span_attention(
    model: LensModel,
    chats: Prompts,
    queries: Positions = "decision",
    *,
    batch_size: int = 8,
    backend: Backend = "auto",
) -> SpanAttention:
    """Attention mass and lift of every head on every segment of every chat.

    Args:
        model: the model.
        chats: rendered chats.
        queries: "decision"; offsets from it, `(-2, -1, 0)`; a segment ("response": mean over its tokens); "last cot".
        batch_size: chats in one pass.
        backend: how the pass is read; "auto" takes the fast way where there is one.

    Raises:
        RimLensError: an unknown segment, an offset outside a chat, or attention that cannot be read.

    """
    chats = as_chats(model, chats)
    start = perf_counter()
    mass = segment_masses(model, chats, queries, batch_size=batch_size, backend=backend).numpy()
    keys, share = _keys_seen(chats, queries)
    with np.errstate(invalid="ignore", divide="ignore"):
        lift = np.where(share > 0, 1.0 / share, np.nan)[:, None, None].astype(np.float32) * mass
    return SpanAttention(
        mass=mass,
        lift=lift,
        n_keys=keys,
        requests=[chat.request for chat in chats],
        thinking=[chat.thinking for chat in chats],
        queries=words_of(queries),
        manifest=Manifest.collect(model, seconds={"span_attention": perf_counter() - start}),
    )


def _keys_seen(
    chats: Sequence[Chat], queries: Positions
) -> tuple[Float[np.ndarray, "prompt segment"], Float[np.ndarray, "prompt segment"]]:
    """Mean over queries of the segment's keys up to the query: their number, and their share of all keys up to it."""
    n_keys = np.zeros((len(chats), len(SEGMENTS)))
    share = np.zeros_like(n_keys)
    for i, chat in enumerate(chats):
        where = positions_in(chat, queries)
        if len(where):
            member = chat.segment_ids[:, None] == np.arange(len(SEGMENTS))
            counts = member.cumsum(axis=0)[where]
            n_keys[i] = counts.mean(axis=0)
            share[i] = (counts / (where + 1)[:, None]).mean(axis=0)
    return n_keys, share


def _over_present(
    values: Float[np.ndarray, "prompt layer head segment"], present: np.ndarray, statistic: str
) -> Float[np.ndarray, "layer head segment"]:
    """Mean or sample standard deviation over the prompts that have the segment; NaN with too few of them."""
    visible = np.where(present[:, None, None], values, np.nan).astype(np.float64)
    count = np.isfinite(visible).sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.nansum(visible, axis=0) / np.where(count > 0, count, np.nan)
        if statistic == "mean":
            return mean
        return np.sqrt(np.nansum((visible - mean) ** 2, axis=0) / np.where(count > 1, count - 1, np.nan))
