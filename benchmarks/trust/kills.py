"""Kill -9 at random moments of an audit of a tiny model, then a rerun.

The same tables, no finished stage done twice.
"""

import contextlib
import os
import random
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.trust.planted_models import use_tests

use_tests()

from families import tiny_hf, tiny_tokenizer  # noqa: E402
from kill_runs import finished_stages, killed_after, run_in_child, same_tables, tables_of  # noqa: E402

from rim_lens.audit.plan import AuditPlan  # noqa: E402
from rim_lens.audit.run import run_audit  # noqa: E402


def kills(n: int = 20, seed: int = 0) -> dict[str, int]:
    """How many audits were killed, how many gave the undisturbed tables afterwards, and the stages they kept."""
    torch.set_num_threads(1)  # before anything is computed: threads do not survive a fork
    moments, counts = random.Random(seed), {"killed": 0, "same tables": 0, "stages kept": 0, "stages done twice": 0}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "model"
        tiny_hf("llama", max_position_embeddings=1024).save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)
        plan = AuditPlan(
            model=str(folder),
            patterns=False,
            prefilled=(),
            max_new_tokens=1,
            maths_tokens=2,
            cot_budget=2,
            n_controls=5,
            device="cpu",
        )
        with open(os.devnull, "w") as silence, contextlib.redirect_stderr(silence):
            run_audit(plan, Path(place) / "undisturbed")
            expected = tables_of(Path(place) / "undisturbed")
            begin = time.monotonic()  # of an audit in a process that has imported everything, as those that are killed
            run_in_child(lambda: run_audit(plan, Path(place) / "timed"), Path(place) / "timed")
            took, number = time.monotonic() - begin, 0
            while counts["killed"] < n:
                out, number = Path(place) / f"run-{number}", number + 1
                if not killed_after(lambda o=out: run_audit(plan, o), moments.uniform(0, took)):
                    continue  # it was faster
                counts["killed"] += 1
                done = finished_stages(out)
                measured = run_in_child(lambda o=out: run_audit(plan, o), out)
                counts["stages kept"] += len(done)
                counts["stages done twice"] += len(set(done) & set(measured))
                counts["same tables"] += same_tables(tables_of(out), expected)
    return counts
