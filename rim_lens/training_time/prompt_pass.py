"""One pass over prompts for all that is measured at a checkpoint: neurons, decision logits, attention of every head.

The pass can keep its KV cache (`PromptCache`), so that heads or neurons are ablated at the decision position afterwards
at the price of one token per run; tokens that all prompts begin with are computed once where no measured position is
among them.
"""

import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from rim_lens.capture.attention import MassTap
from rim_lens.capture.neuron_activations import NeuronActivations
from rim_lens.capture.neuron_readers import NeuronReader
from rim_lens.capture.neurons import AtDecision, finished
from rim_lens.chat.chat import Chat
from rim_lens.chat.positions import Positions, places
from rim_lens.chat.segments import SEGMENTS
from rim_lens.errors import RimLensError
from rim_lens.model.batch import Batch
from rim_lens.model.decode import rows_that_fit
from rim_lens.model.fitting import halves_batches, out_of_memory
from rim_lens.model.lens_model import LensModel
from rim_lens.model.prompt_cache import PromptCache, can_prefill, prefilled, prefilling_pass
from rim_lens.model.shared_prefix import prefix_first, shared_length
from rim_lens.processes import share, sum_over_processes


@dataclass(frozen=True, eq=False)
class PromptPass:
    """What one pass over prompts gave. `attention` is the mass from the decision position to each segment."""

    neurons: NeuronActivations
    attention: Float[np.ndarray, "prompt layer head segment"] | None = None
    kept: Sequence[PromptCache] = ()  # of this process's prompts; empty where the model allows none


def pass_over(
    model: LensModel,
    chats: Sequence[Chat],
    positions: Positions,
    *,
    per_prompt: bool | Int[np.ndarray, "neuron index"] = False,
    batch_size: int = 16,
    attention: bool = False,
    keep: bool = False,
    at_decision: AtDecision | None = None,
) -> PromptPass:
    """Measure chats in one pass over each batch; where memory runs out, nothing is kept, and batches are halved.

    Args:
        model: the model; other active taps apply.
        chats: rendered chats.
        positions: where neurons are measured, as for `neuron_activations`.
        per_prompt: as for `neuron_activations`.
        batch_size: chats per pass.
        attention: also read every head's attention from the decision position.
        keep: also keep what runs from the decision position on need, if half of the free memory holds it.
        at_decision: called with the indices and decision logits of each batch, again for those of a pass that starts
            over.

    Raises:
        RimLensError: a chat without a token at `positions`, neurons that cannot be read, or a single chat that does not
            fit into memory.
    """
    options: Any = {"per_prompt": per_prompt, "attention": attention, "at_decision": at_decision}
    if keep and 2 * len(chats) <= rows_that_fit(model, max(map(len, chats), default=1)):
        try:
            return prompt_pass(model, chats, positions, batch_size=batch_size, keep=True, **options)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            reason = str(error).splitlines()[0][:160]
        warnings.warn(
            f"pass_over: what runs from the decision position of {len(chats)} prompts need does not fit into memory "
            f"({reason}); it is computed anew, a batch at a time.",
            stacklevel=2,
        )
    return halves_batches(prompt_pass)(model, chats, positions, batch_size=batch_size, **options)


def prompt_pass(
    model: LensModel,
    chats: Sequence[Chat],
    positions: Positions,
    *,
    per_prompt: bool | Int[np.ndarray, "neuron index"] = False,
    batch_size: int = 16,
    attention: bool = False,
    keep: bool = False,
    at_decision: AtDecision | None = None,
) -> PromptPass:
    """`pass_over` with what fits into memory."""
    chosen = [places(chat, positions) for chat in chats]
    empty = [number for number, where in enumerate(chosen) if not where.any()]
    if empty or not chats:
        raise RimLensError(
            f"{len(empty) or 'All'} chats have no token at positions {positions!r}; choose other positions."
        )
    mine = share(len(chats), [len(chat) for chat in chats])
    reader = NeuronReader(model, len(chats), per_prompt, 0.0)
    masses = np.zeros((len(chats), model.n_layers, model.n_heads, len(SEGMENTS))) if attention else None
    tap, caches = MassTap("decision"), []
    batches = [
        ([mine[row] for row in rows], batch)
        for rows, batch in (model.batches([chats[i] for i in mine], batch_size) if mine else ())
    ]
    laid = [laid_out(model, batch, [chosen[i] for i in prompts]) for prompts, batch in batches]
    with torch.no_grad(), ExitStack() as stack:
        stack.enter_context(model.tap(reader))
        if attention:
            stack.enter_context(model.tap(tap))
        for (prompts, _), (batch, shared) in zip(batches, laid, strict=True):
            begin(reader, batch, shared, prompts, [chosen[i] for i in prompts])
            if can_prefill(model, batch):
                logits, cache = prefilling_pass(model, batch, shared)
                if keep:
                    caches.append(prefilled(model, prompts, batch, cache))
            else:
                logits = model.decision_logits(batch)
            if at_decision is not None:
                at_decision(prompts, logits)
            if masses is not None:
                for layer, mass in tap.mass.items():
                    masses[prompts, layer] = mass.cpu().numpy()
    if masses is not None:
        masses = sum_over_processes(torch.from_numpy(masses)).numpy()
    return PromptPass(finished(model, reader, positions), masses, caches if len(caches) == len(batches) else ())


def laid_out(model: LensModel, batch: Batch, chosen: Sequence[Any]) -> tuple[Batch, int]:
    """The batch with the tokens that all rows share in front, and their number; 0 where they must stay."""
    length = shared_length(model, batch) if can_prefill(model, batch) else 0
    length = min([length, *(int(where.argmax()) for where in chosen)])  # nothing measured is shared
    return (prefix_first(batch, length), length) if length else (batch, 0)


def begin(reader: NeuronReader, batch: Batch, shared: int, prompts: Sequence[int], chosen: Sequence[Any]) -> None:
    """Tell the reader which columns the pass will show it."""
    cut = replace(batch, tokens=batch.tokens[:, shared:], mask=batch.mask[:, shared:]) if shared else batch
    reader.begin(cut, prompts, [where[shared:] for where in chosen])
