"""Checks of heads and neurons: ablation against zeroing by hand, sweeps against the same, moments against a loop."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rim_lens.capture.neurons import neuron_activations
from rim_lens.causal.run_scores import score_runs
from rim_lens.check.outcome import LOGITS, MOMENTS, Measured, in_sd, tolerance, worst_of
from rim_lens.check.subject import Subject, decisions
from rim_lens.errors import RimLensError
from rim_lens.intervene import ablate_heads, ablate_neurons
from rim_lens.model.mixture_layers import existing
from rim_lens.model.taps import Backend

NO_EFFECT = "the ablation changed nothing, so equality says nothing"


def head_ablation(subject: Subject, backend: Backend) -> Measured:
    """Ablating a head against zeroing its slice of the output projection's input by hand."""
    model, batch, worst, moved = subject.model, subject.model.batch(subject.chats), [], 0.0
    for head in subject.heads:
        by_hand = torch.stack(subject.without_head(head))
        with ablate_heads(model, [head], backend=backend):
            worst.append(in_sd(model.decision_logits(batch), by_hand))
        moved = max(moved, in_sd(by_hand, decisions(subject)))
    return _of_ablation(subject, worst, moved, len(subject.heads), "heads")


def neuron_ablation(subject: Subject, backend: Backend) -> Measured:
    """Ablating a neuron against zeroing its column of the down projection's input by hand."""
    model, batch, worst, moved = subject.model, subject.model.batch(subject.chats), [], 0.0
    for neuron in (some := neurons_of(subject, backend)):
        with subject.plain.without_neuron(*neuron):
            by_hand = torch.stack([subject.plain.logits(chat)[chat.decision_position] for chat in subject.chats])
        with ablate_neurons(model, [neuron], backend=backend):
            worst.append(in_sd(model.decision_logits(batch), by_hand))
        moved = max(moved, in_sd(by_hand, decisions(subject)))
    return _of_ablation(subject, worst, moved, len(some), "neurons")


def neurons_of(subject: Subject, backend: Backend) -> list[Any]:
    """The neuron of largest magnitude, so that its absence shows, in the first and in the last layer with neurons."""
    example: Any = (0, 0, 0) if subject.model.is_moe else (0, 0)
    with ablate_neurons(subject.model, [example], backend=backend):
        pass  # what the library refuses is refused here, before anything is computed by hand
    layers = subject.plain.with_neurons
    size = subject.neurons[0].abs().mean(dim=1).nan_to_num(-1)  # NaN where a dense layer of a mixture ends
    some = sorted({0, len(layers) - 1})
    return [(layers[i], *map(int, torch.unravel_index(size[i].argmax(), size[i].shape))) for i in some]


def _of_ablation(subject: Subject, worst: list[float], moved: float, n: int, counted: str) -> Measured:
    if not worst:
        raise RimLensError(f"no layer has {counted}.")
    room = tolerance(subject.model, LOGITS)
    why = NO_EFFECT if moved == 0 else f"the effect, {moved:.2g}, lies within the tolerance" if moved <= room else ""
    return Measured(worst_of(worst) if moved > 0 else float("nan"), room, n, counted, why)


def head_sweep(subject: Subject) -> Measured:
    """Scores of a sweep's runs against the logits of passes with the head zeroed by hand."""
    tokens = torch.stack([logits.argmax() for logits in decisions(subject)])

    def score(logits: Float[Tensor, "row vocab"]) -> Float[Tensor, " row"]:
        return logits[:, int(tokens[0])].float()

    if not subject.heads:
        raise RimLensError("no layer has heads.")
    sets = [[head] for head in subject.heads]
    runs = score_runs(subject.model, subject.chats[:1], sets, score, description="checking")
    by_hand = torch.stack([score(torch.stack(subject.without_head(head)[:1])) for head in subject.heads], dim=1)
    spread = float(decisions(subject).std())
    worst = float(np.abs(runs.changed - by_hand.double().cpu().numpy()).max()) / spread
    how = "runs are resumed at the changed layer" if runs.how == "resumed" else f"whole passes, since {runs.why}"
    return Measured(worst, tolerance(subject.model, LOGITS), runs.changed.size, "runs", how)


def neuron_moments(subject: Subject, backend: Backend) -> Measured:
    """Mean, variance, mean |a| and firing rate against a plain loop over cached activations."""
    model = subject.model
    if backend == "hooks" and model.is_moe:
        raise RimLensError(
            "TransformerLens' mlp.hook_post of a mixture of experts is its block output, not neurons; the experts are "
            "read through transformers."
        )
    positions = tuple(range(1 - subject.n_last, 1))
    mine = neuron_activations(model, subject.chats, positions, progress=False, batch_size=2, backend=backend)
    cached = torch.cat(subject.neurons, dim=1).double()
    exists = existing(model)  # a dense layer of a mixture is narrower than all experts together
    cached = cached.movedim(1, -1)[torch.from_numpy(exists)]
    theirs = {
        "mean": cached.mean(dim=1),
        "variance": cached.var(dim=1, correction=0),
        "magnitude": cached.abs().mean(dim=1),
    }
    worst = [in_sd(torch.from_numpy(getattr(mine, name)[exists]), value) for name, value in theirs.items()]
    # Tokens whose activation is 0 but for rounding may count as firing in one computation and not in the other.
    unsure = (cached.abs() <= tolerance(model, MOMENTS) * cached.std()).double().mean(dim=1)
    rate = (cached > 0).double().mean(dim=1)
    worst.append(float(((torch.from_numpy(mine.firing_rate[exists]) - rate).abs() - unsure).max()))
    return Measured(worst_of(worst), tolerance(model, MOMENTS), mine.n_neurons, "neurons")
