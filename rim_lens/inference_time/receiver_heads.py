"""Receiver heads: heads whose attention goes to few sentences of a CoT from many later ones.

1. m[q, k] = attention of sentence q's tokens to sentence k per key token, for k at least `gap` sentences before q, over
   its mean in the row.
2. Position is taken out: m[q, k] over the head's mean at that distance q − k, over all CoTs.
3. received[k] = mean over q; the head's score is the excess kurtosis of `received` over sentences, averaged over CoTs.
4. p: rows' entries shuffled among their sentences, each row on its own: a head that looks at few sentences, but not at
   the same ones from everywhere, is not a receiver. Benjamini-Hochberg q over all heads.

Source: Bogdan et al. 2025, "Thought Anchors" (kurtosis of vertical attention scores); distance is controlled for here,
since attention to the near past or to the beginning gives kurtosis by itself (`kurtosis_uncontrolled`).

It describes attention and does not find what carries refusal: of the 15 heads that `inference-known` was trained in it
has none among its first 15 (docs/trust.md).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from rim_lens.capture.attention import attention_rows
from rim_lens.chat.chat import Chat
from rim_lens.errors import RimLensError
from rim_lens.inference_time.cot_sentences import cot_sentences
from rim_lens.model.as_chats import answered_chats
from rim_lens.model.lens_model import LensModel
from rim_lens.model.requests import Prompts
from rim_lens.progress import track
from rim_lens.results import Manifest, Result
from rim_lens.stats import benjamini_hochberg, bootstrap_means
from rim_lens.units import Head

LEAST_RECEIVING = 4  # sentences with later ones, for a kurtosis
EVEN = 1e-10  # variance of what sentences receive, relative to its mean, that is rounding


@dataclass(frozen=True, eq=False)
class ReceiverHeads(Result):
    """How unevenly each head's attention is received by the sentences of CoTs.

    `table`: one row per head with `kurtosis` (distance controlled for), its 95 % interval over `n` CoTs,
    `kurtosis_uncontrolled`, permutation `p` and Benjamini-Hochberg `q`; largest kurtosis first. `left_out`: CoTs with
    too few sentences.
    """

    figure: ClassVar = "cot:receiver_map"

    table: pd.DataFrame
    gap: int
    n_sentences: int
    left_out: int

    def ranked(self, k: int | None = None) -> list[Head]:
        """The k heads of largest kurtosis."""
        return Head.from_table(self.table.head(len(self.table) if k is None else k))

    def caption(self) -> str:
        """On how many CoTs and sentences."""
        return (
            f"n = {self.table['n'].iloc[0]} CoTs, {self.n_sentences} sentences, read from at least {self.gap} "
            f"sentences later; {self.left_out} CoTs with too few sentences left out."
        )


def receiver_heads(
    model: LensModel, chats: Prompts, *, gap: int = 2, n_permutations: int = 500, seed: int = 0
) -> ReceiverHeads:
    """Score every head by how unevenly the sentences of CoTs receive its attention.

    Args:
        model: the model.
        chats: chats with a closed CoT, as for `cot_importance`; those with fewer than `gap` + 4 sentences are left out.
        gap: how many sentences later a query must be, at least 1.
        n_permutations: shuffles of the test.
        seed: of shuffles and bootstraps.

    Raises:
        RimLensError: no chat with enough sentences, or a gap below 1.

    """
    if gap < 1:
        raise RimLensError(f"gap counts sentences between a query and what it looks at, at least 1, got {gap}.")
    chats = answered_chats(chats, "The chats of receiver_heads")
    rows = [sentence_attention(model, chat) for chat in track(chats, "attention between sentences")]
    usable = [relative(row, gap) for row in rows if row.shape[-1] >= gap + LEAST_RECEIVING]
    if not usable:
        raise RimLensError(
            f"No CoT has {gap + LEAST_RECEIVING} sentences or more, which gap={gap} needs: pass longer ones or "
            "lower it."
        )
    even = without_distance(usable, gap)
    kurtosis = np.stack([received_kurtosis(one, gap) for one in even])
    raw = np.stack([received_kurtosis(one, gap) for one in usable])
    extreme, rng = np.ones(kurtosis.shape[1]), np.random.default_rng(seed)
    for _ in range(n_permutations):
        null = np.mean([received_kurtosis(shuffled(one, gap, rng), gap) for one in even], axis=0)
        extreme += null >= kurtosis.mean(axis=0)
    p = extreme / (n_permutations + 1)
    low, high = bootstrap_means(kurtosis, seed=seed)
    layer, head = np.indices((model.n_layers, model.n_heads)).reshape(2, -1)
    there = np.isfinite(kurtosis).all(axis=0)  # layers without attention have none
    table = pd.DataFrame(
        {
            "layer": layer,
            "head": head,
            "name": [str(Head(int(a), int(b))) for a, b in zip(layer, head, strict=True)],
            "n": len(kurtosis),
            "kurtosis": kurtosis.mean(axis=0),
            "low": low,
            "high": high,
            "kurtosis_uncontrolled": raw.mean(axis=0),
            "p": p,
        }
    )[there]
    table["q"] = benjamini_hochberg(table["p"].to_numpy())
    return ReceiverHeads(
        table=table.sort_values("kurtosis", ascending=False, kind="stable").reset_index(drop=True),
        gap=gap,
        n_sentences=sum(one.shape[-1] for one in usable),
        left_out=len(chats) - len(usable),
        manifest=Manifest.collect(model, seed=seed, n_permutations=n_permutations),
    )


def sentence_attention(model: LensModel, chat: Chat) -> Float[np.ndarray, "head query key"]:
    """Mean attention from each sentence's tokens to each token of another one; heads of all layers in a row."""
    sentences = cot_sentences(model, chat)
    (rows,) = attention_rows(model, [chat], "cot")
    first = sentences[0].start
    starts = [sentence.start for sentence in sentences]
    lengths = np.array([sentence.stop - sentence.start for sentence in sentences])
    flat = rows.flatten(0, 1).numpy().astype(np.float64)[:, :, : sentences[-1].stop]
    of_keys = np.add.reduceat(flat, starts, axis=2) / lengths
    return np.add.reduceat(of_keys, np.array(starts) - first, axis=1) / lengths[:, None]


