"""Two gloo processes measure what one process measures."""

import os
import socket

import numpy as np
import pytest
from kill_runs import Child
from shared_measurement import judged, measurement, write_part

from rim_lens import processes

pytestmark = pytest.mark.slow


def of_two_processes(folder):
    """What each of two processes got."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}

    def part(rank):
        os.environ.update(common | {"RANK": str(rank)})
        write_part(folder)

    started = [Child(lambda rank=rank: part(rank), folder / f"answer-{rank}") for rank in range(2)]
    try:
        assert [process.wait(280) for process in started] == [0, 0]
    finally:
        for process in started:
            process.kill()
    return [dict(np.load(folder / f"{rank}.npz")) for rank in range(2)]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return of_two_processes(tmp_path_factory.mktemp("two"))


def test_two_processes_equal_one(two):
    one = measurement()
    for part in two:
        assert set(one) <= set(part)
        for name, value in one.items():
            np.testing.assert_allclose(part[name], value, atol=1e-6, rtol=1e-6, err_msg=name)
        assert part["gathered"].tolist() == [f"item {i}" for i in range(7)]
    assert sorted([*two[0]["mine"], *two[1]["mine"]]) == list(range(7))
    assert 3 <= len(two[0]["mine"]) <= 4


def test_each_question_is_asked_by_one_process_and_known_to_both(two, tmp_path):
    alone, n_asked = judged(tmp_path)
    assert n_asked == 7
    assert sorted(int(part["n_asked"]) for part in two) == [3, 4]
    for part in two:
        np.testing.assert_array_equal(part["grades"], alone)


def test_a_result_is_written_once_and_an_error_reaches_both(two):
    assert [int(part["n_saved"]) for part in two] == [1, 1]


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("n", [0, 1, 7])
def test_every_item_falls_to_one_process_and_costs_are_alike(monkeypatch, size, n):
    costs = [10 * (i + 1) for i in range(n)]
    shares = []
    for rank in range(size):
        monkeypatch.setattr(processes, "n_processes", lambda: size)
        monkeypatch.setattr(processes, "rank", lambda rank=rank: rank)
        shares.append(processes.share(n, costs))
    assert sorted(item for share in shares for item in share) == list(range(n))
    if n == 7 and size > 1:
        sums = [sum(costs[item] for item in share) for share in shares]
        assert max(sums) - min(sums) <= max(costs)


def test_one_process_changes_nothing():
    assert processes.once(lambda: "done") == "done"
    np.testing.assert_array_equal(processes.all_rows(np.arange(3.0), [1]), np.arange(3.0))
    rows = np.arange(6.0).reshape(3, 2)
    np.testing.assert_array_equal(processes.fill_rows(3, [2, 0, 1], rows), rows[[1, 2, 0]])
    assert processes.is_writer()
    assert processes.n_processes() == 1
