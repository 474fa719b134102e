"""Neuron moments over the tokens of chats: f(a; D), the activation of neuron a over the chosen positions of prompts D.

A neuron is an input of an MLP's down projection. In a mixture of experts it is a unit of one expert, its activation at
a token the routing probability times the unit's output, 0 where the token was not sent to the expert. Moments are
streamed (see `moments`), so memory does not grow with the number of prompts unless values per prompt are asked for.

1. Chats are split over processes and batched by length.
2. One pass through the decoder for each batch, without the unembedding; a tap reads every layer's neurons.
3. Chosen tokens are added to the running moments, and to per-prompt sums where these are wanted.
4. Moments and sums are merged over processes.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from rim_lens.capture.neuron_activations import NeuronActivations
from rim_lens.capture.neuron_readers import NeuronReader
from rim_lens.chat.chat import Chat
from rim_lens.chat.positions import Positions, places, words_of
from rim_lens.errors import RimLensError
from rim_lens.model.as_chats import as_chats
from rim_lens.model.batch import Batch
from rim_lens.model.finite import check_finite
from rim_lens.model.fitting import halves_batches
from rim_lens.model.lens_model import LensModel
from rim_lens.model.requests import Prompts
from rim_lens.model.taps import Backend
from rim_lens.processes import n_processes
from rim_lens.progress import track
from rim_lens.results import Manifest

AtDecision = Callable[[list[int], Float[Tensor, "row vocab"]], None]
MOMENTS = {"mean": "mean", "variance": "variance", "magnitude": "mean_absolute", "firing_rate": "firing_rate"}


@halves_batches
def neuron_activations(
    model: LensModel,
    chats: Prompts,
    positions: Positions = "response",
    *,
    per_prompt: bool | Int[np.ndarray, "neuron index"] = False,
    batch_size: int = 16,
    threshold: float = 0.0,
    progress: bool = True,
    backend: Backend = "auto",
    at_decision: AtDecision | None = None,
) -> NeuronActivations:
    """Mean, variance, mean |a| and firing rate of every neuron over the chosen positions of the chats.

    Args:
        model: the model; active taps (ablations) apply.
        chats: rendered chats, with the tokens of the response where this is what is measured.
        positions: as in `rim_lens.chat.positions`.
        per_prompt: also keep each prompt's mean a and mean |a|: of all neurons (True: memory prompts × neurons), or of
            the given ones, rows (layer, unit) or (layer, expert, unit).
        batch_size: chats per pass.
        threshold: a neuron fires where its activation is above this.
        progress: show a progress bar when it takes long.
        backend: how dense models are read; "auto" takes the fast way where there is one.
        at_decision: called after each pass with its prompts' indices and their logits at the decision position, so that
            what is computed from these costs no pass of its own.

    Raises:
        RimLensError: a chat has no token at `positions`, the model's neurons cannot be read, or its layers differ in
            width.

    """
    chats = as_chats(model, chats)
    reader = NeuronReader(model, len(chats), per_prompt, threshold)
    _read(model, chats, reader, positions, batch_size, backend, progress, at_decision)
    return finished(model, reader, positions)


@halves_batches
def values_to_put(
    model: LensModel, chats: Prompts, positions: Positions, *, per_prompt: bool = False, batch_size: int = 16
) -> Float[Tensor, "... d_mlp"]:
    """What an ablation puts in place of neurons: their means over the positions of all chats, or of each chat.

    The mean of a neuron of an expert is over the tokens sent to the expert, not weighted; 0 where none was sent.
    """
    chats = as_chats(model, chats)
    reader = NeuronReader(model, len(chats), per_prompt, 0.0, weighted=False)
    _read(model, chats, reader, positions, batch_size, "auto")
    return reader.means_per_prompt() if per_prompt else reader.moments.summed().mean.float().cpu()


def _read(
    model: LensModel,
    chats: Sequence[Chat],
    reader: NeuronReader,
    positions: Positions,
    batch_size: int,
    backend: Backend,
    progress: bool = False,
    at_decision: AtDecision | None = None,
) -> None:
    """Run the chats of this process under the reader."""
    chosen = [places(chat, positions) for chat in chats]
    for number, where in enumerate(chosen):
        if not where.any():
            raise RimLensError(
                f"Chat {number} has no token at positions {positions!r}; give chats with that part (a response is "
                "added by ChatFormat.render(response=...) or generate), or choose other positions."
            )
    if not chats:
        raise RimLensError("Neuron activations need at least one chat.")
    total = math.ceil(len(chats) / batch_size / n_processes())
    batches = model.shared_batches(chats, batch_size)  # made one by one: memory does not grow with their number
    with torch.no_grad(), model.tap(reader, backend=backend):
        for prompts, batch in track(batches, "reading neurons", total) if progress else batches:
            reader.begin(batch, prompts, [chosen[prompt] for prompt in prompts])
            if at_decision is None:
                run_decoder(model, batch)
            else:
                at_decision(prompts, model.decision_logits(batch))


def finished(model: LensModel, reader: NeuronReader, positions: Positions) -> NeuronActivations:
    """Everything the processes accumulated, as one result."""
    moments, tokens, sums = reader.merged()
    per_token = {}
    if sums is not None:
        each = tokens.reshape(-1, *[1] * (sums.signed.ndim - 1))
        per_token = {"prompt_mean": sums.signed / each, "prompt_magnitude": sums.absolute / each}
    return NeuronActivations(
        positions=words_of(positions),
        n_tokens=int(tokens.sum()),
        threshold=reader.threshold,
        prompt_tokens=tokens.astype(np.int64),
        **{name: as_array(getattr(moments, source)) for name, source in MOMENTS.items()},
        **{name: value.astype(np.float32) for name, value in per_token.items()},
        prompt_neurons=reader.wanted,
        manifest=Manifest.collect(model, positions=words_of(positions)),
    )


def as_array(value: Tensor) -> Float[np.ndarray, "..."]:
    """Float32 on the CPU."""
    return value.float().cpu().numpy()


def run_decoder(model: LensModel, batch: Batch) -> None:
    """One pass for its taps alone: through the decoder, without the unembedding where that can be left out."""
    if model.hf is None or any(tap.backend == "hooks" for tap in model.active_taps):
        model.decision_logits(batch)
        return
    with model.during(batch):
        output = model.hf.base_model(batch.tokens, **model.hf_inputs(batch.mask, batch.positions), use_cache=False)
    check_finite(model, batch, output.last_hidden_state, batch.mask)
