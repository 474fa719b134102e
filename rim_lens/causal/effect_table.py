"""Effects of single heads as tables and maps."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import stats

from rim_lens.model.lens_model import LensModel
from rim_lens.stats import benjamini_hochberg, bootstrap_means, mean_test
from rim_lens.units import Head


def grid(model: LensModel, heads: Sequence[Head], values: Float[np.ndarray, "prompt set"]) -> np.ndarray:
    """Values of single heads as [prompt, layer, head]; NaN elsewhere."""
    filled = np.full((len(values), model.n_layers, model.n_heads), np.nan)
    for column, (layer, head) in enumerate(heads):
        filled[:, layer, head] = values[:, column]
    return filled


def effect_table(
    heads: Sequence[Head], effect: Float[np.ndarray, "prompt head"], *, n_tests: int, n_permutations: int, seed: int
) -> pd.DataFrame:
    """Mean effect of each head over prompts with its 95 % bootstrap interval, the p of `mean_test` and BH q.

    Q-values count `n_tests` heads; those that were not measured enter with p = 1. `chosen_low` and `chosen_high` hold
    the true effect of a head in 95 % of cases also where it was picked as the largest of them: the 95 % interval
    stretched to Student's t at 1 − 0.05 / n_tests (Benjamini and Yekutieli 2005, one head selected).
    """
    n = len(effect)
    test = mean_test(effect, n_permutations, seed)
    interval = bootstrap_means(effect, seed=seed)
    tails = np.array([0.025 / n_tests, 0.025])
    mean, stretch = effect.mean(axis=0), float(np.divide(*stats.t.isf(tails, max(n - 1, 1))))
    padded = np.concatenate([test.p, np.ones(n_tests - len(heads))])
    columns: dict[str, Any] = {
        "layer": [layer for layer, _ in heads],
        "head": [head for _, head in heads],
        "name": [str(Head.parse(head)) for head in heads],
        "n": n,
        "effect": mean,
        "low": interval.low,
        "high": interval.high,
        "chosen_low": mean - stretch * (mean - interval.low),
        "chosen_high": mean + stretch * (interval.high - mean),
        "p": test.p,
        "q": benjamini_hochberg(padded)[: len(heads)],
    }
    return pd.DataFrame(columns)


def few_prompts(n: int, n_tests: int, n_measured: int) -> str:
    """What so few prompts cannot show, as a clause; empty where one head alone can reach q < 0.05.

    Flipped signs of n values never give a p below 2^(1−n), and q pays for `n_tests` heads.
    """
    smallest = 2.0 ** (1 - n)
    needed = math.floor(smallest * n_tests / 0.05) + 1  # heads that must all have the smallest p
    if needed == 1:
        return ""
    enough = math.ceil(1 + math.log2(n_tests / 0.05))
    can = (
        "no head can reach q < 0.05" if needed > n_measured else f"only {needed} heads or more reach q < 0.05 together"
    )
    return f"; {can}, since p is at least {smallest:.2g} with {n} prompts (one head alone takes {enough})"


def ranked_by(table: pd.DataFrame, size: Float[np.ndarray, " row"]) -> pd.DataFrame:
    """The table with the largest sizes first, and the rank."""
    table = table.iloc[np.argsort(-size, kind="stable")].reset_index(drop=True)
    table.insert(0, "rank", np.arange(1, len(table) + 1))
    return table
