"""Candidates of the refusal direction: which are worth measuring, and what those do on the prompts to select.

Projecting the unit vector u out of every write w to the stream changes a quantity of the decision logits, to first
order, by −slope(u), with

    slope(u) = Σ_writes Σ_pos (w · u) (g · u),    g = the quantity's gradient at the write

for all candidates from one forward and one backward pass per prompt:

    falls(u) = −mean slope of the refusal score, harmful prompts
    moves(u) = ½ mean (slope of log p(y))², harmless prompts, y drawn from the clean next-token distribution

The second is the Fisher approximation of KL(clean ‖ projected out). Candidates come in the order of `falls`, those
first whose `moves` is within the limit of KL. Only the first few are measured: `bypass` of all of them, KL from the
lowest `bypass` up, and induced refusal where KL is within the limit, until one may be chosen.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from rim_lens.behavior.refusal_score import RefusalTokens
from rim_lens.chat.chat import Chat
from rim_lens.errors import RimLensError
from rim_lens.intervene.steer import steer
from rim_lens.model.lens_model import LensModel
from rim_lens.model.prompt_cache import SharedStart
from rim_lens.model.taps import Tap
from rim_lens.processes import all_rows, share, sum_over_processes
from rim_lens.progress import track

GRADIENT_ROWS = 8  # prompts of a pass that keeps all its writes in the graph
N_ESTIMATED = 16  # prompts of each kind that estimates are made on


@dataclass(frozen=True)
class Limits:
    """What a chosen direction may cost and must do, both in nats."""

    kl: float
    induced: float


class WritesTap(Tap):
    """Keeps the embedding and every layer's writes in the graph of a pass."""

    def __init__(self) -> None:
        self.writes: list[Tensor] = []

    def on_residual(self, layer: int, resid: Float[Tensor, "row pos d_model"]) -> Tensor | None:
        """Start the graph at the stream that enters the first layer."""
        return self._kept(resid.detach().requires_grad_()) if layer == 0 else None

    def on_attention_write(self, layer: int, written: Float[Tensor, "row pos d_model"]) -> Tensor:
        """Keep the very tensor that goes on."""
        return self._kept(written)

    def on_mlp_write(self, layer: int, written: Float[Tensor, "row pos d_model"]) -> Tensor:
        """As above."""
        return self._kept(written)

    def _kept(self, written: Tensor) -> Tensor:
        self.writes.append(written)
        return written


def slopes(
    model: LensModel,
    chats: Sequence[Chat],
    vectors: Float[np.ndarray, "candidate d_model"],
    quantity: Callable[[Float[Tensor, "row vocab"]], Float[Tensor, " row"]],
) -> Float[np.ndarray, "prompt candidate"]:
    """By how much each prompt's quantity rises per share of a vector's component that all writes gain."""
    units = torch.from_numpy(vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).float()
    found, order = np.zeros((len(chats), len(vectors))), list[int]()
    for indices, batch in model.shared_batches(chats, GRADIENT_ROWS):
        tap = WritesTap()
        with torch.enable_grad(), model.tap(tap):
            total = quantity(model.decision_logits(batch)).sum()
            gradients = torch.autograd.grad(total, tap.writes, allow_unused=True)
        for write, gradient in zip(tap.writes, gradients, strict=True):
            if gradient is not None:
                u = units.to(write.device).T
                along = (write.detach().float() @ u) * (gradient.float() @ u)
                found[indices] += along.sum(1).double().cpu().numpy()
        order += indices
    return all_rows(found, order)


def estimates(
    model: LensModel,
    harmful: Sequence[Chat],
    harmless: Sequence[Chat],
    vectors: Float[np.ndarray, "candidate d_model"],
    tokens: RefusalTokens,
    seed: int = 0,
) -> tuple[Float[np.ndarray, " candidate"], Float[np.ndarray, " candidate"]]:
    """`falls` and `moves` of the module's first lines, in nats."""
    drawn = torch.Generator().manual_seed(seed)

    def surprise(logits: Float[Tensor, "row vocab"]) -> Float[Tensor, " row"]:
        logs = logits.float().log_softmax(-1)
        y = torch.multinomial(logs.detach().exp().cpu(), 1, generator=drawn).to(logs.device)
        return logs.gather(-1, y)[:, 0]

    falls = -slopes(model, harmful, vectors, tokens.score).mean(axis=0)
    return falls, 0.5 * np.square(slopes(model, harmless, vectors, surprise)).mean(axis=0)


