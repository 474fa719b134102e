"""Progress on stderr for anything that may take more than two seconds.

In a terminal: one live display shared by all running loops, the inner ones removed when they end. Elsewhere
(logs, notebooks, pipes): one line once a loop has run for two seconds and one line when it ends; quick loops
print nothing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import TypeVar

from rich.console import Console
from rich.errors import LiveError
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

T = TypeVar("T")
_QUIET_SECONDS = 2.0
_running: list[Progress] = []  # the shared display, once per loop that is using it


def track(
    items: Iterable[T], description: str, total: int | None = None, *, note: Callable[[], str] | None = None
) -> Iterator[T]:
    """Yields the items unchanged and shows how far the loop is; ``total`` only where ``items`` has no length.

    ``note`` gives a text that is shown beside the count, asked again whenever the display is drawn.

    Of several processes that a launcher started, the first one shows it.
    """
    if os.environ.get("RANK", "0") != "0":
        yield from items
        return
    if total is None and isinstance(items, Sized):
        total = len(items)
    console = Console(stderr=True)
    display = _shared_display(console) if console.is_terminal else None
    if display is None:
        yield from _with_lines(items, description, total, console, note)
    else:
        yield from _with_bar(items, description, total, display, note)


class _Note(ProgressColumn):
    """What the loop says of itself besides."""

    def render(self, task: Task) -> Text:
        note: Callable[[], str] | None = task.fields.get("note")
        return Text(note() if note else "", style="dim")


def _shared_display(console: Console) -> Progress | None:
    """The running display or a new one; None where something else already draws on this terminal."""
    if _running:
        return _running[-1]
    display = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        _Note(),
        console=console,
    )
    try:
        display.start()
    except LiveError:
        return None
    return display


def _with_bar(
    items: Iterable[T], description: str, total: int | None, display: Progress, note: Callable[[], str] | None
) -> Iterator[T]:
    outermost = not _running
    _running.append(display)
    task = display.add_task(description, total=total, note=note)
    try:
        for item in items:
            yield item
            display.advance(task)
    finally:
        _running.remove(display)
        if not outermost:
            display.remove_task(task)
        if not _running:
            display.stop()


def _with_lines(
    items: Iterable[T], description: str, total: int | None, console: Console, note: Callable[[], str] | None
) -> Iterator[T]:
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
                _print(console, f"{description}: {done}{of} so far{noted()}")
    finally:
        if announced:
            _print(console, f"{description}: {done}{of} in {time.monotonic() - start:.0f} s{noted()}")


def _print(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)
