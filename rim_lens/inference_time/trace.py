"""Where along a CoT does the intent to refuse fall, and which heads write it there?

1. Every CoT token's residual stream is read on the probe's direction: (x · direction − middle) / spread, so that 0 lies
   midway between refused and complied chats and 1 is one standard deviation within them.
2. Cliff of a chat: the token k with the steepest fall, mean of the `window` tokens before k minus mean of those from k
   on.
3. Direct contribution of head (l, h) at a token: (z · W_O) · direction / spread; summed over heads and MLPs below the
   probe's layer, and the embedding, this is the reading itself. A head writes the cliff as far as its contribution
   falls across it.

The fall at the steepest place is positive in any wandering series, so it is set against the same fall on directions
that were fitted to permuted labels. For the same reason heads are not tested at each chat's own cliff, which is the
maximum of their sum: a place, counted from the start (as a share of the tokens) or from the end (in tokens), is chosen
on one half of the chats as the steepest of their mean, and heads are tested there on the other half, and the other way
round. Tokens are read from the first of the CoT to the decision position. Source of the term: "refusal cliff" (arXiv
2510.06036).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int

from rim_lens.behavior.judge import Judgement
from rim_lens.capture.activations import head_outputs, residuals
from rim_lens.chat.chat import Chat
from rim_lens.chat.segments import segment_id
from rim_lens.errors import RimLensError
from rim_lens.inference_time.contrast import pair_contrast
from rim_lens.inference_time.groups import groups_of, need_distinct_requests
from rim_lens.inference_time.probe import RefusalProbe
from rim_lens.inference_time.write_vectors import write_vectors
from rim_lens.model.as_chats import as_chats
from rim_lens.model.fitting import AtOnce
from rim_lens.model.lens_model import LensModel
from rim_lens.model.requests import Prompts
from rim_lens.progress import track
from rim_lens.results import Manifest, Result
from rim_lens.stats import bootstrap_means, empirical_p
from rim_lens.units import Head

READ = ("cot", "think_close")  # the decision position is the last token of the close tag
PARTS = 20  # places counted from the start


@dataclass(frozen=True, eq=False)
class RefusalTrace(Result):
    """The refusal direction along the CoT, the cliff, and the heads that write it.

    `table`: one row per head below the probe's layer, the head that writes most of the fall first: `fall` (mean fall of
    its contribution, in standard deviations, across the place that the other half of the chats chose) with its 95 %
    interval over chats, `share` of the whole fall there, `effect` (d_z), `p` (`stats.mean_test` over chats) and `q`
    over heads, n. `curve`: mean reading by relative position, with interval, the band of control directions (2.5 to
    97.5 %), and the means of refused and complied chats. `chats`: one row per chat: reading at `start` and `end`,
    `fall` and relative place of the `cliff` and its token. `tokens`: every reading. `fall`, `control_falls` and `p`:
    mean fall at the cliff against control directions. `left_out`: CoTs shorter than two windows.
    """

    figure: ClassVar = "probe:trace_curve"

    table: pd.DataFrame
    curve: pd.DataFrame
    chats: pd.DataFrame
    tokens: pd.DataFrame
    fall: float
    control_falls: Float[np.ndarray, "control"]
    p: float
    layer: int
    window: int
    left_out: int

    def caption(self) -> str:
        """Mean fall, where it is, n, and the place among control directions."""
        return (
            f"Layer {self.layer}, n = {len(self.chats)} CoTs ({self.left_out} too short): steepest fall "
            f"{self.fall:.2f} standard deviations at {100 * self.chats['cliff'].median():.0f} % of the CoT (median), "
            f"against {self.control_falls.mean():.2f} on {len(self.control_falls)} directions fitted to permuted "
            f"labels, p = {self.p:.2g}."
        )


def trace_refusal(
    model: LensModel,
    chats: Prompts,
    probe: RefusalProbe,
    *,
    judged: Sequence[Judgement | str] | None = None,
    window: int = 4,
    n_bins: int = 20,
    batch_size: int = 16,
    seed: int = 0,
) -> RefusalTrace:
    """Read every CoT token on the probe's direction.

    Args:
        model: the model that the probe was fitted on.
        chats: chats with a CoT, each request once; best others than the probe's own.
        probe: of `probe_refusal`.
        judged: judgements of the chats' answers, to show the mean curves of refused and complied chats.
        window: tokens on each side of the cliff.
        n_bins: parts that the CoT is cut into for the mean curve.
        batch_size: chats of a pass.
        seed: of permutations and bootstraps.

    Raises:
        RimLensError: fewer than two chats whose CoT holds two windows; a request that occurs twice; an architecture in
            which head contributions to the residual stream are not a plain sum.

    """
    chats = as_chats(model, chats)
    groups = groups_of(chats, ["incoherent"] * len(chats) if judged is None else judged)
    usable = [i for i, chat in enumerate(chats) if chat.where("cot").sum() >= 2 * window]
    if len(usable) < 2 or window < 1:
        raise RimLensError(
            f"Only {len(usable)} of {len(chats)} chats have a CoT of {2 * window} tokens or more; pass chats with "
            "thinking on or prefilled, or a smaller window."
        )
    need_distinct_requests([chats[i] for i in usable], "trace_refusal")
    writers = write_vectors(model, probe.chosen.vector, probe.layer) / probe.chosen.spread
    directions = [probe.chosen, *probe.controls]
    vectors = torch.from_numpy(np.stack([d.vector for d in directions]).T).float()
    middle = np.array([d.middle for d in directions])
    spread = np.array([d.spread for d in directions])
    readings, written = [], []

    def read(some: Sequence[Chat]) -> list[tuple[np.ndarray, np.ndarray]]:
        stream = residuals(model, some, READ, batch_size=len(some))[:, probe.layer]
        outputs = head_outputs(model, some, READ, batch_size=len(some))[:, : probe.layer]
        parts, rows = torch.einsum("clphd,lhd->cplh", outputs, writers), []
        for row, chat in enumerate(some):
            length = len(read_places(chat))
            reading = (((stream[row, :length] @ vectors).double().numpy()) - middle) / spread
            rows.append((reading, parts[row, :length].double().numpy()))
        return rows

    batches = AtOnce(batch_size, "tracing CoTs").parts([chats[i] for i in usable], read)
    for rows in track(batches, "tracing CoTs", total=-(-len(usable) // batch_size)):
        for reading, parts in rows:
            readings.append(reading)
            written.append(parts)
    places = [_falls(reading, window) for reading in readings]
    fall_of = np.stack([falls.max(axis=0) for falls in places])
    cliffs = [int(falls[:, 0].argmax()) + window for falls in places]
    total = float(fall_of[:, 0].mean())
    held_out = held_out_places([falls[:, 0] for falls in places], window, seed)
    there = float(np.mean([falls[k - window, 0] for falls, k in zip(places, held_out, strict=True)]))
    null = fall_of[:, 1:].mean(axis=0)
    own = [reading[:, 0] for reading in readings]
    labels = np.where(groups.refused, "refused", np.where(groups.complied, "complied", "not given"))[usable]
    return RefusalTrace(
        table=_heads(written, held_out, window, there, seed),
        curve=_curve(readings, labels, n_bins, seed),
        chats=_chat_rows(model, [chats[i] for i in usable], usable, own, cliffs, fall_of[:, 0], labels),
        tokens=_token_rows(model, [chats[i] for i in usable], usable, own),
        fall=total,
        control_falls=null,
        p=float(empirical_p(total, null, "greater")),
        layer=probe.layer,
        window=window,
        left_out=len(chats) - len(usable),
        manifest=Manifest.collect(model, seed=seed, n_chats=len(usable)),
    )


def _falls(reading: Float[np.ndarray, "token direction"], window: int) -> Float[np.ndarray, "place direction"]:
    """Mean of the window before minus mean of the window from token k on, for k = window … n − window."""
    sums = np.cumsum(np.concatenate([np.zeros((1, reading.shape[1])), reading]), axis=0)
    means = (sums[window:] - sums[:-window]) / window
    return means[:-window] - means[window:]


def held_out_places(falls: Sequence[Float[np.ndarray, "place"]], window: int, seed: int) -> list[int]:
    """For every chat the token at which the other half of the chats falls most, on the average.

    Places are counted from the end in tokens, as far as all chats have them, and from the start in twentieths.
    """
    order = np.random.default_rng(seed).permutation(len(falls))
    halves = order[: len(order) // 2], order[len(order) // 2 :]
    shortest = min(len(fall) for fall in falls)
    shares = (np.arange(PARTS) + 0.5) / PARTS
    from_end = np.stack([fall[::-1][:shortest] for fall in falls])
    from_start = np.stack([fall[(shares * len(fall)).astype(int)] for fall in falls])
    places = [0] * len(falls)
    for mine, other in (halves, halves[::-1]):
        end, start = from_end[other].mean(axis=0), from_start[other].mean(axis=0)
        for chat in mine.tolist():
            n = len(falls[chat])
            index = n - 1 - int(end.argmax()) if end.max() >= start.max() else int(shares[start.argmax()] * n)
            places[chat] = index + window
    return places


def read_places(chat: Chat) -> Int[np.ndarray, "token"]:
    """The tokens of the CoT and what follows it up to the decision position."""
    return np.flatnonzero(np.isin(chat.segment_ids, [segment_id(name) for name in READ])).astype(np.int64)


def _heads(
    written: Sequence[Float[np.ndarray, "token layer head"]],
    cliffs: Sequence[int],
    window: int,
    total: float,
    seed: int,
) -> pd.DataFrame:
    """How far each head's contribution falls across a place of each chat."""
    before = np.stack([w[k - window : k].mean(axis=0) for w, k in zip(written, cliffs, strict=True)])
    after = np.stack([w[k : k + window].mean(axis=0) for w, k in zip(written, cliffs, strict=True)])
    test = pair_contrast(before, after, seed=seed)
    low, high = bootstrap_means(before - after, seed=seed)
    fall = (before - after).mean(axis=0)
    layer, head = np.indices(fall.shape).reshape(2, -1)
    table = pd.DataFrame(
        {
            "layer": layer,
            "head": head,
            "name": [str(Head(i, j)) for i, j in zip(layer, head, strict=True)],
            "fall": fall.ravel(),
            "low": low.ravel(),
            "high": high.ravel(),
            "share": fall.ravel() / total if total else np.nan,
            "effect": test.effect.ravel(),
            "p": test.p.ravel(),
            "q": test.q.ravel(),
            "n": len(written),
        }
    )
    return table.sort_values("fall", ascending=False, kind="stable").reset_index(drop=True)


