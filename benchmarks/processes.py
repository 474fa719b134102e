"""Two processes of one thread each against one: the same neuron moments, prompts split, start-up left out.

What bounds it: the longer share, memory bandwidth that both use, and one sum of the accumulators through main memory.
Wall time counts here, so this figure needs two cores and a machine that does nothing else; all others are CPU seconds.
"""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.figures import Figure, Setting, benchmark, median_ratio
from benchmarks.neurons import moments
from benchmarks.prompts import chat_of
from rim_lens.chat.chat import Chat
from rim_lens.model.lens_model import LensModel
from rim_lens.model.load import load_model

N_PROMPTS, N_TOKENS, WORKERS = 64, 64, 2


def prompts(model: LensModel) -> list[Chat]:
    """Prompts of one length."""
    return [chat_of(model, N_TOKENS, seed) for seed in range(N_PROMPTS)]


class Workers:
    """Processes that measure together whenever they are told; they end when the block is left."""

    def __init__(self, source: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        common = {"WORLD_SIZE": str(WORKERS), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-m", "benchmarks.processes", source],
                env=os.environ | common | {"RANK": str(rank), "OMP_NUM_THREADS": "1"},
                cwd=Path(__file__).parents[1],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in range(WORKERS)
        ]

    def __enter__(self) -> "Workers":
        self.wait()  # until all are loaded
        return self

    def __exit__(self, *error: Any) -> None:
        for process in self.processes:
            process.stdin.close()  # type: ignore[union-attr]
        for process in self.processes:
            process.wait()

    def measure(self) -> None:
        """Have all measure once."""
        for process in self.processes:
            process.stdin.write("measure\n")  # type: ignore[union-attr]
            process.stdin.flush()  # type: ignore[union-attr]
        self.wait()

    def wait(self) -> None:
        """Until each has said that it is done."""
        for process in self.processes:
            if not any(line == "done\n" for line in process.stdout):  # type: ignore[union-attr]
                raise RuntimeError(f"A measuring process ended with code {process.wait()}.")


def worker(source: str) -> None:
    """Measure at every line of the input."""
    torch.set_num_threads(1)
    model = load_model(source, device="cpu", dtype="float32")
    chats = prompts(model)
    moments(model, chats)
    print("done", flush=True)
    for _ in sys.stdin:
        moments(model, chats)
        print("done", flush=True)


def wall_seconds(action: Any) -> float:
    """Wall time of one call."""
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


@benchmark
def two_processes(setting: Setting) -> Iterator[Figure]:
    """Wall time of one process over that of two, in turn."""
    model = setting.model
    chats = prompts(model)
    moments(model, chats)
    alone, together = [], []
    with Workers(model.hf.name_or_path) as workers:
        for _ in range(setting.pairs):
            alone.append(wall_seconds(lambda: moments(model, chats)))
            together.append(wall_seconds(workers.measure))
    yield Figure(
        f"neuron moments, one process / {WORKERS} of one thread each, {N_PROMPTS} prompts",
        median_ratio(alone, together),
        "times faster",
        setting.pairs,
        at_least=1.6,
        detail=f"{median(alone):.2f} s / {median(together):.2f} s wall time on {len(os.sched_getaffinity(0))} cores; "
        "needs a quiet machine",
    )


if __name__ == "__main__":
    worker(sys.argv[1])
