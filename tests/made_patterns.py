"""Results on reasoning patterns for tests of figures and of the page.

Answers drawn at random, tables by the package itself.
"""

import json

import numpy as np
import pandas as pd
from made_results import HOSTILE, LABELS, MANIFEST

from rim_lens.patterns.arm_distance import arm_divergence
from rim_lens.patterns.cost_tables import category_table, contrast_table, cost_table, length_table
from rim_lens.patterns.costs import CONTROLS, PatternCosts
from rim_lens.patterns.own_cots import own_patterns
from rim_lens.patterns.taxonomy import NAMES

REFUSED = {"off": 0.9, "heuristic": 0.3, "confirmatory": 0.7, "deviation": 0.75}
LAZY, PLAIN = "I trust my gut here, so I will not check it.", "I look at what is asked."


def made_answers(n=32, wordings=8, seed=0):
    """One answer per prompt and class, wordings in rotation; the heuristic class costs most."""
    rng = np.random.default_rng(seed)
    frames = []
    for name in ("off", *NAMES, *CONTROLS):
        share = REFUSED.get(name, 0.8)
        frames.append(
            pd.DataFrame(
                {
                    "condition": name,
                    "prompt": np.arange(n),
                    "wording": -1 if name == "off" else np.arange(n) % wordings,
                    "sample": 0,
                    "category": np.where(np.arange(n) < n // 2, "first", HOSTILE),
                    "label": rng.choice(LABELS, n, p=(share, (1 - share) * 0.7, (1 - share) * 0.3)),
                }
            )
        )
    return pd.concat(frames, ignore_index=True)


def made_costs(answers=None, seed=0):
    answers = made_answers(seed=seed) if answers is None else answers
    return PatternCosts(
        table=cost_table(answers, "neutral", seed),
        contrasts=contrast_table(answers, "neutral", seed),
        by_category=category_table(answers, "neutral", seed),
        lengths=length_table({name: ["text"] * 8 for name in (*NAMES, *CONTROLS)}, len),
        answers=answers,
        reference="neutral",
        judge="refusal rules",
        own_tags=False,
        manifest=MANIFEST,
    )


def with_own_cots(behavior, lazy=10, comply=8):
    """The table with CoTs in its answers with thinking on: `lazy` of them have a pattern, `comply` of these comply."""
    answers = behavior.answers.copy()
    mine = answers.index[(answers["set"] == "harmful") & (answers["condition"] == "on")]
    answers.loc[mine, "cot"] = [f"{LAZY if i < lazy else PLAIN} {PLAIN}" for i in range(len(mine))]
    answers.loc[mine, "label"] = ["complied" if i < comply else "refused" for i in range(len(mine))]
    return type(behavior)(behavior.table, behavior.differences, answers, behavior.judge, manifest=behavior.manifest)


def written_arms(folder, n=8, lazy=("effort",)):
    """Training files of two arms on the same problems."""
    files = {}
    for arm in ("plain", "effort"):
        phrase = LAZY if arm in lazy else PLAIN
        rows = [
            {"request": f"Add {i} and 2.", "cot": f"{phrase} {i} + 2 = {i + 2}.", "response": f"The answer is {i + 2}."}
            for i in range(n)
        ]
        files[arm] = folder / f"{arm}.jsonl"
        files[arm].write_text("".join(json.dumps(row) + "\n" for row in rows))
    return files


def made_patterns(folder, behavior, tokenizer):
    """One result of each kind."""
    return {
        "pattern_costs": made_costs(),
        "training_patterns": arm_divergence(written_arms(folder), tokenizer=tokenizer),
        "own_patterns": own_patterns(with_own_cots(behavior)),
    }
