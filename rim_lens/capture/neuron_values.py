"""Activations of a few neurons at every token of every chat, recorded in whatever passes are run inside a block.

    with record_neurons(model, neurons) as seen:
        ...                       # passes over batches of chats
    seen.of(chat)                 # [pos, neuron]

A neuron of an expert counts with its routing probability, and as 0 at tokens that were not sent to its expert.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from rim_lens.capture.experts import ExpertCall, ExpertTap, expert_taps
from rim_lens.capture.mixture_layers import checked_neurons
from rim_lens.chat.chat import Chat
from rim_lens.errors import RimLensError
from rim_lens.model.batch import Batch
from rim_lens.model.lens_model import LensModel
from rim_lens.model.taps import Backend, Pass, Tap


class NeuronValues:
    """What was recorded; tokens that no pass showed are NaN."""

    def __init__(self, n_neurons: int) -> None:
        self.n_neurons = n_neurons
        self._values: dict[int, tuple[Chat, Float[np.ndarray, "pos neuron"]]] = {}

    def of(self, chat: Chat) -> Float[np.ndarray, "pos neuron"]:
        """The values of one chat, the very object that was run.

        Raises:
            RimLensError: it was not run while neurons were recorded.
        """
        if id(chat) not in self._values:
            raise RimLensError(f"The chat {chat.request[:40]!r} was not run while its neurons were recorded.")
        return self._values[id(chat)][1]

    def rows_of(self, batch: Batch) -> list[Float[np.ndarray, "pos neuron"]]:
        """Where the values of each row of a batch go."""
        for chat in batch.chats:
            blank = np.full((len(chat), self.n_neurons), np.nan, dtype=np.float32)
            self._values.setdefault(id(chat), (chat, blank))
        return [self._values[id(chat)][1] for chat in batch.chats]


class _Recorder:
    """Writes values at the columns of the running pass to the tokens they belong to."""

    def __init__(self, neurons: Int[np.ndarray, "neuron index"]) -> None:
        self.neurons, self.seen = neurons, NeuronValues(len(neurons))

    def write(self, here: Pass, columns: Int[np.ndarray, " neuron"], values: Float[Tensor, "row pos neuron"]) -> None:
        """Keep the values of some of the neurons at every real column of a pass."""
        batch = here.known_batch("recording neurons")
        mask, numbers = batch.mask.cpu().numpy(), values.float().cpu().numpy()
        for row, row_values in enumerate(self.seen.rows_of(batch)):
            token = mask[row].cumsum() - 1  # of each column
            inside = np.flatnonzero(mask[row, here.start : here.stop])
            row_values[np.ix_(token[here.start + inside], columns)] = numbers[row, inside]


class _DenseRecorder(Tap):
    def __init__(self, recorder: _Recorder) -> None:
        self.recorder = recorder
        self.layers = frozenset(recorder.neurons[:, 0].tolist())

    def on_neurons(self, layer: int, post: Float[Tensor, "row pos d_mlp"]) -> None:
        """Keep this layer's neurons."""
        assert self.here is not None
        columns = np.flatnonzero(self.recorder.neurons[:, 0] == layer)
        units = torch.from_numpy(self.recorder.neurons[columns, 1]).to(post.device)
        self.recorder.write(self.here, columns, post[:, :, units])


class _ExpertRecorder(Tap, ExpertTap):
    """Attached to the pass as a tap and to the experts as an expert tap."""

    def __init__(self, recorder: _Recorder) -> None:
        self.recorder = recorder

    def on_pass(self, here: Pass) -> None:
        """Neurons are 0 until their expert is called."""
        super().on_pass(here)
        everything = np.arange(len(self.recorder.neurons))
        self.recorder.write(here, everything, torch.zeros(here.n_rows, here.n_queries, len(everything)))

    def on_residual(self, layer: int, resid: Tensor) -> None:
        """Read nothing: a tap without a site would not be told of passes."""

    def on_expert(self, call: ExpertCall, post: Float[Tensor, "slot d_mlp"]) -> None:
        """Keep the neurons of this expert at the tokens that were sent to it."""
        assert self.here is not None
        here, neurons = self.here, self.recorder.neurons
        columns = np.flatnonzero((neurons[:, 0] == call.layer) & (neurons[:, 1] == call.expert))
        if not len(columns):
            return
        units = torch.from_numpy(neurons[columns, 2]).to(post.device)
        rows = self.recorder.seen.rows_of(here.known_batch("recording neurons"))
        mask = here.known_batch("recording neurons").mask.cpu().numpy()
        values = (post[:, units].float() * call.weight[:, None].float()).cpu().numpy()
        for slot, token in enumerate(call.token.tolist()):
            row, column = divmod(token, here.n_queries)
            if mask[row, here.start + column]:
                rows[row][mask[row, : here.start + column].sum(), columns] = values[slot]


@contextmanager
def record_neurons(
    model: LensModel, neurons: Int[np.ndarray, "neuron index"], backend: Backend = "auto"
) -> Iterator[NeuronValues]:
    """Record the activations of `neurons`, rows (layer, unit) or (layer, expert, unit), in every pass inside the block.

    Raises:
        RimLensError: a neuron that the model does not have, or neurons that cannot be read.
    """
    recorder = _Recorder(checked_neurons(model, neurons))
    if not model.is_moe:
        with model.tap(_DenseRecorder(recorder), backend=backend):
            yield recorder.seen
        return
    tap = _ExpertRecorder(recorder)
    with model.tap(tap, backend=backend), expert_taps(model, tap):
        yield recorder.seen
