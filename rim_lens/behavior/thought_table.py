"""What a model decides in its thought against what it then answers: the four combinations of refusing and not."""

import numpy as np
import pandas as pd

from rim_lens.behavior.conditions import cells
from rim_lens.stats import share_interval


def thought_table(answers: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """How often a thought and its answer refuse: one row per set, condition and combination.

    Columns: `thought_refused`, `answer_refused`; k of n answers with a thought of the model's own and two verdicts;
    `rate` with its 95 % interval (low, high) as in `measure_rim`. Conditions without thoughts have no rows.
    """
    judged = answers[answers["cot_refused"].notna() & (answers["label"] != "unjudged")]
    rows = []
    for (set_name, condition), group in judged.groupby(["set", "condition"], sort=False):
        thought, answer = group["cot_refused"].to_numpy(dtype=bool), (group["label"] == "refused").to_numpy()
        for thought_refused, answer_refused in ((True, True), (True, False), (False, True), (False, False)):
            hit = (thought == thought_refused) & (answer == answer_refused)
            outcomes = cells(group, hit.tolist())
            low, high = share_interval(outcomes[np.isfinite(outcomes).any(axis=(1, 2))], seed=seed)
            rows.append(
                {
                    "set": set_name,
                    "condition": condition,
                    "thought_refused": thought_refused,
                    "answer_refused": answer_refused,
                    "k": int(hit.sum()),
                    "n": len(hit),
                    "rate": float(hit.mean()),
                    "low": low,
                    "high": high,
                }
            )
    names = ["set", "condition", "thought_refused", "answer_refused", "k", "n", "rate", "low", "high"]
    return pd.DataFrame(rows, columns=names)