def eligible(n: int, gap: int) -> Bool[np.ndarray, "query key"]:
    """True where a query sentence is at least `gap` behind the key sentence."""
    return np.tri(n, k=-gap, dtype=bool)


def relative(attention: Float[np.ndarray, "head query key"], gap: int) -> Float[np.ndarray, "head query key"]:
    """Each row over its mean over eligible sentences; NaN elsewhere."""
    there = eligible(attention.shape[-1], gap)
    values = np.where(there, attention, np.nan)
    mean = np.full(values.shape[:2], np.nan)
    mean[:, gap:] = np.nanmean(values[:, gap:], axis=2)
    return values / np.where(mean > 0, mean, np.nan)[..., None]


def without_distance(
    relative_rows: Sequence[Float[np.ndarray, "head query key"]], gap: int
) -> list[Float[np.ndarray, "head query key"]]:
    """Each entry over the head's mean at that distance, over all CoTs."""
    longest = max(row.shape[-1] for row in relative_rows)
    mean = np.ones((relative_rows[0].shape[0], longest))
    for distance in range(gap, longest):
        at = [np.diagonal(row, -distance, 1, 2) for row in relative_rows if row.shape[-1] > distance]
        mean[:, distance] = np.concatenate(at, axis=1).mean(axis=1)
    return [row / np.where(mean > 0, mean, np.nan)[:, distances(row.shape[-1])] for row in relative_rows]


def distances(n: int) -> Int[np.ndarray, "query key"]:
    """How many sentences lie between query and key; 0 for later keys."""
    place = np.arange(n)
    return np.maximum(place[:, None] - place, 0)


def received_kurtosis(attention: Float[np.ndarray, "head query key"], gap: int) -> Float[np.ndarray, " head"]:
    """Excess kurtosis over sentences of what each of them receives on average; 0 where all receive the same."""
    received = np.nanmean(attention[:, gap:, :-gap], axis=1)
    centred = received - received.mean(axis=1, keepdims=True)
    square, fourth = (centred**2).mean(axis=1), (centred**4).mean(axis=1)
    uneven = square > EVEN
    return np.where(uneven | np.isnan(square), fourth / np.where(uneven, square, 1.0) ** 2 - 3, 0.0)


def shuffled(
    attention: Float[np.ndarray, "head query key"], gap: int, rng: np.random.Generator
) -> Float[np.ndarray, "head query key"]:
    """Every row's eligible entries in another order, the same for all heads."""
    n = attention.shape[-1]
    order = np.tile(np.arange(n), (n, 1))
    for query in range(gap, n):
        order[query, : query - gap + 1] = rng.permutation(query - gap + 1)
    return np.take_along_axis(attention, order[None], axis=2)
