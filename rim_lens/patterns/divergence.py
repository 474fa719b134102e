"""How far two sides of CoTs on the same problems differ: target and control of a pair, or two arms of fine-tuning data.

Per problem and averaged, with intervals by bootstrap over problems (Tango's where all values are 0 or 1):

    tokens                   length by the tokenizer
    perplexity               exp(mean negative log-likelihood per CoT token) under a base model, the problem given
    overlap with the source  |W ∩ W_source| / |W ∪ W_source| over word types; `overlap` of both sides likewise
    pattern sentences        share of sentences that an annotator gives a pattern
    answer agreement         share of CoTs whose result equals the answer (math-verify)
"""

import re
from typing import Any

import numpy as np
import pandas as pd

from rim_lens.behavior.maths import is_correct
from rim_lens.model.lens_model import LensModel
from rim_lens.patterns.annotation import annotate_reasoning
from rim_lens.patterns.cot_likelihood import cot_nll
from rim_lens.patterns.labels import Annotator
from rim_lens.patterns.rewrite import has_number
from rim_lens.patterns.taxonomy import NONE
from rim_lens.stats import bootstrap_mean, paired_difference

SIDES = ("target", "control")
COLUMNS = {
    "tokens": "tokens",
    "pattern sentences (share)": "pattern_share",
    "word overlap with the source": "source_overlap",
    "answer agreement": "agrees",
    "log perplexity per token": "nll",
}


def add_side(frame: pd.DataFrame, side: str, annotator: Annotator | None, base: LensModel | None) -> None:
    """Columns of one side: share of pattern sentences, agreement, likelihood, and overlap with a source.

    The answer is the side's own (`target_answer`) where it has one, else the problem's.
    """
    texts = list(frame[side])
    answers = frame[f"{side}_answer"] if f"{side}_answer" in frame else frame["answer"]
    labels = annotate_reasoning(texts, annotator, problems=list(frame["problem"])).sentences
    frame[f"{side}_pattern_share"] = (labels["label"] != NONE).groupby(labels["cot"]).mean().reindex(range(len(texts)))
    if "cot" in frame:
        frame[f"{side}_source_overlap"] = [overlap(text, cot) for text, cot in zip(texts, frame["cot"], strict=True)]
    frame[f"{side}_agrees"] = [
        float(is_correct(text, answer)) if has_number(answer) else np.nan
        for text, answer in zip(texts, answers, strict=True)
    ]
    if base is not None:
        frame[f"{side}_nll"] = cot_nll(base, list(frame["problem"]), texts)


def divergence(frame: pd.DataFrame, seed: int) -> pd.DataFrame:
    """The report: means of both sides and the paired difference, target minus control."""
    rows = []
    for measure, column in COLUMNS.items():
        if f"target_{column}" not in frame:
            continue
        target, control = (frame[f"{side}_{column}"].to_numpy(dtype=float) for side in SIDES)
        known = ~np.isnan(target) & ~np.isnan(control)
        rows.append(report_row(measure, target[known], control[known], seed))
        if column == "nll":
            both = [float(np.exp(side[known].mean())) for side in (target, control)]
            rows.append({"measure": "perplexity", "target": both[0], "control": both[1], "n": int(known.sum())})
    shared = frame["overlap"].to_numpy(dtype=float)
    low, high = bootstrap_mean(shared, seed=seed)
    rows.append(
        {
            "measure": "word overlap of target and control",
            "target": shared.mean(),
            "low": low,
            "high": high,
            "n": len(shared),
        }
    )
    order = ["measure", "target", "control", "difference", "low", "high", "n"]
    return pd.DataFrame(rows, columns=order)


def report_row(measure: str, target: np.ndarray, control: np.ndarray, seed: int) -> dict[str, Any]:
    """One measure of both sides."""
    if not len(target):
        return {"measure": measure, "n": 0}
    if np.isin(target, (0, 1)).all() and np.isin(control, (0, 1)).all():  # a bootstrap of equal rates has no spread
        low, high = paired_difference(target == 1, control == 1).interval
    else:
        low, high = bootstrap_mean(target - control, seed=seed)
    return {
        "measure": measure,
        "target": target.mean(),
        "control": control.mean(),
        "difference": (target - control).mean(),
        "low": low,
        "high": high,
        "n": len(target),
    }


def overlap(a: str, b: str) -> float:
    """Word types in both, as a share of those in either."""
    first, second = (set(re.findall(r"\w+", text.lower())) for text in (a, b))
    return len(first & second) / max(len(first | second), 1)
