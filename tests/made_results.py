"""Results for tests of figures and of the page.

Answers drawn at random, tables computed from them by the package itself.
"""

import numpy as np
import pandas as pd

from rim_lens.behavior.conditions import Condition
from rim_lens.behavior.measure import RimTable, difference_table, rate_table
from rim_lens.results import Manifest
from rim_lens.training_time.checkpoints import Checkpoints
from rim_lens.training_time.series import Checkpoint
from rim_lens.training_time.series_answers import SeriesBehavior, series_table

HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=alert(1)> & <b>bold</b>"
LABELS = ("refused", "complied", "incoherent")
MANIFEST = Manifest(
    versions={"python": "3.11", "rim_lens": "0.1.0"},
    model={"name": "tiny <model>", "fingerprint": "ab" * 32, "dtype": "float32", "device": "cpu"},
    data={"harmful": {"sha256": "cd" * 32, "n": 32}},
    seed=0,
    command="rim-lens audit tiny",
    created="2026-01-01T00:00:00+00:00",
    seconds={"behavior": 12.3},
)


def conditions(prefilled=("effort_minimizing", "neutral")):
    plain = [Condition("off", "off"), Condition("on", "on")]
    return plain + [Condition(name, "prefilled", ("a", "b")) for name in prefilled]


def answers_of(rng, set_name, condition, n, share_refused):
    """Judged answers as `measure_rim` makes them, n of them with about this share refused."""
    chances = (share_refused, (1 - share_refused) * 0.7, (1 - share_refused) * 0.3)
    return pd.DataFrame(
        {
            "set": set_name,
            "condition": condition.name,
            "prompt": np.arange(n),
            "wording": np.arange(n) % 2 if condition.wordings else -1,
            "sample": 0,
            "request": [f"{set_name} request {i}" for i in range(n - 1)] + [HOSTILE],
            "category": "made",
            "label": rng.choice(LABELS, n, p=chances),
            "confidence": 1.0,
            "evidence": "",
            "cot": "",
            "response": [f"answer {i} " + "word " * 60 for i in range(n - 1)] + [HOSTILE],
            "closed": rng.random(n) < 0.8 if condition.name == "on" else None,
            "cut": rng.random(n) < 0.1 if condition.name == "on" else None,
            "truncated": False,
            "solved": rng.random(n) < 0.4,
        }
    ).astype({"closed": "boolean", "cut": "boolean"})


def made_behavior(n=32, seed=0):
    """A RimTable over three sets; harmless and maths have fewer conditions than harmful."""
    rng = np.random.default_rng(seed)
    every = {"harmful": conditions(), "harmless": conditions(("neutral",)), "maths": conditions(())}
    refused = {"off": 0.85, "on": 0.7, "effort_minimizing": 0.4, "neutral": 0.75}
    frames = [
        answers_of(rng, name, one, n, refused[one.name] if name == "harmful" else 0.05)
        for name, asked in every.items()
        for one in asked
    ]
    answers = pd.concat(frames, ignore_index=True)
    return RimTable(
        table=rate_table(answers, seed),
        differences=difference_table(answers, every, seed),
        answers=answers,
        judge="refusal rules",
        manifest=MANIFEST,
    )


def made_series(n=32, seed=0, steps_known=True):
    """A SeriesBehavior of a reference and two arms of two doses; or checkpoints without arms and steps."""
    rng = np.random.default_rng(seed)
    plan = [("aligned", "aligned", 0, 0.85)]
    plan += [(f"{arm}-{step}", arm, step, 0.85 - step / 160) for arm in ("plain", "effort") for step in (20, 80)]
    checkpoints = Checkpoints(
        [
            Checkpoint(name, None, arm=arm if steps_known else None, step=step if steps_known else None)
            for name, arm, step, _ in plan
        ],
        reference="aligned",
    )
    frames = []
    for name, _, _, share in plan:
        answers = answers_of(rng, "harmful", Condition("off", "off"), n, share).drop(columns=["set", "solved"])
        answers.insert(0, "checkpoint", name)
        frames.append(answers.assign(refusal_score=rng.normal(8 * share - 4, 1.0, n)))
    answers = pd.concat(frames, ignore_index=True)
    return SeriesBehavior(
        table=series_table(answers, list(checkpoints), checkpoints.reference.name, seed),
        answers=answers,
        reference="aligned",
        judge="refusal rules",
        manifest=MANIFEST,
    )
