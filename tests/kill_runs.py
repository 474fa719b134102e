"""Running something in a child process that is killed: at a moment, or before its k-th change of the disk."""

import builtins
import os
import signal
import time
import traceback
from pathlib import Path

import pandas as pd

CHANGES = ("open", "replace", "rename", "mkdir", "fsync", "unlink", "rmdir")


def forked(action):
    """Process id of a child that runs the action and ends, with 0 where it did so without an error."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        action()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


class Child:
    """A process that was forked, and the text that its action returned."""

    def __init__(self, action, answer):
        self.pid, self.answer, self.code = forked(lambda: answer.write_text(str(action()))), answer, None

    def poll(self):
        """Its exit code, negative for a signal, or None while it runs."""
        if self.code is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if ended else None
        return self.code

    def wait(self, seconds=120):
        """Its exit code, when it has ended."""
        deadline = time.monotonic() + seconds
        while self.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        return self.code

    def kill(self):
        """Kill -9, if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
            self.wait()


def killed_after(action, seconds):
    """Kill -9 of the child after so many seconds; says whether it was still running."""
    child = forked(action)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if os.waitpid(child, os.WNOHANG)[0]:
            return False
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def killed_when(action, happened):
    """Kill -9 of the child as soon as something has happened; says whether it was still running."""
    child = forked(action)
    while not happened():
        if os.waitpid(child, os.WNOHANG)[0]:
            return False
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def killed_at_call(action, k):
    """Kill -9 of the child before its k-th change of the disk; says whether it got that far."""

    def counted():
        count = 0

        def dying(function, changes):
            def call(*args, **options):
                nonlocal count
                if changes(*args, **options):
                    if count == k:
                        os.kill(os.getpid(), signal.SIGKILL)
                    count += 1
                return function(*args, **options)

            return call

        for name in CHANGES[1:]:
            setattr(os, name, dying(getattr(os, name), lambda *args, **options: True))
        writes = lambda file, mode="r", *args, **options: any(letter in mode for letter in "wxa")  # noqa: E731
        builtins.open = dying(builtins.open, writes)
        action()

    status = os.waitpid(forked(counted), 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def finished_stages(out: Path):
    """Names of the stages that an audit's folder holds."""
    stages = out / "stages"
    return sorted(path.name for path in stages.iterdir() if not path.name.startswith(".")) if stages.is_dir() else []


def run_in_child(action, out: Path):
    """Run an audit to its end in a child; which stages it measured, and did not load."""
    before = {name: (out / "stages" / name).stat().st_ino for name in finished_stages(out)}
    status = os.waitpid(forked(action), 0)[1]
    assert os.WIFEXITED(status)
    assert os.WEXITSTATUS(status) == 0
    return [name for name in finished_stages(out) if (out / "stages" / name).stat().st_ino != before.get(name)]


def tables_of(out: Path):
    """Every table of a finished audit by name."""
    assert (out / "report.html").is_file()
    assert (out / "results.json").is_file()
    return {path.stem: pd.read_csv(path) for path in sorted((out / "tables").glob("*.csv"))}


def same_tables(one, other):
    """Whether two audits gave identical tables."""
    return bool(one) and one.keys() == other.keys() and all(one[name].equals(other[name]) for name in one)