class Selection:
    """The prompts to select, and what taking out or adding a direction does on them."""

    def __init__(
        self, model: LensModel, harmful: Sequence[Chat], harmless: Sequence[Chat], tokens: RefusalTokens, size: int
    ) -> None:
        self.model, self.tokens = model, tokens
        self.harmful, self.harmless = (
            [SharedStart.of(model, batch) for _, batch in model.batches(side, size)] for side in (harmful, harmless)
        )
        self.clean = [batch.decision_logits().double().log_softmax(-1) for batch in self.harmless]

    def bypass(self, vector: Float[np.ndarray, " d_model"]) -> float:
        """Mean refusal score of the harmful prompts with the vector projected out, in nats."""
        with steer(self.model, vector, project_out=True):
            return self._mean(self.harmful, self.tokens.score)

    def induce(self, vector: Float[np.ndarray, " d_model"], layer: int) -> float:
        """Mean refusal score of the harmless prompts with the vector added, in nats."""
        with steer(self.model, vector, add=1.0, layers=layer):
            return self._mean(self.harmless, self.tokens.score)

    def kl(self, vector: Float[np.ndarray, " d_model"]) -> float:
        """Mean KL(clean ‖ projected out) of the harmless prompts' first token, in nats."""
        before = iter(self.clean)

        def divergence(logits: Float[Tensor, "row vocab"]) -> Float[Tensor, " row"]:
            clean = next(before)
            return (clean.exp() * (clean - logits.double().log_softmax(-1))).sum(-1)

        with steer(self.model, vector, project_out=True):
            return self._mean(self.harmless, divergence)

    def _mean(
        self, batches: Sequence[SharedStart], measure: Callable[[Float[Tensor, "row vocab"]], Float[Tensor, " row"]]
    ) -> float:
        return float(torch.cat([measure(batch.decision_logits()) for batch in batches]).double().mean())


def chosen_candidate(
    model: LensModel,
    vectors: Float[np.ndarray, "layer position d_model"],
    labels: Sequence[str],
    select: Sequence[Sequence[Chat]],
    tokens: RefusalTokens,
    limits: Limits,
    n_candidates: int | None,
    batch_size: int,
) -> pd.DataFrame:
    """All candidates in a table, the first `n_candidates` by their estimates measured, the `chosen` one among them.

    Where none of these may be chosen, the next ones are measured. NaN stands where nothing was measured, and where the
    difference of means is 0.

    Raises:
        RimLensError: no candidate at all may be chosen.
    """
    norms = np.linalg.norm(vectors, axis=-1)
    layer, position = np.indices(norms.shape).reshape(2, -1)
    token = np.array(labels, dtype=object)[position]
    table = pd.DataFrame({"layer": layer, "position": position, "token": token, "norm": norms.ravel()})
    table[["falls", "moves", "bypass", "induce", "kl"]] = np.nan
    table["allowed"], table["chosen"] = False, False
    there = np.flatnonzero(norms.ravel() > 1e-6 * norms.max())
    flat = vectors.reshape(-1, vectors.shape[-1])
    step = len(there) if n_candidates is None else n_candidates
    if step < len(there):
        harmful, harmless = (side[:N_ESTIMATED] for side in select)
        falls, moves = estimates(model, harmful, harmless, flat[there], tokens)
        table.loc[there, ["falls", "moves"]] = np.stack([falls, moves], axis=1)
        there = there[np.lexsort((falls, np.maximum(moves, limits.kl)))]
    selection = Selection(model, select[0], select[1], tokens, batch_size)
    for start in range(0, len(there), step):
        some = there[start : start + step]
        bypass = torch.zeros(len(some), dtype=torch.float64)
        for k in track(share(len(some)), "candidates of the refusal direction"):
            bypass[k] = selection.bypass(flat[some[k]])
        table.loc[some, "bypass"] = sum_over_processes(bypass).numpy()
        for place in some[np.argsort(table["bypass"].to_numpy()[some], kind="stable")]:
            table.loc[place, "kl"] = kl = selection.kl(flat[place])
            if kl > limits.kl:
                continue
            table.loc[place, "induce"] = induce = selection.induce(flat[place], int(layer[place]))
            if induce >= limits.induced:
                table.loc[place, ["allowed", "chosen"]] = True
                return table
    cheap = table[table["kl"] <= limits.kl]
    raise RimLensError(
        f"No direction may be chosen: {len(cheap)} of {len(there)} candidates cost at most {limits.kl} nats "
        f"of KL on harmless requests, and the largest refusal score that adding one of these brings is "
        f"{cheap['induce'].max():.2f} nats, below least_induced={limits.induced}; loosen a limit, or "
        "take a model that refuses."
    )