def _curve(
    readings: Sequence[Float[np.ndarray, "token direction"]], labels: np.ndarray, n_bins: int, seed: int
) -> pd.DataFrame:
    """Mean over chats of the reading at the middles of `n_bins` equal parts of the CoT (linear between tokens)."""
    middles = (np.arange(n_bins) + 0.5) / n_bins
    at = np.stack([_resampled(reading, middles) for reading in readings])
    low, high = bootstrap_means(at[..., 0], seed=seed)
    band = np.quantile(at[..., 1:].mean(axis=0), (0.025, 0.975), axis=1)
    columns = {
        "position": middles,
        "mean": at[..., 0].mean(axis=0),
        "low": low,
        "high": high,
        "control_low": band[0],
        "control_high": band[1],
        "n": len(readings),
    }
    for group in ("refused", "complied"):
        rows = labels == group
        columns[group] = at[rows, :, 0].mean(axis=0) if rows.any() else np.full(n_bins, np.nan)
        columns[f"n_{group}"] = int(rows.sum())
    return pd.DataFrame(columns)


def _resampled(
    reading: Float[np.ndarray, "token direction"], middles: Float[np.ndarray, "bin"]
) -> Float[np.ndarray, "bin direction"]:
    tokens = (np.arange(len(reading)) + 0.5) / len(reading)
    return np.stack([np.interp(middles, tokens, column) for column in reading.T], axis=1)


