"""Batches that do not fit into memory: the measurement starts over with half the batch size, through accelerate's helper.

Batches come longest first, so that little was done in vain. Only running out of memory is met so; the size that fits is said
in a warning, and one prompt that does not fit is an error.
"""

import functools
import inspect
import warnings
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from rim_lens.errors import RimLensError

P = ParamSpec("P")
T = TypeVar("T")


def halves_batches(measure: Callable[P, T]) -> Callable[P, T]:
    """A measurement with a `batch_size` that is halved until a batch fits.

    Raises:
        RimLensError: a single prompt does not fit.
    """
    signature = inspect.signature(measure)

    @functools.wraps(measure)
    def fitted(*args: P.args, **options: P.kwargs) -> T:
        try:
            return measure(*args, **options)
        except RuntimeError as error:
            from accelerate.utils.memory import should_reduce_batch_size

            if not should_reduce_batch_size(error):
                raise
            reason = str(error).splitlines()[0][:160]
        bound = signature.bind(*args, **options)
        bound.apply_defaults()
        return _smaller(measure, bound, reason)

    return fitted


def _smaller(measure: Callable[..., T], bound: inspect.BoundArguments, reason: str) -> T:
    from accelerate.utils import find_executable_batch_size

    asked = size = int(bound.arguments["batch_size"])

    def half() -> int:
        nonlocal size
        size //= 2
        return size

    @find_executable_batch_size(starting_batch_size=half(), reduce_batch_size_fn=half)
    def run(batch_size: int) -> T:
        bound.arguments["batch_size"] = batch_size
        return measure(*bound.args, **bound.kwargs)

    try:
        found = run()
    except RuntimeError as error:
        if size > 0:
            raise
        raise RimLensError(
            f"Not even one prompt fits into memory in {measure.__name__} ({reason}); shorten the prompts, or use a smaller "
            "dtype, a device with more memory or device_map."
        ) from error
    warnings.warn(
        f"{measure.__name__}: {asked} prompts together do not fit into memory ({reason}); measured with batch_size={size}.",
        stacklevel=3,
    )
    return found
