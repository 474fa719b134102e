"""What does not fit into memory together is measured half as much at once, through accelerate's helper.

halves_batches    a measurement with a `batch_size` starts over with half of it; for what accumulates while a pass runs
AtOnce, over_batches    work on many items goes on where it was with half as many at once; nothing that was done is done
again

Batches come longest first, so that a lack of memory shows early. Only running out of memory is met so; what fits is
said in a warning, and one item that does not fit is an error.
"""

import functools
import inspect
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import torch

from rim_lens.chat.chat import Chat
from rim_lens.errors import RimLensError
from rim_lens.model.batch import Batch
from rim_lens.processes import share

if TYPE_CHECKING:
    from rim_lens.model.lens_model import LensModel

P = ParamSpec("P")
T = TypeVar("T")
Item = TypeVar("Item")


def halves_batches(measure: Callable[P, T]) -> Callable[P, T]:
    """A measurement with a `batch_size` that is halved until a batch fits.

    Raises:
        RimLensError: a single prompt does not fit.
    """
    signature = inspect.signature(measure)

    @functools.wraps(measure)
    def fitted(*args: P.args, **options: P.kwargs) -> T:
        try:
            bound = signature.bind(*args, **options)
        except TypeError:
            return measure(*args, **options)  # whose own message names it
        bound.apply_defaults()

        def run(batch_size: int) -> T:
            bound.arguments["batch_size"] = batch_size
            return measure(*bound.args, **bound.kwargs)

        return AtOnce(int(bound.arguments["batch_size"]), measure.__name__).try_with(run)

    return fitted


class AtOnce:
    """How many items are worked on together; halved for good when memory runs out.

    `inside` another one: where a single item does not fit, the lack of memory is raised as it is, so that the other,
    which holds more, gives way.
    """

    def __init__(self, size: int, what: str, unit: str = "prompts", *, inside: bool = False) -> None:
        self.size, self.what, self.unit, self.inside = size, what, unit, inside

    def parts(self, items: Sequence[Item], work: Callable[[Sequence[Item]], T], most: int = sys.maxsize) -> Iterator[T]:
        """What `work` gives for some items at a time, in order, at most `most` of them.

        Raises:
            RimLensError: a single item does not fit.
        """
        start = 0
        while start < len(items):
            here, taken = start, 0

            def run(size: int, here: int = here) -> T:
                nonlocal taken
                taken = size
                return work(items[here : here + size])

            found = self.try_with(run, min(most, len(items) - start))
            start += taken
            yield found

    def try_with(self, run: Callable[[int], T], most: int = sys.maxsize) -> T:
        """What `run` gives for the largest number that fits: this one (or `most`), half of it, and so on."""
        asked = size = min(self.size, most)
        try:
            return run(asked)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            reason = str(error).splitlines()[0]
        # outside of the handler, whose traceback would hold what the failed try had allocated

        def half() -> int:
            nonlocal size
            size //= 2
            return size

        from accelerate.utils import find_executable_batch_size

        @find_executable_batch_size(starting_batch_size=half(), reduce_batch_size_fn=half)
        def again(batch_size: int) -> T:
            return run(batch_size)

        try:
            found = again()
        except RuntimeError as error:
            if size > 0:
                raise
            if self.inside:
                raise torch.OutOfMemoryError(reason) from error
            raise RimLensError(
                f"Not even one of the {self.unit} fits into memory in {self.what} ({reason[:160]}); shorten the "
                "prompts, or use a smaller dtype, a device with more memory or device_map."
            ) from error
        self.size = size
        warnings.warn(
            f"{self.what}: {asked} {self.unit} together do not fit into memory ({reason[:160]}); went on with {size} "
            "at once.",
            stacklevel=3,
        )
        return found


def out_of_memory(error: BaseException) -> bool:
    """Whether this is a device's or the CPU's refusal of memory."""
    from accelerate.utils.memory import should_reduce_batch_size

    return isinstance(error, Exception) and should_reduce_batch_size(error)


def over_batches(
    model: "LensModel",
    chats: Sequence[Chat],
    batch_size: int,
    work: Callable[[list[int], Batch], T],
    what: str,
    *,
    split: bool = True,
) -> Iterator[T]:
    """What `work` gives for batches of chats of like length, longest first, called with their indices and the batch.

    With `split` only the chats that fall to this process. `work` may be called again for a part of the chats that it
    failed on, so it must leave nothing behind when it fails.

    Raises:
        RimLensError: a batch size below 1, or a single chat that does not fit.
    """
    if batch_size < 1:
        raise RimLensError(f"batch_size must be at least 1, got {batch_size}.")
    mine = share(len(chats), [len(chat) for chat in chats]) if split else range(len(chats))
    order = sorted(mine, key=lambda index: -len(chats[index]))

    def batched(some: Sequence[int]) -> T:
        return work(list(some), model.batch([chats[index] for index in some]))

    return AtOnce(batch_size, what).parts(order, batched)
