"""Progress: what a loop prints in a terminal and in a log."""

import io
import re
import sys
import types

import pytest
from tqdm.auto import tqdm

from rim_lens import progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that moves only when the test says so."""

    class Clock:
        now = 0.0

    monkeypatch.setattr(progress.time, "monotonic", lambda: Clock.now)
    return Clock


@pytest.fixture
def terminal(monkeypatch):
    """A stderr that says it is a terminal, and bars that do not wait before they show."""

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    out = Terminal()
    # pytest puts its own stderr back before the test's body, so the module's view of it is replaced
    monkeypatch.setattr(progress, "sys", types.SimpleNamespace(stderr=out, modules=sys.modules))
    monkeypatch.setattr(progress, "_QUIET_SECONDS", 0.0)
    return out


def test_quick_loops_print_nothing_in_a_log(capsys):
    assert list(progress.track(range(5), "capture")) == [0, 1, 2, 3, 4]
    assert capsys.readouterr() == ("", "")


def test_slow_loops_print_a_line_early_and_one_at_the_end(capsys, clock):
    for _ in progress.track(range(100), "capture [L0]"):
        clock.now += 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == ["capture [L0]: 2 of 100 so far", "capture [L0]: 100 of 100 in 100 s"]


def test_a_loop_without_length_or_with_an_early_end(capsys, clock):
    for item in progress.track((i for i in range(9)), "generate"):
        clock.now += 3
        if item == 4:
            break
    assert capsys.readouterr().err.splitlines() == ["generate: 1 so far", "generate: 4 in 15 s"]


def test_nested_loops_have_bars_with_the_time_left_that_go_away(terminal):
    seen = [(a, b) for a in progress.track("ab", "outer") for b in progress.track(range(3), "inner [x]")]
    assert len(seen) == 6
    text = terminal.getvalue()
    assert "outer" in text
    assert "inner [x]" in text
    assert re.search(r"0/2 \[\d\d:\d\d<", text)  # elapsed<left
    assert text.rsplit("\r", 2)[1].strip(" \x1b[A\n") == ""  # the last thing written wipes the bar


def test_an_exception_or_a_break_ends_the_bars(terminal):
    def failing():
        for _ in progress.track("ab", "outer"):
            yield from (1 / 0 for _ in progress.track("ab", "inner"))

    with pytest.raises(ZeroDivisionError):
        list(failing())
    for _ in progress.track("ab", "outer"):
        break
    assert not tqdm._instances
    assert list(progress.track("ab", "again")) == ["a", "b"]


def test_loops_that_end_out_of_order_do_not_crash(terminal):
    first, second = progress.track("abc", "first"), progress.track("xyz", "second")
    next(first), next(second)
    assert list(first) == ["b", "c"]
    assert list(second) == ["y", "z"]
    assert not tqdm._instances


def test_a_silent_process_shows_nothing(capsys, clock, monkeypatch):
    monkeypatch.setattr(progress, "_silent", [False])
    progress.silence()
    for _ in progress.track(range(3), "beside another"):
        clock.now += 5
    progress.announce("loading")
    assert capsys.readouterr() == ("", "")


def test_what_has_no_steps_is_announced(capsys):
    progress.announce("converting model.gguf, once")
    assert capsys.readouterr().err.strip() == "converting model.gguf, once"
