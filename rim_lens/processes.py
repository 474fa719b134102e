"""Several processes measuring one thing: prompts are split, what they found is brought together, one process writes.

Under `accelerate launch` or `torchrun` every process runs the same script, each with a model of its own. Splitting
happens in the innermost loop over items (batches of prompts, questions to a judge), and what comes out of that loop is
the same on all processes, so that everything above runs unchanged:

    mine = share(len(items), costs)             the indices of this process's items
    all_rows(values, mine)                      numbers: rows computed here and elsewhere, in the items' order
    gather_items(len(items), mine, found)       anything else, in the items' order
    sum_over_processes(accumulator)             sums
    once(write)                                 for what only one process may do

With one process each of them is the identity. What travels is small and travels through main memory (gloo), on machines
with accelerators too.
"""

import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from rim_lens.errors import RimLensError

PATIENCE = timedelta(hours=2)  # generation on one process may be much longer than on another
_groups: dict[Any, Any] = {}  # the default process group -> the one that this module talks over

T = TypeVar("T")
Rows = TypeVar("Rows", np.ndarray, Tensor)


def join() -> bool:
    """Whether this is one of several processes; the first call joins the group that the launcher announced.

    Each process then has the accelerator of its place on the machine as its current one.
    """
    if not dist.is_available():
        return False
    if not dist.is_initialized() and int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ:
        if torch.cuda.is_available():  # a launcher may also have hidden the others' accelerators
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        dist.init_process_group("gloo", timeout=PATIENCE)
    return dist.is_initialized() and dist.get_world_size() > 1


def _group() -> Any:
    """The group of all processes over gloo; one made for that where the script has set up another kind."""
    default = dist.group.WORLD
    if default not in _groups:
        _groups[default] = default if dist.get_backend() == "gloo" else dist.new_group(backend="gloo", timeout=PATIENCE)
    return _groups[default]


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if join() else 0


def n_processes() -> int:
    """How many processes work together."""
    return dist.get_world_size() if join() else 1


def is_writer() -> bool:
    """Whether this process writes files: the first one does."""
    return rank() == 0


def once(action: Callable[[], T]) -> T:
    """What `action` returns in the writing process, which alone runs it.

    The others wait for it and fail where it fails.
    """
    if not join():
        return action()
    outcome: list[Any] = [None, None]
    failure: Exception | None = None
    if is_writer():
        try:
            outcome[0] = action()
        except Exception as error:  # raised below, after the others were told
            failure, outcome[1] = error, str(error)
    dist.broadcast_object_list(outcome, src=0, group=_group())
    if failure is not None:
        raise failure
    if outcome[1] is not None:
        raise RimLensError(outcome[1])
    return outcome[0]


def share(n_items: int, costs: Sequence[int] | None = None) -> list[int]:
    """Indices of the items that this process works on; every item falls to exactly one process.

    With `costs` (token counts, say) items are dealt in order of cost, back and forth, so that shares cost alike.
    """
    order = list(range(n_items)) if costs is None else sorted(range(n_items), key=lambda item: -costs[item])
    size, mine = n_processes(), rank()
    dealt = [item for turn, item in enumerate(order) if _hand(turn, size) == mine]
    return sorted(dealt)


def _hand(turn: int, size: int) -> int:
    """Who gets the item of a turn when dealing 0 1 2 2 1 0 0 1 2 ..."""
    lap, place = divmod(turn, size)
    return place if lap % 2 == 0 else size - 1 - place


def sum_over_processes(value: Tensor) -> Tensor:
    """The sum of every process's `value`, on all of them; same shape and dtype everywhere."""
    if not join():
        return value
    on_wire = value.detach().to("cpu", copy=True).contiguous()
    dist.all_reduce(on_wire, group=_group())
    return on_wire.to(value.device)


def all_rows(values: Rows, mine: Sequence[int]) -> Rows:
    """`values` with every row, where this process computed the rows `mine`; what its other rows hold does not count."""
    if not join():
        return values
    whole = torch.zeros_like(torch.as_tensor(values))
    whole[list(mine)] = torch.as_tensor(values)[list(mine)]
    summed = sum_over_processes(whole)
    return summed.numpy() if isinstance(values, np.ndarray) else summed


def fill_rows(n_rows: int, mine: Sequence[int], rows: np.ndarray) -> np.ndarray:
    """All `n_rows` rows in order, where `rows` are this process's rows `mine`; numbers only."""
    whole = np.zeros((n_rows, *rows.shape[1:]), dtype=rows.dtype)
    whole[list(mine)] = rows
    return all_rows(whole, mine)


def gather_items(n_items: int, mine: Sequence[int], items: Sequence[T]) -> list[T]:
    """All `n_items` items in order, where `items` are this process's items `mine`; any plain Python values."""
    if not join():
        whole = dict(zip(mine, items, strict=True))
        return [whole[index] for index in range(n_items)]
    parts: list[dict[int, T] | None] = [None] * n_processes()
    dist.all_gather_object(parts, dict(zip(mine, items, strict=True)), group=_group())
    whole = {index: item for part in parts for index, item in (part or {}).items()}
    return [whole[index] for index in range(n_items)]
