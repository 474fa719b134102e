"""Numbers that a change of structure must leave alone: tables of a small audit of everything, stored and compared.

    python -m benchmarks.frozen make      write benchmarks/frozen.json.gz
    python -m benchmarks.frozen compare   compute again; the largest difference of each table

Tiny random models (float64 where possible, so that another order of sums shows at 1e-12) go through every sweep, test
and neuron measure with both backends; the bundled series gives heads and shift at three checkpoints in float32. No
table holds a judge's label: outcomes are refusal scores.
"""

import gzip
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from families import tiny_model  # noqa: E402

from rim_lens.behavior.refusal_score import RefusalTokens, refusal_score, refusal_tokens  # noqa: E402
from rim_lens.capture.attention import attention_rows  # noqa: E402
from rim_lens.capture.neuron_sets import matched_controls  # noqa: E402
from rim_lens.capture.neurons import neuron_activations  # noqa: E402
from rim_lens.causal.ablation_test import ablation_test  # noqa: E402
from rim_lens.inference_time.interchange import interchange_sweep  # noqa: E402
from rim_lens.inference_time.patching import patching_sweep  # noqa: E402
from rim_lens.inference_time.restore import restore_refusal  # noqa: E402
from rim_lens.inference_time.sweep import ablation_sweep  # noqa: E402
from rim_lens.intervene import ablate_heads, ablate_neurons, record_heads  # noqa: E402

STORED = Path(__file__).with_name("frozen.json.gz")
TOKENS = RefusalTokens((73, 80), ("a", "b"))
HARMFUL = ["pick a lock", "forge a pass", "steal it", "break in at night", "spy on him", "hide it"]
HARMLESS = ["open a door", "write a pass", "buy it", "walk in at night", "wave to him", "find it"]
FAMILIES = ("llama", "qwen3", "qwen3_moe")
DOUBLE = ("llama", "qwen3:")
ROUNDING = "float32: sums in another order"
BOUND = "float32: effects agree to 2e-6, but a BCa bound over six prompts moves to the next resample"
MEANS_AT_DECISION = "means are taken at the decision position, where they are put; before, over all positions"
SHARE = "float32 exponentials: scores agree to 1e-8; bounds of a share of a gap near 0 run to thousands"
MATCHED = "control sets of neurons match what is written, finer at the top; before, deciles of activation"
# Tables that are allowed to differ, and why.
EXCEPTIONS = {
    "qwen3_moe: interchange of pairs": BOUND,
    "qwen3_moe: patching, think_close": BOUND,
    **dict.fromkeys(("patching, decision", "patching together", "patching, think_close", "restored refusal"), SHARE),
    "test of heads, mean, decision": MEANS_AT_DECISION,
    "test of neurons, mean, from_decision": MEANS_AT_DECISION,
    "test of neurons, resample, from_decision": "donors are taken at the decision position; before, over all positions",
    "test of neurons": MATCHED,
}


def tables() -> Iterator[tuple[str, Any]]:
    """Name and numbers of every table."""
    for family in FAMILIES:
        model = tiny_model(family)
        if not model.is_moe:  # transformers multiplies experts in float32 at most
            model.hf.double()
        for name, value in of_heads(model):
            yield f"{family}: {name}", value
        for name, value in of_neurons(model):
            yield f"{family}: {name}", value
    yield from of_series()


def of_heads(model: Any) -> Iterator[tuple[str, Any]]:
    """Sweeps and tests of heads."""
    off, other = model.render(HARMFUL), model.render(HARMLESS)
    on = model.render(HARMFUL, thinking="prefilled", cot="hm, well")
    yield "refusal score", refusal_score(model, off, TOKENS)
    for method in ("exact", "screened", "plain"):
        for positions in ("all", "suffix", "decision"):
            found = ablation_sweep(model, off, TOKENS, method, positions=positions)
            yield f"{method} sweep, {positions}", found.table.sort_values(["layer", "head"])
    for positions in ("decision", "from think_close"):
        found = patching_sweep(model, off, on, TOKENS, positions=positions)
        yield f"patching, {positions.removeprefix('from ')}", found.table.sort_values(["layer", "head"])
        yield f"patching together, {positions.removeprefix('from ')}", found.together
    found = interchange_sweep(model, off, other, TOKENS)
    yield "interchange", found.table.sort_values(["direction", "layer", "head"])
    yield "interchange of pairs", found.pairs
    heads = [(0, 1), (1, 2), (2, 0)]
    for method in ("zero", "mean", "resample"):
        for positions in ("all", "decision"):
            yield f"test of heads, {method}, {positions}", head_test(model, heads, method, positions, other)
    restored = restore_refusal(model, heads, on, tokens=TOKENS, generated=False, n_controls=8)
    yield "restored refusal", restored.table
    single = tiny_model(model.name.removeprefix("tiny-"))  # TransformerLens' masks are made for float32
    for backend in ("fast", "hooks"):
        with ablate_heads(single, heads, backend=backend):
            yield f"refusal score without heads, {backend}", refusal_score(single, off, TOKENS)
    yield "attention", torch.nan_to_num(attention_rows(model, off[:1])[0]).double().numpy()
    yield "head outputs", record_heads(model, off[:2]).z.double().numpy()


