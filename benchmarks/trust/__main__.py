"""Run the studies, keep their rows in `benchmarks/trust/latest.json`, and write the tables of docs/trust.md.

python -m benchmarks.trust                 everything
python -m benchmarks.trust ras_p recovery  some studies by name; the others keep their rows
python -m benchmarks.trust tables          only the tables, from the rows that are kept
"""

import dataclasses
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.trust import coverage, neuron_coverage, pattern_coverage, probe_coverage, pvalues, series_coverage
from benchmarks.trust.entanglement import stages
from benchmarks.trust.kills import kills
from benchmarks.trust.methods import methods
from benchmarks.trust.neuron_methods import neuron_methods
from benchmarks.trust.organism_verdicts import organism_verdicts
from benchmarks.trust.path_methods import path_methods
from benchmarks.trust.recovery import recoveries
from benchmarks.trust.simulated import calibration_studies, coverage_studies
from benchmarks.trust.tables import write_tables
from rim_lens import organisms
from rim_lens.organisms import lineages

LATEST = Path(__file__).with_name("latest.json")
ROOT = Path(__file__).resolve().parents[2]
# Modules that register their studies when imported.
SIMULATIONS = (pvalues, coverage, neuron_coverage, probe_coverage, pattern_coverage, series_coverage)
RUNS, SEEDS, KILLS, FUZZ_CASES = 1000, 10, 20, 2000


def fuzz() -> list[dict[str, Any]]:
    """The fuzz tests at full length: number of tests, and cases per test; raises when one fails."""
    chosen = "bytes or rows or any_ or by_hand"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "tests/test_fuzz.py",
        "-o",
        "timeout=7200",
        "-o",
        "addopts=",
        "-k",
        chosen,
    ]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "FUZZ_CASES": str(FUZZ_CASES)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stdout)
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    return [{"tests": int(passed[1]), "cases": FUZZ_CASES}]


def killed_audits() -> list[dict[str, Any]]:
    """Audits that are killed, from a fresh process.

    Children of one that has computed on several threads may wait forever.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
        return [fresh.submit(kills, KILLS).result()]


def studies() -> dict[str, Callable[[], list[dict[str, Any]]]]:
    """Every study by name, as a function to its rows."""
    registered = (*calibration_studies, *coverage_studies)
    assert {study.__module__ for study in registered} == {module.__name__ for module in SIMULATIONS}
    simulated = {
        study.__name__: lambda s=study: [dataclasses.asdict(row) for row in s(np.random.default_rng(0), RUNS)]
        for study in registered
    }
    return {
        **simulated,
        **{
            f"recovery_{seed}": lambda s=seed: [dataclasses.asdict(row) for row in recoveries([s])]
            for seed in range(SEEDS)
        },
        "methods": lambda: [dataclasses.asdict(row) for row in methods("inference-known")],
        "methods by paths": lambda: [dataclasses.asdict(row) for row in path_methods("inference-known")],
        **{
            f"{name}_{lineage}": lambda s=study, lineage=lineage: [dataclasses.asdict(row) for row in s(lineage)]
            for name, study in (("neuron_methods", neuron_methods), ("entanglement", stages))
            for lineage in lineages()
        },
        **{
            f"verdicts_{name}": lambda name=name: [dataclasses.asdict(row) for row in organism_verdicts(name)]
            for name in organisms.names()
        },
        "kills": killed_audits,
        "fuzz": fuzz,
    }


def kept_rows() -> dict[str, Any]:
    """The rows of every study that was run, by name."""
    return json.loads(LATEST.read_text()) if LATEST.is_file() else {}


def main() -> int:
    """Measure what is asked for, keep it after every study, write the tables."""
    known = studies()
    asked = [name for name in known if not sys.argv[1:] or any(name.startswith(word) for word in sys.argv[1:])]
    for name in asked:
        begin = time.monotonic()
        rows = known[name]()
        kept = {**kept_rows(), name: rows}  # read anew: another process may have kept its own meanwhile
        LATEST.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n")
        print(f"{name}: {len(rows)} rows, {time.monotonic() - begin:.0f} s", flush=True)
    kept = kept_rows()
    write_tables({name: kept[name] for name in known if name in kept}, ROOT / "docs" / "trust.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
