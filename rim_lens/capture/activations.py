"""Residual stream and head outputs at chosen positions."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from rim_lens.capture.passes import passes
from rim_lens.capture.positions import Columns, columns_of, most_positions
from rim_lens.chat.chat import Chat
from rim_lens.chat.positions import Positions
from rim_lens.model.as_chats import as_chats
from rim_lens.model.fitting import halves_batches
from rim_lens.model.lens_model import LensModel
from rim_lens.model.requests import Prompts
from rim_lens.model.taps import Backend, Pass, Tap
from rim_lens.processes import all_rows, sum_over_processes


@halves_batches
def residuals(
    model: LensModel,
    chats: Prompts,
    positions: Positions = "decision",
    *,
    batch_size: int = 16,
    backend: Backend = "auto",
) -> Float[Tensor, "prompt depth position d_model"]:
    """Residual stream entering every layer and, as the last depth, after the last block; float32 on the CPU.

    NaN where a chat has fewer positions than the one with the most.
    """
    chats = as_chats(model, chats)
    shape = (model.n_layers + 1, most_positions(chats, positions), model.d_model)
    return _gathered(model, chats, ResidualTap(positions), shape, batch_size, backend, "residual stream")


@halves_batches
def head_outputs(
    model: LensModel,
    chats: Prompts,
    positions: Positions = "decision",
    *,
    batch_size: int = 16,
    backend: Backend = "auto",
) -> Float[Tensor, "prompt layer position head d_head"]:
    """Output of every head (`hook_z`); float32 on the CPU.

    NaN for layers without attention and where a chat has fewer positions than the one with the most.
    """
    chats = as_chats(model, chats)
    shape = (model.n_layers, most_positions(chats, positions), model.n_heads, model.d_head)
    return _gathered(model, chats, HeadOutputTap(positions), shape, batch_size, backend, "head outputs")


@halves_batches
def mean_head_outputs(
    model: LensModel,
    chats: Prompts,
    positions: Positions = "all",
    *,
    batch_size: int = 16,
    backend: Backend = "auto",
) -> Float[Tensor, "layer head d_head"]:
    """Mean output of every head over all the positions of all the chats, float32 on the CPU.

    Nothing is stored per token.
    """
    chats = as_chats(model, chats)
    total = torch.zeros(model.n_layers, model.n_heads, model.d_head, dtype=torch.float64)
    count = torch.zeros((), dtype=torch.float64)
    tap = HeadOutputTap(positions)
    for _ in passes(model, chats, tap, batch_size=batch_size, backend=backend, description="mean head outputs"):
        count += int(tap.columns.real.sum())
        for layer, z in tap.read.items():
            total[layer] += z[tap.columns.real].double().sum(dim=0).cpu()
    return (sum_over_processes(total) / sum_over_processes(count)).float()


class _ActivationTap(Tap):
    """Reads chosen positions of the latest pass into `read[layer]`, [row, position, ...]."""

    def __init__(self, positions: Positions) -> None:
        self.positions = positions
        self.read: dict[int, Tensor] = {}
        self.columns: Columns

    def on_pass(self, here: Pass) -> None:
        """Find the positions in this batch."""
        super().on_pass(here)
        self.read = {}
        self.columns = columns_of(here.known_batch("reading activations"), self.positions).to(here.device)

    def _keep(self, layer: int, values: Float[Tensor, "row pos *rest"]) -> None:
        row = torch.arange(len(values), device=values.device)[:, None]
        self.read[layer] = values[row, self.columns.index.to(values.device)].float()


class ResidualTap(_ActivationTap):
    """Residual stream at chosen positions."""

    def on_residual(self, layer: int, resid: Float[Tensor, "row pos d_model"]) -> None:
        """Keep the chosen positions."""
        self._keep(layer, resid)


class HeadOutputTap(_ActivationTap):
    """Head outputs at chosen positions."""

    def on_head_output(self, layer: int, z: Float[Tensor, "row pos head d_head"]) -> None:
        """Keep the chosen positions."""
        self._keep(layer, z)


def _gathered(
    model: LensModel,
    chats: Sequence[Chat],
    tap: _ActivationTap,
    shape: tuple[int, ...],
    batch_size: int,
    backend: Backend,
    description: str,
) -> Tensor:
    gathered, order = torch.full((len(chats), *shape), torch.nan), list[int]()
    for indices, _ in passes(model, chats, tap, batch_size=batch_size, backend=backend, description=description):
        real = tap.columns.real.cpu()
        for layer, values in tap.read.items():
            spread = (...,) + (None,) * (values.ndim - 2)
            gathered[indices, layer, : values.shape[1]] = torch.where(real[spread], values.cpu(), torch.nan)
        order += indices
    return all_rows(gathered, order)
