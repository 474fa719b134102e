"""Attaching taps to a model: which backend serves the open blocks, and putting everything back when a block is left."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from rim_lens.errors import RimLensError
from rim_lens.model import taps_fast, taps_hooks
from rim_lens.model.taps import Backend, Tap

if TYPE_CHECKING:
    from rim_lens.model.lens_model import LensModel


class _Attached:
    """What is attached to one model: open blocks with their taps, and how to undo what they installed."""

    def __init__(self) -> None:
        self.blocks: list[tuple[Sequence[Tap], Backend]] = []
        self.installed = ExitStack()
        self.installing = False  # between taking off and putting on, when nothing is on the model


_ATTACHED: WeakKeyDictionary[Any, _Attached] = WeakKeyDictionary()


@contextmanager
def attached(model: "LensModel", taps: Sequence[Tap], backend: Backend = "auto") -> Iterator["LensModel"]:
    """Attach `taps` for the time of a block; see `LensModel.tap`.

    Backend "auto" is "fast" where the model is a transformers model, else "hooks". Of nested blocks the latest explicit
    choice holds for all attached taps while it is open.

    Raises:
        RimLensError: the backend cannot serve the model, a layer has no such site, or a tap is attached already.

    """
    state = _ATTACHED.setdefault(model, _Attached())
    block = (tuple(taps), backend)
    try:
        if any(tap in model.active_taps for tap in taps):
            raise RimLensError("this tap is attached already: make a second one for a nested block.")
        state.blocks.append(block)
        _install(model, state)
        yield model
    finally:
        # By identity: blocks may be left in any order and must remove only themselves.
        state.blocks[:] = [other for other in state.blocks if other is not block]
        _install(model, state)
        if not state.blocks:
            _ATTACHED.pop(model, None)


@contextmanager
def detached(model: "LensModel") -> Iterator[None]:
    """Take all taps off for the time of a block, so that the module tree can be copied without them."""
    state = _ATTACHED.get(model)
    if state is None or state.installing:
        yield
        return
    state.installed.close()
    try:
        yield
    finally:
        _install(model, state)


def _install(model: "LensModel", state: _Attached) -> None:
    """Take everything off the model, then put on what the open blocks want."""
    state.installed.close()
    model.active_taps = taps = [tap for block, _ in state.blocks for tap in block]
    if not taps:
        return
    chosen = [backend for _, backend in state.blocks if backend != "auto"]
    backend = chosen[-1] if chosen else ("fast" if taps_fast.serves(model) else "hooks")
    if backend == "fast" and not taps_fast.serves(model):
        raise RimLensError(
            f'{model.name} cannot be read with backend="fast": it is not a transformers model whose attention goes '
            'through AttentionInterface; use backend="hooks".'
        )
    for tap in taps:
        tap.backend = backend  # type: ignore[assignment]
    install = taps_fast.install if backend == "fast" else taps_hooks.install
    state.installing = True
    try:
        with ExitStack() as stack:
            install(model, taps, stack)
            state.installed = stack.pop_all()
    finally:
        state.installing = False
