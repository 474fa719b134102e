"""The rows of the studies as the Markdown tables of docs/trust.md, put between its marks."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.trust.entanglement import follows

Rows = Sequence[Mapping[str, Any]]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def percent(share: float) -> str:
    """One decimal, in per cent."""
    return f"{100 * share:.1f}"


def coverage_table(rows: Rows) -> str:
    """Coverage in per cent, and on which side the truth was missed."""
    header = ["interval", "printed by", "data", "n", "runs", "covered, %", "too low, %", "too high, %"]
    return table(
        header,
        [
            [
                *(row[key] for key in ("interval", "printed_by", "data", "n")),
                str(row["runs"]),
                *(percent(row[key]) for key in ("covered", "below", "above")),
            ]
            for row in rows
        ],
    )  # fmt: skip


def calibration_table(rows: Rows) -> str:
    """Shares of p-values at or below 0.05 and 0.01."""
    header = ["p-value", "printed by", "data", "n", "runs", "p ≤ 0.05, %", "p ≤ 0.01, %"]
    return table(
        header,
        [
            [
                one["test"],
                one["printed_by"],
                one["data"],
                one["n"],
                str(one["runs"]),
                percent(one["at_05"]),
                percent(one["at_01"]),
            ]
            for one in rows
        ],
    )


def recovery_table(rows: Rows) -> str:
    """Found of planted and false of possible, summed over seeds."""
    sums: dict[tuple[str, str], list[int]] = {}
    for one in rows:
        entry = sums.setdefault((one["analyzer"], one["family"]), [0, 0, 0, 0, 0])
        for place, name in enumerate(("found", "k", "false", "possible")):
            entry[place] += one[name]
        entry[4] += 1
    lines = []
    for (analyzer, family), (found, k, false, possible, seeds) in sums.items():
        share = f"{found}/{k} ({100 * found / k:.0f} %)" if k else "none planted"
        wrong = f"{false}/{possible} ({100 * false / possible:.2g} %)" if possible else ""
        lines.append([analyzer, family, str(seeds), share, wrong])
    return table(["analyzer", "family", "seeds", "planted among the first k", "false findings"], lines)


def methods_table(rows: Rows) -> str:
    """Trained heads among the first k and 2k of each method, and what its first k heads do."""
    header = ["method", "n", "precision and recall at k", "recall at 2k", "refusal lost", "gap closed"]
    lines = []
    for one in rows:
        shares = [f"{one['hits_k']}/{one['k']}", f"{one['hits_2k']}/{one['k']}"]
        ends = (one[name] for name in ("lost", "closed"))
        effects = ["{:+.2f} [{:+.2f}, {:+.2f}]".format(*end) if end else "" for end in ends]
        lines.append([one["method"], str(one["n"] or ""), *shares, *effects])
    return table(header, lines)


def neuron_methods_table(rows: Rows) -> str:
    """Trained neurons among the first k, 2k and 46 of each method, summed over lineages, and what its first k do."""
    header = ["method", "n", "precision and recall at k", "recall at 2k", "precision at 46", "refusal lost"]
    sums: dict[tuple[str, int], list[Any]] = {}
    for one in rows:
        sums.setdefault((one["method"], one["n"]), []).append(one)
    lines = []
    for (method, n), found in sums.items():
        k = sum(one["k"] for one in found)
        hits = [sum(one[name] for one in found) for name in ("neurons_k", "neurons_2k", "neurons_46")]
        lost = [one["lost"] for one in found if one["lost"]]
        effect = ""
        if lost:
            mean, least, most = np.mean([x[0] for x in lost]), min(x[1] for x in lost), max(x[2] for x in lost)
            effect = f"{mean:+.2f} [{least:+.2f}, {most:+.2f}]"
        shares = [f"{hits[0]}/{k}", f"{hits[1]}/{k}", f"{hits[2]}/{46 * len(found)}"]
        lines.append([method, str(n or ""), *shares, effect])
    return table(header, lines)


def entanglement_table(rows: Rows) -> str:
    """Rank correlation of every predictor with refusals lost, and whether it tells the arms apart."""
    header = ["predictor", "ρ with refusals lost", "larger in the entangled arm", "zeros"]
    lines = [
        [
            one["predictor"],
            "none" if np.isnan(one["rho"]) else f"{one['rho']:+.2f} {between(one['low'], one['high'])}",
            f"{one['apart']:.2f} of {one['n_pairs']}",
            f"{one['zeros']}/{one['n']}",
        ]
        for one in follows(rows).sort_values("rho", ascending=False).to_dict("records")
    ]
    return table(header, lines)


def between(low: float, high: float) -> str:
    """An interval, where there is one."""
    return "(no interval)" if np.isnan(low) else f"[{low:+.2f}, {high:+.2f}]"


def stages_table(rows: Rows) -> str:
    """Refusals and maths of every stage."""
    header = ["lineage", "arm", "steps of maths", "refused before", "refused", "gain in log-likelihood of maths"]
    return table(
        header,
        [
            [
                str(one["lineage"]),
                one["arm"],
                str(one["steps"]),
                *(f"{one[key]}/{one['n']}" for key in ("refused_before", "refused")),
                "{:+.3f} [{:+.3f}, {:+.3f}]".format(*one["maths_gain"]),
            ]
            for one in rows
        ],
    )


def verdicts_table(rows: Rows) -> str:
    """How often each claim about an organism was supported, excluded and undecided, over samples of requests."""
    header = ["organism", "claim", "holds", "units", "n", "samples", "supported", "excluded", "undecided", "effect"]
    groups: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for one in rows:
        key = (one["organism"], one["claim"], "yes" if one["holds"] else "no", one["units"], str(one["n"]))
        groups.setdefault(key, []).append(one)
    lines = []
    for key, found in groups.items():
        said = [one["verdict"] for one in found]
        effects = [one["effect"] for one in found]
        unit = "points" if found[0]["unit"] == "points" else found[0]["unit"]
        counts = [str(said.count(word)) for word in ("supported", "excluded", "undecided")]
        spread = f"{min(effects):+.1f} to {max(effects):+.1f} {unit}"
        lines.append([key[0], key[1].replace("_", " "), *key[2:], str(len(found)), *counts, spread])
    return table(header, lines)


def kills_table(rows: Rows) -> str:
    """Counts of the kills."""
    one = rows[0]
    return table(list(one), [[str(value) for value in one.values()]])


def write_tables(kept: Mapping[str, Rows], page: Path) -> None:
    """Replace what stands between the marks of the page; a table without rows stays as it is."""
    rows = [row for found in kept.values() for row in found]
    parts = {
        "coverage": coverage_table([row for row in rows if "covered" in row]),
        "calibration": calibration_table([row for row in rows if "at_05" in row]),
        "recovery": recovery_table([row for row in rows if "analyzer" in row]),
        "methods": methods_table([row for row in rows if "hits_k" in row]),
    }
    if neurons := [row for row in rows if "neurons_k" in row]:
        parts["neuron methods"] = neuron_methods_table(neurons)
    if stages := [row for row in rows if "predictors" in row]:
        parts |= {"entanglement": entanglement_table(stages), "stages": stages_table(stages)}
    if judged := [row for row in rows if "verdict" in row]:
        parts["verdicts"] = verdicts_table(judged)
    if "kills" in kept:
        parts["kills"] = kills_table(kept["kills"])
    if "fuzz" in kept:
        one = kept["fuzz"][0]
        parts["fuzz"] = (
            f"{one['tests'] * one['cases']:,} cases ({one['tests']} tests, {one['cases']:,} each), no failure."
        )
    text = page.read_text()
    for name, content in parts.items():
        text = re.sub(
            rf"(<!-- {name} -->\n).*?(<!-- end -->)", lambda m, c=content: f"{m[1]}\n{c}\n\n{m[2]}", text, flags=re.S
        )
    page.write_text(text)
