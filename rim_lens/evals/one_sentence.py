"""What the user can mend is one sentence in the shell under `inspect eval` too, not a traceback."""

from collections.abc import Iterator
from contextlib import contextmanager

from inspect_ai._util.error import PrerequisiteError  # what Inspect prints as its message alone
from rich.markup import escape

from rim_lens.errors import RimLensError


class EvalError(RimLensError, PrerequisiteError):
    """A RimLensError that Inspect shows as a sentence."""

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence)
        self.message = escape(sentence)  # Inspect reads rich's markup in it


@contextmanager
def one_sentence() -> Iterator[None]:
    """RimLensErrors of the block as `EvalError`."""
    try:
        yield
    except EvalError:
        raise
    except RimLensError as error:
        raise EvalError(str(error)) from error
