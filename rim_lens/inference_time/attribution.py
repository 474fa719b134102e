"""Attribution: the effect of zeroing every head or every neuron, estimated from one forward and one backward pass.

    estimate(l, h) = − Σ_pos ∂metric/∂z[pos, l, h] · z[pos, l, h]          neurons: a[pos, l, i] in place of z

the first-order Taylor term of metric(z ← 0) − metric(z) (Nanda 2023, attribution patching). TransformerLens'
`attribution_patch` compares two prompts of equal length and has no zero baseline, so the gradient is taken here.

Zeroing a head is not a small step: terms of opposite sign that cancel in the sum need not cancel in truth. If each term
errs by its own size, independently, the sum errs by

    spread(l, h) = sqrt( Σ_pos (∂metric/∂z · z)² )

and a head is worth measuring when |estimate| + spread is large (Kramár et al. 2024 meet the same cancellation
otherwise).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rim_lens.causal.resume import ResumablePass, why_not_resumed
from rim_lens.causal.run_scores import (
    CleanPasses,
    MetricFunction,
    changed_places,
    cut_at_decision,
    first_column,
    over_prompts,
)
from rim_lens.chat.chat import Chat
from rim_lens.chat.positions import Positions
from rim_lens.model.batch import Batch
from rim_lens.model.lens_model import LensModel
from rim_lens.model.mixture_layers import existing
from rim_lens.model.taps import ExpertCall, Tap
from rim_lens.processes import all_rows

HeadGradients = Iterator[tuple[int, Float[Tensor, "row pos head d_head"], Float[Tensor, "row pos head d_head"]]]


@dataclass(frozen=True, eq=False)
class Attribution:
    """Estimated effects of zeroing heads, in units of the metric, and how far they may be off; 0 without attention."""

    estimate: Float[np.ndarray, "prompt layer head"]
    spread: Float[np.ndarray, "prompt layer head"]

    @property
    def priority(self) -> Float[np.ndarray, "layer head"]:
        """|mean estimate| + error of the mean over prompts: heads with the largest are to be measured."""
        error = np.sqrt((self.spread**2).sum(axis=0)) / len(self.spread)
        return np.abs(self.estimate.mean(axis=0)) + error


class FromEmbeddings(Tap):
    """Starts the graph of a pass at the stream that enters the first layer."""

    def on_residual(self, layer: int, resid: Float[Tensor, "row pos d_model"]) -> Tensor | None:
        """Detach the stream from what made it."""
        return resid.detach().requires_grad_() if layer == 0 else None


class GradientTap(FromEmbeddings):
    """Keeps every head output in the graph of a pass that starts at the embeddings."""

    def __init__(self) -> None:
        self.z: dict[int, Tensor] = {}

    def on_head_output(self, layer: int, z: Float[Tensor, "row pos head d_head"]) -> Tensor:
        """Keep the very tensor that goes on."""
        self.z[layer] = z
        return z

    def gradients(self, score: Float[Tensor, ""]) -> HeadGradients:
        """Layer, head outputs and the gradient of a score of the pass with respect to them."""
        gradients = torch.autograd.grad(score, list(self.z.values()), allow_unused=True)
        for (layer, z), gradient in zip(self.z.items(), gradients, strict=True):
            if gradient is not None:
                yield layer, z.detach(), gradient


def head_attributions(
    model: LensModel,
    chats: Sequence[Chat],
    metric: MetricFunction,
    *,
    positions: Positions = "all",
    cache: CleanPasses | None = None,
) -> Attribution:
    """Estimate the effect of zeroing each head at some positions of each prompt; `cache` receives the clean passes."""
    chats = [cut_at_decision(chat) for chat in chats]
    estimate = np.zeros((len(chats), model.n_layers, model.n_heads))
    spread, order = np.zeros_like(estimate), list[int]()

    def estimated(indices: list[int], batch: Batch, at: Bool[Tensor, "row pos"]) -> list[int]:
        inside, start = at[..., None, None], first_column(at)
        tap, whole = GradientTap(), None
        if why_not_resumed(model, start) is None:
            whole = ResumablePass(model, batch, start, gradient=tap)
            logits = whole.logits
        else:
            with torch.enable_grad(), model.tap(tap):
                logits = model.decision_logits(batch)
        with torch.enable_grad():
            gradients = tap.gradients(metric(logits).sum())
        for layer, z, gradient in gradients:
            outside = ~inside[:, -z.shape[1] :].to(z.device)
            terms = (z * gradient).masked_fill(outside, 0).double().sum(-1)
            estimate[indices, layer] = -terms.sum(1).cpu().numpy()
            spread[indices, layer] = terms.square().sum(1).sqrt().cpu().numpy()
        if cache is not None and whole is not None:
            whole.detach()
            cache.keep(indices, whole)
        return indices

    for indices in over_prompts(model, chats, changed_places(chats, positions), estimated, "attribution"):
        order += indices
    return Attribution(all_rows(estimate, order), all_rows(spread, order))


class NeuronGradientTap(FromEmbeddings):
    """Keeps every neuron in the graph of a pass that starts at the embeddings; of an expert those of one call."""

    def __init__(self) -> None:
        self.calls: list[tuple[int | ExpertCall, Tensor]] = []

    def on_neurons(self, layer: int, post: Float[Tensor, "row pos d_mlp"]) -> Tensor:
        """Keep the very tensor that goes on."""
        self.calls.append((layer, post))
        return post

    def on_expert(self, call: ExpertCall, post: Float[Tensor, "slot d_mlp"]) -> Tensor:
        """As above, for the tokens sent to one expert."""
        self.calls.append((call, post))
        return post

    def products(self, score: Float[Tensor, ""]) -> Iterator[tuple[int | ExpertCall, Float[Tensor, "... unit"]]]:
        """Activation times gradient of a score of the pass, by layer or by call of an expert."""
        gradients = torch.autograd.grad(score, [post for _, post in self.calls], allow_unused=True)
        for (call, post), gradient in zip(self.calls, gradients, strict=True):
            if gradient is not None:
                yield call, post.detach().float() * gradient.float()


def neuron_attributions(
    model: LensModel, chats: Sequence[Chat], metric: MetricFunction, *, positions: Positions = "all"
) -> Float[np.ndarray, "prompt layer ..."]:
    """Estimate the effect of zeroing each neuron at some positions of each prompt.

    Args:
        model: any model whose neurons can be read, mixtures of experts included.
        chats: rendered chats.
        metric: of the logits at the decision position, one value per row.
        positions: where neurons are zeroed.

    Returns:
        In units of the metric, [prompt, layer, unit], or [prompt, layer, expert, unit]; below 0 where the neuron
        raises the metric.

    Raises:
        RimLensError: a chat without a token at `positions`.
    """
    chats = [cut_at_decision(chat) for chat in chats]
    estimate = np.zeros((len(chats), *existing(model).shape), dtype=np.float32)
    order = list[int]()

    def estimated(indices: list[int], batch: Batch, at: Bool[Tensor, "row pos"]) -> list[int]:
        tap = NeuronGradientTap()
        with torch.enable_grad(), model.tap(tap):
            score = metric(model.decision_logits(batch)).sum()
        for call, product in tap.products(score):
            inside = at.to(product.device)
            if isinstance(call, ExpertCall):
                row = call.row.cpu()
                terms = product.masked_fill(~inside.reshape(-1)[call.token, None], 0).cpu()
                sums = torch.zeros(len(batch), terms.shape[-1]).index_add_(0, row, terms)
                estimate[indices, call.layer, call.expert] -= sums.numpy()
            else:
                estimate[indices, call] = -product.masked_fill(~inside[..., None], 0).sum(1).cpu().numpy()
        return indices

    for indices in over_prompts(model, chats, changed_places(chats, positions), estimated, "attribution of neurons"):
        order += indices
    return all_rows(estimate, order)
