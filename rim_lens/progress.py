"""Progress on stderr for anything that may take more than two seconds.

In a terminal and in a notebook: tqdm's bars with the time left, gone when their loop ends. Elsewhere (logs, pipes): one
line once a loop has run for two seconds and one line when it ends. Quick loops print nothing.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import TypeVar

T = TypeVar("T")
_QUIET_SECONDS = 2.0
_silent = [False]


def track(
    items: Iterable[T], description: str, total: int | None = None, *, note: Callable[[], str] | None = None
) -> Iterator[T]:
    """Yields the items unchanged and shows how far the loop is; ``total`` only where ``items`` has no length.

    ``note`` gives a text that is shown beside the count, asked again after each item.

    Of several processes that a launcher started, the first one shows it.
    """
    if _silent[0] or os.environ.get("RANK", "0") != "0":
        yield from items
        return
    if total is None and isinstance(items, Sized):
        total = len(items)
    bar = _with_bar if _has_bars() else _with_lines
    yield from bar(items, description, total, note)


def silence() -> None:
    """Show no progress in this process: it works beside another one that shows its own."""
    _silent[0] = True


def announce(line: str) -> None:
    """A line on stderr before something that takes long and has no steps to count."""
    if not _silent[0] and os.environ.get("RANK", "0") == "0":
        from tqdm.auto import tqdm

        tqdm.write(line, file=sys.stderr)


def _has_bars() -> bool:
    """Whether stderr is a terminal, or a notebook shows tqdm's widgets."""
    if sys.stderr.isatty():
        return True
    shell = sys.modules.get("IPython")
    here = shell.get_ipython() if shell is not None else None
    return here is not None and "IPKernelApp" in here.config


def _with_bar(items: Iterable[T], description: str, total: int | None, note: Callable[[], str] | None) -> Iterator[T]:
    from tqdm.auto import tqdm

    with tqdm(
        total=total, desc=description, leave=False, delay=_QUIET_SECONDS, dynamic_ncols=True, file=sys.stderr
    ) as bar:
        for item in items:
            yield item
            bar.update()
            if note is not None:
                bar.set_postfix_str(note(), refresh=False)


def _with_lines(items: Iterable[T], description: str, total: int | None, note: Callable[[], str] | None) -> Iterator[T]:
    start, announced, done = time.monotonic(), False, 0
    of = f" of {total}" if total is not None else ""

    def noted() -> str:
        return f" ({note()})" if note else ""

    try:
        for item in items:
            yield item
            done += 1
            if not announced and time.monotonic() - start >= _QUIET_SECONDS:
                announced = True
                print(f"{description}: {done}{of} so far{noted()}", file=sys.stderr, flush=True)
    finally:
        if announced:
            seconds = time.monotonic() - start
            print(f"{description}: {done}{of} in {seconds:.0f} s{noted()}", file=sys.stderr, flush=True)
