"""Activations of a few neurons at every token of every chat, recorded in whatever passes are run inside a block.

    with record_neurons(model, neurons) as seen:
        ...                       # passes over batches of chats
    seen.of(chat)                 # [pos, neuron]

A neuron of an expert counts with its routing probability, and as 0 at tokens that were not sent to its expert.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from rim_lens.chat.chat import Chat
from rim_lens.errors import RimLensError
from rim_lens.model.batch import Batch
from rim_lens.model.lens_model import LensModel
from rim_lens.model.mixture_layers import checked_neurons
from rim_lens.model.taps import Backend, ExpertCall, Pass, Tap


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


class NeuronRecorder(Tap):
    """Writes the values of some neurons in the running pass to the tokens they belong to."""

    def __init__(self, neurons: Int[np.ndarray, "neuron index"]) -> None:
        self.neurons, self.seen = neurons, NeuronValues(len(neurons))
        self.layers = frozenset(neurons[:, 0].tolist())
        self.rows: list[Float[np.ndarray, "pos neuron"]] = []
        self.token: Int[np.ndarray, "row pos"] = np.empty((0, 0), dtype=int)

    def on_pass(self, here: Pass) -> None:
        """Find the token of each column, −1 for padding; neurons of experts are 0 until their expert is called."""
        super().on_pass(here)
        batch = here.known_batch("recording neurons")
        mask = batch.mask.cpu().numpy()
        self.rows = self.seen.rows_of(batch)
        self.token = np.where(mask, mask.cumsum(1) - 1, -1)[:, here.start : here.stop]
        for row_values, token in zip(self.rows, self.token, strict=True):
            row_values[token[token >= 0]] = 0

    def on_neurons(self, layer: int, post: Float[Tensor, "row pos d_mlp"]) -> None:
        """Keep this layer's neurons."""
        columns = np.flatnonzero(self.neurons[:, 0] == layer)
        values = post[:, :, self.neurons[columns, 1].tolist()].float().cpu().numpy()
        for row_values, token, mine in zip(self.rows, self.token, values, strict=True):
            row_values[np.ix_(token[token >= 0], columns)] = mine[token >= 0]

    def on_expert(self, call: ExpertCall, post: Float[Tensor, "slot d_mlp"]) -> None:
        """Keep the neurons of this expert at the tokens that were sent to it."""
        columns = np.flatnonzero((self.neurons[:, 0] == call.layer) & (self.neurons[:, 1] == call.expert))
        if not len(columns):
            return
        weighted = post[:, self.neurons[columns, 2].tolist()].float() * call.weight[:, None].float()
        tokens = self.token.reshape(-1)[call.token.cpu().numpy()]
        for row, token, values in zip(call.row.tolist(), tokens.tolist(), weighted.cpu().numpy(), strict=True):
            if token >= 0:
                self.rows[row][token, columns] = values


@contextmanager
def record_neurons(
    model: LensModel, neurons: Int[np.ndarray, "neuron index"], backend: Backend = "auto"
) -> Iterator[NeuronValues]:
    """Record the activations of `neurons`, rows (layer, unit) or (layer, expert, unit), in every pass inside the block.

    Raises:
        RimLensError: a neuron that the model does not have, or neurons that cannot be read.
    """
    recorder = NeuronRecorder(checked_neurons(model, neurons))
    with model.tap(recorder, backend=backend):
        yield recorder.seen
