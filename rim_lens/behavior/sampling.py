"""How the next token is chosen: the most likely one, or one drawn from the model's distribution.

    p(token) ∝ exp(logit / temperature) over the tokens that top-k, top-p and min-p leave

Cut by transformers' own warpers, in its order. A row's token is where its own uniform number falls in the cumulative
distribution, so that nothing but the row's logits and its own stream of numbers decides it.

What is not asked for follows the model's `generation_config` where the model thinks natively (`thinks_natively`) and
the config samples (`do_sample`): such models are published for that distribution. Elsewhere decoding is greedy.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.random import SeedSequence
from torch import Tensor

from rim_lens.errors import RimLensError
from rim_lens.model.lens_model import LensModel


@dataclass(frozen=True)
class Sampling:
    """What answers are drawn with; temperature 0 is greedy. `samples`: answers per prompt."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int | None = None
    min_p: float | None = None
    samples: int = 1


def sampling_for(
    model: LensModel, temperature: float | None = None, top_p: float | None = None, samples: int = 1
) -> Sampling:
    """The sampling asked for, filled up with the model's own; the number of `samples` is never the model's choice.

    Raises:
        RimLensError: a value outside its range, several samples of greedy decoding, or a `top_p` without effect.
    """
    own = own_sampling(model)
    temperature = own.temperature if temperature is None else float(temperature)
    if not 0 <= temperature < math.inf:
        raise RimLensError(
            f"A temperature of {temperature} cannot be sampled at; pass 0 (greedy) or a number above it."
        )
    if samples < 1:
        raise RimLensError(f"samples={samples} asks for no answer; pass at least 1.")
    if top_p is not None and not 0 < top_p <= 1:
        raise RimLensError(f"top_p={top_p} is not a share of probability; pass a number above 0 and up to 1.")
    if temperature == 0:
        if samples > 1:
            raise RimLensError(
                f"samples={samples} at temperature 0 would be the same answer {samples} times; pass temperature= too."
            )
        if top_p is not None and top_p < 1:
            raise RimLensError(f"top_p={top_p} has no effect at temperature 0; pass temperature= too.")
        return Sampling()
    return Sampling(temperature, own.top_p if top_p is None else float(top_p), own.top_k, own.min_p, samples)


def own_sampling(model: LensModel) -> Sampling:
    """What the `generation_config` of a natively thinking model samples with; greedy of any other model."""
    config = model.generation_config
    if config is None or not config.do_sample or not thinks_natively(model):
        return Sampling()
    temperature = 1.0 if config.temperature is None else float(config.temperature)
    top_p = 1.0 if config.top_p is None else float(config.top_p)
    return Sampling(temperature, top_p, config.top_k or None, config.min_p or None)


def thinks_natively(model: LensModel) -> bool:
    """Whether the think tags are the chat template's or its family's own.

    Given ones count where the template writes them.
    """
    where = model.chat_format.tags_from
    return where in ("template", "known family") or (where == "given" and model.chat_format.writes_tags)


class Picker:
    """Chooses next tokens. Every row of a `generate` call, one sample of one prompt, draws from a stream of its own."""

    def __init__(self, sampling: Sampling, seed: int | Sequence[int]) -> None:
        self.sampling, self.seed = sampling, seed
        self._streams: dict[int, np.random.Generator] = {}
        self._warp = warper(sampling) if sampling.temperature > 0 else None

    def __call__(self, logits: Float[Tensor, "row vocab"], rows: Sequence[int]) -> Int[Tensor, " row"]:
        """The next token of each of these rows."""
        if self._warp is None:
            return logits.argmax(-1)
        reached = self._warp(None, logits.float()).double().softmax(-1).cumsum(-1)
        drawn = torch.tensor([self._stream(row).random() for row in rows], dtype=torch.float64, device=logits.device)
        wanted = drawn[:, None] * reached[:, -1:]
        last = torch.searchsorted(reached, reached[:, -1:].contiguous())  # of the tokens that are left
        return torch.minimum(torch.searchsorted(reached, wanted, right=True), last)[:, 0]

    def _stream(self, row: int) -> np.random.Generator:
        if row not in self._streams:
            self._streams[row] = np.random.default_rng(row_seed(self.sampling, self.seed, row))
        return self._streams[row]


def row_seed(sampling: Sampling, seed: int | Sequence[int], row: int, part: tuple[int, ...] = ()) -> SeedSequence:
    """What one sample of one prompt is drawn from; `part` for one of several draws."""
    prompt, sample = divmod(row, sampling.samples)
    source = seed[prompt] if isinstance(seed, Sequence) else (seed, prompt)
    return SeedSequence(source, spawn_key=(sample, *part))


def warper(sampling: Sampling):  # type: ignore[no-untyped-def]
    """Transformers' warpers of the logits, in the order in which its `generate` applies them."""
    from transformers import (
        LogitsProcessorList,
        MinPLogitsWarper,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    steps = [TemperatureLogitsWarper(sampling.temperature)]
    if sampling.top_k:
        steps.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        steps.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        steps.append(MinPLogitsWarper(sampling.min_p))
    return LogitsProcessorList(steps)
