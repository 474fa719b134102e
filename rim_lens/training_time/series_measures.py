"""What is measured inside the model at one checkpoint of a series.

refusal score         log-odds of the refusal tokens at the decision position
forward KL            Σ_v p_ref(v) (log p_ref(v) − log p(v)) at the decision position, mean over safety prompts, in nats
task KL               the same over the task prompts: how far the new task has moved the model where it is asked
weight distance       ‖θ − θ_ref‖ / ‖θ_ref‖ over all parameters
activation distance   ‖f − f_ref‖ / ‖f_ref‖ over all neurons, f(a) on the safety prompts
"""

from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from rim_lens.behavior.refusal_score import RefusalTokens, log_odds
from rim_lens.capture.neuron_activations import Measure, NeuronActivations
from rim_lens.errors import RimLensError
from rim_lens.processes import sum_over_processes
from rim_lens.training_time.series import Checkpoint

T = TypeVar("T")

# Everything that belongs to the request and its answer; a system prompt is the same in all chats.
REQUEST_AND_ANSWER = ("user", "assistant_tag", "think_open", "cot", "think_close", "response")


@dataclass(frozen=True, eq=False)
class AtCheckpoint:
    """Measured at one checkpoint. `kl` and `refusal` have one value per safety prompt."""

    checkpoint: Checkpoint
    on_safety: NeuronActivations | None
    on_task: NeuronActivations | None
    refusal: Float[np.ndarray, "prompt"]
    kl: Float[np.ndarray, "prompt"]
    weight_distance: float
    attention: Float[np.ndarray, "prompt layer head segment"] | None = None  # from the decision position
    head_scores: Float[np.ndarray, "set prompt"] | None = None  # refusal score without each set of heads there
    answers: pd.DataFrame | None = None  # judged answers to the safety prompts
    maths: pd.DataFrame | None = None  # likelihood of each problem's right answer, and whether it was solved
    task_kl: Float[np.ndarray, "prompt"] = field(default_factory=lambda: np.zeros(0))

    @property
    def safety(self) -> NeuronActivations:
        """Activations on the safety prompts."""
        return asked_for(self.on_safety, "neurons on safety prompts", "neurons=")

    @property
    def task(self) -> NeuronActivations:
        """Activations on the task prompts."""
        return asked_for(self.on_task, "neurons on task prompts", "neurons= and maths= or task=")


def asked_for(value: T | None, what: str, how: str) -> T:
    """What a series was asked to measure; a RimLensError where it was not."""
    if value is None:
        raise RimLensError(f"This series was measured without {what}; pass {how} to measure_series.")
    return value


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
        """One value per prompt, in order, from all processes."""
        whole = torch.zeros(self.n_prompts, dtype=torch.float64)
        whole[self.seen] = torch.tensor(values, dtype=torch.float64)
        return sum_over_processes(whole).numpy()


def forward_kl(reference: Float[Tensor, "row vocab"], log_p: Float[Tensor, "row vocab"]) -> Float[Tensor, " row"]:
    """KL(p_ref ‖ p) of log-probabilities, in float64 and nats."""
    reference = reference.double()
    return (reference.exp() * (reference - log_p.double())).sum(-1)


def activation_distance(before: NeuronActivations, after: NeuronActivations, measure: Measure = "magnitude") -> float:
    """‖f₁ − f₀‖ / ‖f₀‖ over all neurons."""
    f0, f1 = (side.values(measure).astype(np.float64)[np.isfinite(before.mean)] for side in (before, after))
    return float(np.linalg.norm(f1 - f0) / np.linalg.norm(f0))