def _chat_rows(
    model: LensModel,
    chats: Sequence[Chat],
    indices: Sequence[int],
    own: Sequence[Float[np.ndarray, "token"]],
    cliffs: Sequence[int],
    falls: Float[np.ndarray, "chat"],
    labels: np.ndarray,
) -> pd.DataFrame:
    rows = []
    for chat, index, values, k, fall, label in zip(chats, indices, own, cliffs, falls, labels, strict=True):
        token = int(chat.token_ids[read_places(chat)][k])
        rows.append(
            {
                "chat": index,
                "request": chat.request,
                "label": str(label),
                "n_tokens": len(values),
                "start": values[0],
                "end": values[-1],
                "fall": fall,
                "cliff": k / len(values),
                "cliff_token": model.chat_format.decode([token]),
            }
        )
    return pd.DataFrame(rows)


def _token_rows(
    model: LensModel, chats: Sequence[Chat], indices: Sequence[int], own: Sequence[Float[np.ndarray, "token"]]
) -> pd.DataFrame:
    tables = []
    for chat, index, values in zip(chats, indices, own, strict=True):
        texts = [model.chat_format.decode([int(token)]) for token in chat.token_ids[read_places(chat)]]
        tables.append(pd.DataFrame({"chat": index, "token": np.arange(len(values)), "text": texts, "reading": values}))
    return pd.concat(tables, ignore_index=True)
