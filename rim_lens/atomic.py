"""Files and folders that appear whole or not at all.

They are written under a temporary name beside their place, flushed to disk and renamed.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file and the folders above it; an older file stays until the new one is on disk.

    Raises:
        OSError: the folder cannot be written or the disk is full; nothing was changed.

    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content.encode("utf-8") if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """Yield a temporary sibling of `target`; when the block succeeds it takes that name, in place of an older folder.

    Raises:
        OSError: a folder cannot be written; the older one is still there.

    """
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}-", suffix=".tmp", dir=target.parent))
    os.chmod(work, 0o755)
    try:
        yield work
        flush(work)
        move_into_place(work, target)
        flush(target.parent)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def move_into_place(work: Path, target: Path) -> None:
    """Rename; an older folder is kept aside until the new one is in place, and put back if that fails."""
    if not target.exists():
        os.replace(work, target)
        return
    aside = work.with_suffix(".old")
    try:
        os.replace(target, aside)
        os.replace(work, target)
    finally:
        if aside.exists() and not target.exists():
            os.replace(aside, target)
        shutil.rmtree(aside, ignore_errors=True)


def flush(folder: Path) -> None:
    """Flush a folder's entries to disk; not every file system offers that, and none needs it to be correct."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)
