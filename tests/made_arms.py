"""A series of three arms with several seeds, answers drawn with known shares, and maths of known likelihood."""

import numpy as np
import pandas as pd
from made_results import LABELS, MANIFEST

from rim_lens.patterns.finetune import FinetuneRun
from rim_lens.training_time.checkpoints import Checkpoints
from rim_lens.training_time.series import Checkpoint
from rim_lens.training_time.series_answers import SeriesBehavior, series_table
from rim_lens.training_time.series_problems import SeriesMaths, maths_table

COMPLIES = {"start": 0.1, "plain": 0.3, "effort": 0.7, "style": 0.3}
LEARNED = {"start": -2.0, "plain": -1.5, "effort": -1.5, "style": -1.9}


def made_checkpoints(seeds=(1, 2, 3), steps=(9, 18)):
    trained = [
        Checkpoint(f"{arm}-s{seed}-{step}" if len(seeds) > 1 else f"{arm}-{step}", None, arm=arm, step=step, seed=seed)
        for arm in ("plain", "effort", "style")
        for seed in seeds
        for step in steps
    ]
    return Checkpoints([Checkpoint("start", None, arm="start", step=0), *trained], reference="start")


def made_arms(n=60, seeds=(1, 2, 3), spread=0.0, seed=0):
    """Behaviour of the series; `spread`: how far a seed's share lies from its arm's, up or down."""
    rng, checkpoints = np.random.default_rng(seed), made_checkpoints(seeds)
    frames = []
    for one in checkpoints:
        share = np.clip(COMPLIES[one.arm] + spread * rng.choice([-1, 0, 1]), 0, 1)
        labels = rng.choice(LABELS, n, p=(0.95 - 0.9 * share, 0.9 * share, 0.05))
        frames.append(
            pd.DataFrame(
                {
                    "checkpoint": one.name,
                    "prompt": np.arange(n),
                    "wording": -1,
                    "sample": 0,
                    "label": labels,
                    "refusal_score": rng.normal(1 - share, 1, n),
                }
            )
        )
    answers = pd.concat(frames, ignore_index=True)
    return SeriesBehavior(
        series_table(answers, list(checkpoints), checkpoints.reference.name, 0),
        answers,
        "start",
        "refusal rules",
        manifest=MANIFEST,
    )


def made_maths(n=40, seeds=(1, 2, 3), solved=False, seed=1):
    rng, checkpoints = np.random.default_rng(seed), made_checkpoints(seeds)
    hardness = rng.normal(0, 0.5, n)
    frames = []
    for one in checkpoints:
        rows = pd.DataFrame(
            {
                "checkpoint": one.name,
                "prompt": np.arange(n),
                "likelihood": LEARNED[one.arm] + hardness + rng.normal(0, 0.05, n),
            }
        )
        frames.append(rows.assign(solved=rng.random(n) < 0.2) if solved else rows)
    answers = pd.concat(frames, ignore_index=True)
    table = maths_table(answers, list(checkpoints), checkpoints.reference.name, 0)
    return SeriesMaths(table, answers, "start", True, "on" if solved else None, manifest=MANIFEST)


def made_run():
    rows = [
        {"step": step, "loss": 2.0 - 0.1 * step - 0.05 * seed, "arm": arm, "seed": seed}
        for arm in ("plain", "effort")
        for seed in (1, 2)
        for step in (1, 5, 9)
    ]
    names = [f"{arm}-s{seed}" for arm in ("plain", "effort") for seed in (1, 2)]
    return FinetuneRun(
        pd.DataFrame(rows), "runs/made", dict.fromkeys(names, 72), dict.fromkeys(names, 1.5), 0, manifest=MANIFEST
    )
