"""The tap that adds the neurons of chosen tokens to running moments."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rim_lens.capture.moments import Moments, moments_of
from rim_lens.errors import RimLensError
from rim_lens.model.batch import Batch
from rim_lens.model.lens_model import LensModel
from rim_lens.model.mixture_layers import checked_neurons, existing
from rim_lens.model.taps import ExpertCall, Tap
from rim_lens.processes import sum_over_processes


@dataclass
class PromptSums:
    """Sums of a and of |a| over the chosen tokens of each prompt, of all neurons or of some."""

    signed: Float[np.ndarray, "prompt ..."]
    absolute: Float[np.ndarray, "prompt ..."]


class NeuronReader(Tap):
    """Which tokens of the running batch count, and where their values go.

    A neuron of an expert counts with its routing probability, and as 0 at tokens that were not sent to its expert; one
    that does not exist is NaN.
    """

    def __init__(
        self,
        model: LensModel,
        n_prompts: int,
        per_prompt: bool | Int[np.ndarray, "neuron index"],
        threshold: float,
        *,
        weighted: bool = True,
    ) -> None:
        self.model = model
        self.weighted = weighted  # neurons of experts by their routing probability
        self.threshold = threshold
        self.existing = existing(model)
        shape = self.existing.shape
        self.wanted = None if isinstance(per_prompt, bool) else checked_neurons(model, per_prompt)
        self.moments = Moments.zeros(*shape, device=model.device)
        self.tokens = np.zeros(n_prompts)
        self.sent = np.zeros((n_prompts, *shape[:-1]))  # tokens that were added, by prompt and layer or expert
        self.sums: PromptSums | None = None
        if per_prompt is not False:
            size = shape if self.wanted is None else (len(self.wanted),)
            self.sums = PromptSums(*(np.zeros((n_prompts, *size), dtype=np.float32) for _ in range(2)))
        self.prompts: list[int] = []
        self.chosen: Int[Tensor, " chosen"] = torch.empty(0, dtype=torch.long)
        self.member: Float[Tensor, "group chosen"] = torch.empty(1, 0)

    def begin(self, batch: Batch, prompts: Sequence[int], chosen: Sequence[Bool[np.ndarray, "pos"]]) -> None:
        """The next pass computes `batch`, whose rows are these prompts with these chosen tokens."""
        where = torch.zeros(batch.tokens.shape, dtype=torch.bool)
        where[batch.mask.cpu()] = torch.from_numpy(np.concatenate(chosen))
        self.prompts = list(prompts)
        self.tokens[self.prompts] = where.sum(dim=1).numpy()
        device = batch.tokens.device
        self.chosen = where.flatten().nonzero()[:, 0].to(device)
        row = torch.div(self.chosen, where.shape[1], rounding_mode="floor")
        groups = torch.arange(len(prompts) if self.sums else 1, device=device)[:, None]
        self.member = (groups == (row if self.sums else torch.zeros_like(row))).float()

    def add(
        self,
        entry: tuple[int, ...],
        values: Float[Tensor, "token unit"],
        chosen: Int[Tensor, " chosen"],
        member: Float[Tensor, "group chosen"],
        weights: Float[Tensor, " chosen"] | None = None,
    ) -> None:
        """Add the tokens `values[chosen]` of one layer, (layer,), or of one of its experts, (layer, expert)."""
        units = self.moments.mean.shape[-1]
        if values.shape[-1] != units:
            raise RimLensError(
                f"Layer {entry[0]} of {self.model.name} has {values.shape[-1]} neurons where {units} were expected; "
                "models whose layers differ in width are not supported."
            )
        if self.sums is not None:
            rows: tuple[Any, ...] = (np.array(self.prompts), *entry)
            self.sent[rows] = member.sum(1).cpu().numpy()
        block = moments_of(values, chosen, member, weights, self.threshold)
        self.moments.add(entry, block.moments)
        if self.sums is not None:
            self._keep(self.sums.signed, entry, block.signed)
            self._keep(self.sums.absolute, entry, block.absolute)

    def _keep(self, sums: np.ndarray, entry: tuple[int, ...], part: Float[Tensor, "row unit"]) -> None:
        if self.wanted is None:
            where: tuple[Any, ...] = (np.array(self.prompts), *entry)
            sums[where] = part.cpu().numpy()
            return
        here = (self.wanted[:, :-1] == entry).all(axis=1).nonzero()[0]
        if len(here):
            units = torch.from_numpy(self.wanted[here, -1]).to(part.device)
            sums[np.array(self.prompts)[:, None], here[None]] = part[:, units].cpu().numpy()

    def on_neurons(self, layer: int, post: Float[Tensor, "row pos d_mlp"]) -> None:
        """Add the chosen tokens."""
        self.add((layer,), post.flatten(0, 1), self.chosen.to(post.device), self.member.to(post.device))

    def on_expert(self, call: ExpertCall, post: Float[Tensor, "slot d_mlp"]) -> None:
        """Add the chosen ones among the tokens sent to this expert, times their routing probability."""
        chosen, token = self.chosen.to(post.device), call.token
        place = torch.searchsorted(chosen, token).clamp(max=len(chosen) - 1)
        slots = (chosen[place] == token).nonzero()[:, 0]
        if len(slots):
            member = self.member.to(post.device)[:, place[slots]]
            weight = call.weight[slots].float() if self.weighted else None
            self.add((call.layer, call.expert), post, slots, member, weight)

    def means_per_prompt(self) -> Float[Tensor, "prompt layer *expert unit"]:
        """Means over each prompt's tokens that were added, of all processes; 0 where there was none."""
        assert self.sums is not None
        sent = over_processes(self.sent).clip(1)[..., None]
        return torch.from_numpy((over_processes(self.sums.signed) / sent).astype(np.float32))

    def merged(self) -> tuple[Moments, Float[np.ndarray, " prompt"], PromptSums | None]:
        """Moments, tokens per prompt and sums per prompt of all processes."""
        sums = self.sums and PromptSums(over_processes(self.sums.signed), over_processes(self.sums.absolute))
        moments, tokens = self.moments.summed(), over_processes(self.tokens)
        if self.existing.ndim == 2:
            return moments, tokens, sums
        moments = moments.with_zeros(int(tokens.sum()), self.threshold)
        absent = ~self.existing
        for part in (moments.mean, moments.m2, moments.absolute, moments.fired):
            part[torch.from_numpy(absent).to(part.device)] = torch.nan
        for sums_of in (sums.signed, sums.absolute) if sums and self.wanted is None else ():
            sums_of[:, absent] = np.nan
        return moments, tokens, sums


def over_processes(array: np.ndarray) -> np.ndarray:
    """Sum over processes; rows of prompts that another process measured are 0 here."""
    return sum_over_processes(torch.from_numpy(array)).numpy()