def of_neurons(model: Any) -> Iterator[tuple[str, Any]]:
    """Activations and tests of neurons."""
    off, other = model.render(HARMFUL), model.render(HARMLESS)
    base = neuron_activations(model, off, "all", progress=False)
    yield "neuron activations", base.to_dataframe()
    rows = np.array([[0, 3], [1, 7], [2, 4]]) if not model.is_moe else np.array([[0, 1, 3], [1, 2, 5], [2, 0, 7]])
    controls = matched_controls(rows, 10, base=base)
    methods = ("zero",) if model.is_moe else ("zero", "mean", "resample")
    for positions in ("all",) if model.is_moe else ("all", "from_decision"):
        for method in methods:
            yield (
                f"test of neurons, {method}, {positions}",
                neuron_test(model, rows, method, positions, other, controls),
            )
    with ablate_neurons(model, rows.tolist()):
        yield "refusal score without neurons", refusal_score(model, off, TOKENS)


def head_test(model: Any, heads: Any, method: str, positions: str, other: Any) -> pd.DataFrame:
    """The table of an ablation test of heads, by score alone."""
    reference = None if method == "zero" else other
    return ablation_test(
        model, heads, HARMFUL, doses=(1, 3), method=method, positions=positions, reference=reference, tokens=TOKENS,
        generated=False, n_controls=10,
    ).table  # fmt: skip


def neuron_test(model: Any, rows: Any, method: str, positions: str, other: Any, controls: Any) -> pd.DataFrame:
    """The table of an ablation test of neurons, by score alone."""
    return ablation_test(
        model, rows, HARMFUL, positions=positions, method=method, reference=other, controls=controls, n_controls=10,
        tokens=TOKENS, generated=False,
    ).table  # fmt: skip


def of_series() -> Iterator[tuple[str, Any]]:
    """Heads and neurons at three checkpoints of the bundled series, on public prompts."""
    from rim_lens.data.prompts import load_prompts
    from rim_lens.training_time.checkpoints import Checkpoints
    from rim_lens.training_time.series_measurement import measure_series

    series = Checkpoints.from_folder(ROOT / "assets" / "organism").only(["aligned", "effort-18", "effort-36"])
    model = series.open()
    harmful = [prompt.text for prompt in load_prompts("harmful").sample(12, seed=0)]
    yield "series, heads", measure_series(model, series, harmful, heads=[(12, 3), (20, 5)], seed=0).heads().heads
    series.load(model, "aligned")
    yield (
        "sweep of the aligned model, suffix",
        ablation_sweep(model, model.render(harmful[:1]), refusal_tokens(model), positions="suffix").table.sort_values(
            ["layer", "head"]
        ),
    )


def plain(value: Any) -> dict[str, list[float]]:
    """The numbers of a table by column, or of an array."""
    if isinstance(value, pd.DataFrame):
        wanted = value.select_dtypes("number").columns
        return {name: value[name].to_numpy(float).tolist() for name in wanted}
    return {"value": np.asarray(value, dtype=float).ravel().tolist()}


def differences(before: dict[str, list[float]], after: dict[str, list[float]]) -> dict[str, float]:
    """Largest difference of each column that was stored; infinite where a column, a row or a NaN is missing."""
    worst = {}
    for name, values in before.items():
        old, new = np.array(values, dtype=float), np.array(after.get(name, []), dtype=float)
        if old.shape != new.shape or not np.array_equal(np.isnan(old), np.isnan(new)):
            worst[name] = float("inf")
            continue
        both = np.isfinite(old)
        worst[name] = float(np.abs(old[both] - new[both]).max(initial=0.0))
    return worst


def main(what: str) -> int:
    """Make or compare."""
    found = {name: plain(value) for name, value in tables()}
    if what == "make":
        text = json.dumps({n: {c: [float(f"{v:.12g}") for v in vs] for c, vs in t.items()} for n, t in found.items()})
        STORED.write_bytes(gzip.compress(text.encode(), mtime=0))
        print(f"{len(found)} tables, {STORED.stat().st_size / 1000:.0f} kB")
        return 0
    stored, wrong = json.loads(gzip.decompress(STORED.read_bytes())), 0
    for name, before in stored.items():
        by_column = differences(before, found.get(name, {}))
        off = max(by_column.values())
        rounding = ROUNDING if off < 1e-4 and not name.startswith(DOUBLE) else ""
        reason = next((why for part, why in EXCEPTIONS.items() if part in name), rounding)
        named = ", ".join(f"{column} {by:.2g}" for column, by in by_column.items() if by > 1e-6)
        wrong += off > 1e-6 and not reason
        print(f"{off:9.2g}  {name}" + (f"  {named}  ({reason or 'without a reason'})" if named else ""), flush=True)
    print(f"{wrong} of {len(stored)} tables differ by more than 1e-6 without a reason")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else "compare"))
