"""Two lanes of stages in two processes.

On a CPU, two processes with half the threads each do nearly twice what one process does with all of them.

Small matrix products of token-by-token decoding gain little from more threads. Stages that need nothing of each other
are dealt to two lanes; the second one runs in a process of its own on the same folder, where a finished stage appears
by a rename.
"""

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rim_lens.audit.plan import AuditPlan
from rim_lens.processes import n_processes

# They need nothing of the other stages, but for the last one, which waits for what it needs.
SECOND_LANE = ("series", "neurons", "thinking_neurons")
PATIENCE = 0.5  # seconds between two looks for a stage of the other lane


def worth_two(plan: AuditPlan) -> bool:
    """Whether both lanes have work and a core each, with no accelerator, launcher or engine in use."""
    import torch

    on_cpu = plan.device == "cpu" or (plan.device is None and not torch.cuda.is_available())
    alone = n_processes() == 1 and plan.engine == "transformers"
    return on_cpu and alone and plan.checkpoints is not None and (os.cpu_count() or 1) >= 2


@contextmanager
def second_lane(run_lane: Callable[[AuditPlan, Path, int], None], plan: AuditPlan, out: Path) -> Iterator[None]:
    """Call `run_lane(plan, out, threads)` in another process during the block.

    The end of the block waits for that process; an error stops it.

    A stage that fails there is not kept: whoever asks for it next meets the same error.
    """
    import torch

    threads = torch.get_num_threads()
    half = max(1, threads // 2)
    process = multiprocessing.get_context("spawn").Process(target=run_lane, args=(plan, out, half), daemon=True)
    process.start()
    torch.set_num_threads(half)
    try:
        yield
        process.join()
    finally:
        if process.is_alive():
            process.terminate()
            process.join()
        torch.set_num_threads(threads)


def await_stages(folder: Path, names: Sequence[str]) -> None:
    """Wait until the other lane has finished these stages; if it fails, this process is ended."""
    while not all((folder / name).is_dir() for name in names):
        time.sleep(PATIENCE)


def end_with_parent() -> None:
    """Wait for the first process and end with it, however it ended: nobody else may write to its folder afterwards."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
