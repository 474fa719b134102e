"""What is measured at every checkpoint of a series, in one pass over safety prompts and one over reasoning prompts.

Heads, where some are followed, cost one more token a prompt and set of heads (see `prompt_pass`).

refusal score         log-odds of the refusal tokens at the decision position
forward KL            Σ_v p_ref(v) (log p_ref(v) − log p(v)) at the decision position, mean over safety prompts, in nats
weight distance       ‖θ − θ_ref‖ / ‖θ_ref‖ over all parameters
activation distance   ‖f − f_ref‖ / ‖f_ref‖ over all neurons, f(a) on the safety prompts
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from rim_lens.behavior.refusal_score import RefusalTokens, log_odds
from rim_lens.capture.neuron_activations import Measure, NeuronActivations
from rim_lens.capture.neurons import Positions
from rim_lens.causal.set_scores import without_heads
from rim_lens.chat.chat import Chat
from rim_lens.model.lens_model import LensModel
from rim_lens.processes import sum_over_processes
from rim_lens.progress import track
from rim_lens.training_time.checkpoints import Checkpoints
from rim_lens.training_time.prompt_pass import pass_over
from rim_lens.training_time.series import Checkpoint
from rim_lens.units import Head

# Everything that belongs to the request and its answer; a system prompt is the same in all chats.
REQUEST_AND_ANSWER = ("user", "assistant_tag", "think_open", "cot", "think_close", "response")


@dataclass(frozen=True, eq=False)
class AtCheckpoint:
    """Measured at one checkpoint. `kl` and `refusal` have one value a safety prompt."""

    checkpoint: Checkpoint
    safety: NeuronActivations
    task: NeuronActivations
    refusal: Float[np.ndarray, "prompt"]
    kl: Float[np.ndarray, "prompt"]
    weight_distance: float
    attention: Float[np.ndarray, "prompt layer head segment"] | None = None  # from the decision position
    head_scores: Float[np.ndarray, "set prompt"] | None = None  # refusal score without each set of heads there


@dataclass(eq=False)
class DecisionReader:
    """Refusal score and forward KL of each prompt from its logits; keeps the reference's log-probabilities."""

    tokens: RefusalTokens
    n_prompts: int
    reference: dict[int, Float[Tensor, " vocab"]] = field(default_factory=dict)
    seen: list[int] = field(default_factory=list)
    refusal: list[float] = field(default_factory=list)
    kl: list[float] = field(default_factory=list)
    is_reference: bool = False

    def begin(self, is_reference: bool) -> None:
        """The next passes belong to the reference checkpoint, or to another one."""
        self.is_reference = is_reference
        self.seen, self.refusal, self.kl = [], [], []

    def __call__(self, prompts: list[int], logits: Float[Tensor, "row vocab"]) -> None:
        """See the class."""
        log_p = logits.log_softmax(-1)
        if self.is_reference:
            self.reference |= dict(zip(prompts, log_p.cpu(), strict=True))
        before = torch.stack([self.reference[prompt] for prompt in prompts]).to(log_p.device)
        self.seen += prompts
        self.refusal += log_odds(logits, self.tokens.ids).tolist()
        self.kl += forward_kl(before, log_p).tolist()

    def of_all(self, values: list[float]) -> Float[np.ndarray, "prompt"]:
        """One value a prompt, in order, from all processes."""
        whole = torch.zeros(self.n_prompts, dtype=torch.float64)
        whole[self.seen] = torch.tensor(values, dtype=torch.float64)
        return sum_over_processes(whole).numpy()


def forward_kl(reference: Float[Tensor, "row vocab"], log_p: Float[Tensor, "row vocab"]) -> Float[Tensor, " row"]:
    """KL(p_ref ‖ p) of log-probabilities, in float64 and nats."""
    reference = reference.double()
    return (reference.exp() * (reference - log_p.double())).sum(-1)


def measure_series(
    model: LensModel,
    checkpoints: Checkpoints,
    safety: Sequence[Chat],
    task: Sequence[Chat],
    rows: Int[np.ndarray, "neuron index"],
    tokens: RefusalTokens,
    *,
    positions: Positions = REQUEST_AND_ANSWER,
    heads: Sequence[Sequence[Head]] = (),
    batch_size: int = 16,
) -> list[AtCheckpoint]:
    """Every checkpoint's measurements, the reference's first; the model is as before afterwards.

    `heads` are sets of heads whose effect and attention are measured at every checkpoint as well.
    """
    others = [name for name in checkpoints.names if name != checkpoints.reference.name]
    ordered = checkpoints.only([checkpoints.reference.name, *others])
    reader = DecisionReader(tokens, len(safety))
    options: Any = {"per_prompt": rows, "batch_size": batch_size}
    found = []
    for checkpoint, shown in track(ordered.loaded(model), "measuring checkpoints", total=len(ordered)):
        reader.begin(is_reference=checkpoint.name == checkpoints.reference.name)
        wanted = bool(heads)
        seen = pass_over(shown, safety, positions, at_decision=reader, attention=wanted, keep=wanted, **options)
        found.append(
            AtCheckpoint(
                checkpoint=checkpoint,
                safety=seen.neurons,
                task=pass_over(shown, task, positions, **options).neurons,
                refusal=reader.of_all(reader.refusal),
                kl=reader.of_all(reader.kl),
                weight_distance=ordered.distance(shown),
                attention=seen.attention,
                head_scores=without_heads(shown, safety, heads, tokens, seen.kept) if wanted else None,
            )
        )
    return found


def activation_distance(before: NeuronActivations, after: NeuronActivations, measure: Measure = "magnitude") -> float:
    """‖f₁ − f₀‖ / ‖f₀‖ over all neurons."""
    f0, f1 = (side.values(measure).astype(np.float64)[np.isfinite(before.mean)] for side in (before, after))
    return float(np.linalg.norm(f1 - f0) / np.linalg.norm(f0))
