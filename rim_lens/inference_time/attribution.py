"""Attribution: the effect of zeroing every head, estimated from one forward and one backward pass.

    estimate(l, h) = − Σ_pos ∂metric/∂z[pos, l, h] · z[pos, l, h]

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
from rim_lens.model.taps import Tap
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


class GradientTap(Tap):
    """Keeps every head output in the graph of a pass that starts at the embeddings."""

    def __init__(self) -> None:
        self.z: dict[int, Tensor] = {}

    def on_residual(self, layer: int, resid: Float[Tensor, "row pos d_model"]) -> Tensor | None:
        """Start the graph at the stream that enters the first layer."""
        return resid.detach().requires_grad_() if layer == 0 else None

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
