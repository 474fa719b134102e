"""Do RAS and its rivals follow refusals lost where it is known whether maths uses the neurons of refusal?

Every stage of every lineage of `training-known` is measured as a series is: refusals from judged answers, neurons on
requests about food and on maths problems. RAS is taken on three sets: the trained neurons, those that the paper's
recipe finds at the reference, and the first k by gradient × activation.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from benchmarks.trust.neuron_methods import GROUPS, PAPER, TOP, ordered, read
from rim_lens import PromptSet, measure_series, organisms, refusal_forcing_pairs
from rim_lens.data.prompts import Prompt
from rim_lens.training_time.checkpoints import Checkpoints
from rim_lens.training_time.forgetting import MOST_ZEROS, PREDICTORS, forgetting_of
from rim_lens.training_time.safety_neurons import find_safety_neurons

N_SELECT, N_REPORT, N_PROBLEMS, N_CONTROLS = 16, 24, 16, 200
FEWEST_TRAININGS = 4  # for an interval
PROBLEMS = Path(__file__).parents[2] / "assets" / "organism" / "training_sample" / "plain.jsonl"


@dataclass(frozen=True)
class Stage:
    """One stage of one lineage, with the refusals it lost and what each predictor says, by name."""

    lineage: int
    arm: str
    steps: int
    refused_before: int
    refused: int
    n: int
    maths_gain: tuple[float, float, float]  # mean, low, high, nats per token
    predictors: dict[str, float]


def stages(lineage: int) -> list[Stage]:
    """All stages of a lineage but the reference."""
    organism = organisms.load("training-known", lineage=lineage)
    order = np.random.default_rng(lineage).permutation(len(organism.prompts)).tolist()
    select, report = order[:N_SELECT], [organism.prompts[i] for i in order[-N_REPORT:]]
    sets = chosen_sets(organism, [organism.prompts[i] for i in select])
    del organism
    series = Checkpoints.from_folder(organisms.series(lineage))
    measured = measure_series(
        series.open(device="cpu", dtype="float32"),
        series,
        report,
        problems(),
        neurons=np.unique(np.concatenate(list(sets.values())), axis=0),
        answers=True,
        max_new_tokens=14,
        temperature=0.0,
    )
    answers = measured.behavior().table.set_index("checkpoint")
    maths = measured.maths().table.set_index("checkpoint")
    tables: dict[str, Any] = {}
    variants: dict[str, Any] = {}
    for name, rows in sets.items():
        found = forgetting_of(None, measured.found, rows, n_controls=N_CONTROLS, n_resamples=200)
        tables[name] = found.table.set_index("checkpoint")
        variants[name] = found.ras
    rows = []
    before = answers.loc[measured.reference]
    for name in tables["trained"].index:
        values = {}
        for of, table in tables.items():
            one = variants[of][variants[of]["checkpoint"] == name]
            values |= {
                f"RAS, {row.mean}, over {row.averaging}s first, {of} neurons": float(row.ras)
                for row in one.itertuples(index=False)
            }
            values |= {f"{key}, {of} neurons": float(table.loc[name, key]) for key in ("safety_loss", "task_gain")}
        shared = [key for key in PREDICTORS if key not in ("ras_safety", "ras_control", "safety_loss", "task_gain")]
        values |= {key: float(tables["trained"].loc[name, key]) for key in shared}
        rows.append(
            Stage(
                lineage=lineage,
                arm=str(measured[name].checkpoint.arm),
                steps=int(measured[name].checkpoint.step or 0),
                refused_before=int(before["refused"]),
                refused=int(answers.loc[name, "refused"]),
                n=int(before["n"]),
                maths_gain=tuple(float(maths.loc[name, key]) for key in ("change", "change_low", "change_high")),
                predictors=values,
            )
        )
    return rows


def problems() -> PromptSet:
    """Problems with worked answers that no lineage was trained on."""
    rows = [json.loads(line) for line in PROBLEMS.read_text(encoding="utf-8").splitlines()[:N_PROBLEMS]]
    prompts = (
        Prompt(row["request"], "maths", str(i), answer=re.findall(r"-?\d+", row["response"])[-1], rationale=row["cot"])
        for i, row in enumerate(rows)
    )
    return PromptSet("training sample", "built-in", tuple(prompts), "Apache-2.0")


def chosen_sets(organism, prompts: Sequence) -> dict[str, np.ndarray]:
    """The trained neurons, and as many as two methods find at the reference."""
    model, k = organism.model, len(organism.truth)
    chats = model.render(list(prompts), thinking="off")
    pairs = refusal_forcing_pairs(model, [one.text for one in prompts]).in_groups(GROUPS)
    recipe = find_safety_neurons(model, pairs, top=TOP, n_resamples=20, **PAPER).table[["layer", "unit"]]
    best = ordered(read(model, chats).attributed.mean(0))[:k]
    return {
        "trained": np.array([one[:2] for one in organism.truth]),
        "the recipe's": recipe.head(k).to_numpy(),
        "attributed": np.array([one[:2] for one in best]),
    }


def follows(rows: Sequence[dict[str, Any]], n_resamples: int = 500) -> pd.DataFrame:
    """For every predictor: rank correlation with refusals lost, and whether it tells the arms apart.

    `rho`: Spearman's over all stages, NaN for a predictor that is 0 at a third of them; its interval from resampled
    trainings (lineage and arm together), NaN below four. `apart`: share of pairs of stages of one lineage and dose in
    which the entangled one has the larger value, `n_pairs` of them; ties count half.
    """
    table = pd.DataFrame([{**one, **one["predictors"]} for one in rows])
    lost = (table["refused_before"] - table["refused"]) / table["n"]
    groups = [part.index.to_numpy() for _, part in table.groupby(["lineage", "arm"])]
    rng, found = np.random.default_rng(0), []
    n_resamples = n_resamples if len(groups) >= FEWEST_TRAININGS else 0
    draws = [np.concatenate([groups[i] for i in rng.integers(0, len(groups), len(groups))]) for _ in range(n_resamples)]
    for name in rows[0]["predictors"]:
        x = table[name].to_numpy(float)
        again = [spearmanr(x[i], lost[i])[0] for i in draws if np.ptp(x[i]) > 0 and np.ptp(lost[i]) > 0]
        pairs = table.assign(x=x).pivot(index=["lineage", "steps"], columns="arm", values="x")
        differ = (pairs["entangled"] - pairs["separate"]).to_numpy()
        found.append(
            {
                "predictor": name,
                "rho": float(spearmanr(x, lost)[0]) if (x == 0).mean() < MOST_ZEROS else np.nan,
                "low": float(np.quantile(again, 0.025)) if again else np.nan,
                "high": float(np.quantile(again, 0.975)) if again else np.nan,
                "apart": float((differ > 0).mean() + (differ == 0).mean() / 2),
                "n_pairs": len(differ),
                "zeros": int((x == 0).sum()),
                "n": len(x),
            }
        )
    return pd.DataFrame(found)
