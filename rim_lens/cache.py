"""Where converted models are kept, and how a folder gets there whole or not at all."""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from rim_lens.errors import RimLensError

JUST_MADE_S = 60.0  # between making a folder and locking it
LOCK = ".lock"  # inside a folder that is being filled; the system releases it when the process ends


def cache_folder() -> Path:
    """The cache's root: `RIM_LENS_CACHE`, or `rim_lens` under the user's cache folder."""
    if chosen := os.environ.get("RIM_LENS_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "rim_lens"


def is_filled(target: Path) -> bool:
    """Whether the folder is there; False where the way to it may not be searched, and `filled_once` then says so."""
    try:
        return target.is_dir()
    except OSError:
        return False


@contextmanager
def filled_once(target: Path) -> Iterator[Path]:
    """Yield a temporary sibling of `target` to fill; it takes the name `target` when the block succeeds.

    Two processes may fill the same target: the first rename wins and the other's copy is dropped. What a killed process
    left is removed by the next one.

    Raises:
        RimLensError: the folder cannot be written (read-only, full disk).

    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(target)
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError as error:
        raise RimLensError(
            f"The cache folder {target.parent} cannot be written ({error.strerror or error}); "
            "free some space there or set RIM_LENS_CACHE to another folder."
        ) from error
    lock = locked(work)
    try:
        yield work
        (work / LOCK).unlink(missing_ok=True)
        try:
            work.rename(target)
        except OSError:
            if not target.is_dir():  # not another process's finished copy
                raise
    except OSError as error:
        raise RimLensError(
            f"Writing to the cache folder {target} failed ({error.strerror or error}); "
            "free some space there or set RIM_LENS_CACHE to another folder."
        ) from error
    finally:
        if lock is not None:
            lock.release()
        shutil.rmtree(work, ignore_errors=True)


def remove_abandoned(target: Path) -> None:
    """Remove temporary siblings whose process is gone: nobody has locked them, and they were not made just now."""
    for sibling in target.parent.glob(f".{target.name}-*"):
        try:
            old = time.time() - sibling.stat().st_mtime > JUST_MADE_S
        except OSError:
            continue  # another process has renamed or removed it
        if old and (lock := locked(sibling)) is not None:
            shutil.rmtree(sibling, ignore_errors=True)
            lock.release()


def locked(folder: Path) -> FileLock | None:
    """A lock on a folder until its release or the end of the process, however that ends.

    None where another process has locked the folder, it is gone, or the file system has no locks.
    """
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except (Timeout, OSError, NotImplementedError):  # the last where the platform has no locks
        return None
    return lock
