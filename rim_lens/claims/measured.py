"""From an audit's results to the evidence for each claim, or to the reason why there is none.

Names are those that an audit gives its results: behavior, pattern_costs, attention_by_score, head_test, series,
series_maths, neuron_test, neuron_shift, forgetting.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import stats

from rim_lens.behavior.conditions import cells
from rim_lens.behavior.judge_errors import JudgeErrors
from rim_lens.behavior.measure import RimTable
from rim_lens.behavior.rates import on_same_prompts, outcomes
from rim_lens.causal.ablation_test import AblationTest
from rim_lens.claims.evidence import Evidence, crossed, means, rank_correlation, shares, weakest
from rim_lens.errors import RimLensError
from rim_lens.inference_time.refusal_heads import RefusalHeads
from rim_lens.patterns.cost_tables import CAREFUL, with_any
from rim_lens.patterns.costs import PatternCosts
from rim_lens.results import Result
from rim_lens.training_time.arm_comparison import by_checkpoint, cells_of
from rim_lens.training_time.forgetting import FEWEST, Forgetting
from rim_lens.training_time.series_answers import SeriesBehavior
from rim_lens.training_time.series_problems import SeriesMaths
from rim_lens.training_time.series_shift import SeriesShift
from rim_lens.words import ANY

EFFORT, REFUSED = "effort", "refused"
Results = Mapping[str, Result]
RANDOM = "random sets do as much too often"
JUDGE = "the judge's errors alone could make the difference"


def evidence_of(results: Results, margins: Mapping[str, float]) -> dict[str, Evidence | str]:
    """Evidence by claim; a text says why there is none."""
    evidence: dict[str, Evidence | str] = {}
    for name, read in READERS.items():
        try:
            evidence[name] = read(results, margins)
        except RimLensError as reason:
            evidence[name] = str(reason)
    return evidence


def part(results: Results, name: str, kind: type) -> Any:
    """The result of this name; RimLensError with its own reason where there is none."""
    result = results.get(name)
    if not isinstance(result, kind):
        raise RimLensError(getattr(result, "reason", "not measured"))
    return result


def thinking(results: Results, margins: Mapping[str, float]) -> Evidence:
    """Refusal with thinking off minus on."""
    table = part(results, "behavior", RimTable)
    return refusal_lost(condition_of(table, "off"), condition_of(table, "on"), table.errors, "behavior")


def effort_cot(results: Results, margins: Mapping[str, float]) -> Evidence:
    """Refusal with careful and with neutral CoTs minus with effort-minimizing ones; the smaller difference counts."""
    costs = results.get("pattern_costs")
    if isinstance(costs, PatternCosts):
        by_class, name, errors, effort = with_any(costs.answers), "pattern_costs", costs.errors, ANY
    else:
        table = part(results, "behavior", RimTable)
        harmful = table.answers[table.answers["set"] == "harmful"]
        by_class = {str(key): rows for key, rows in harmful.groupby("condition", sort=False)}
        name, errors, effort = "behavior", table.errors, "effort_minimizing"
    missing = [key for key in (effort, CAREFUL, "neutral") if key not in by_class]
    if missing:
        raise RimLensError(f"no answers with {missing[0].replace('_', '-')} CoTs")
    others = (by_class[key] for key in (CAREFUL, "neutral"))
    return weakest([refusal_lost(other, by_class[effort], errors, name) for other in others])


def attention(results: Results, margins: Mapping[str, float]) -> Evidence:
    """Rank correlation of the chosen heads' attention with what it should go with, on chats they were not chosen on."""
    heads = part(results, "attention_by_score", RefusalHeads)
    held = heads.held_out
    if held is None or held.empty:
        raise RimLensError("not measured on other chats")
    parts = [
        rank_correlation(
            rows["attention"].to_numpy(), rows["outcome"].to_numpy(), "attention_by_score", counted="chats"
        )
        for _, rows in held.groupby("contrast", sort=False)
        if len(rows) >= 4 and rows["attention"].nunique() > 1 and rows["outcome"].nunique() > 1
    ]
    if not parts:
        raise RimLensError("fewer than 4 chats that heads were not chosen on")
    return weakest(parts)


def set_of(name: str) -> Callable[[Results, Mapping[str, float]], Evidence]:
    """A reader: how much more the refusal score falls without these units than without random sets."""

    def read(results: Results, margins: Mapping[str, float]) -> Evidence:
        test = part(results, name, AblationTest)
        if "control" not in test.prompts:
            raise RimLensError("measured before control sets were kept per prompt; measure again")
        rows = test.table[test.table["measure"].str.startswith("refusal score") & (test.table["n_controls"] > 1)]
        if rows.empty:
            raise RimLensError("no refusal score with control sets")
        row = rows.loc[rows["k"].idxmax()]
        same = (test.prompts["change"] == row["change"]) & (test.prompts["k"] == row["k"])
        prompts = test.prompts[same & (test.prompts["measure"] == row["measure"])]
        same = (test.controls["change"] == row["change"]) & (test.controls["k"] == row["k"])
        random = test.controls[same & (test.controls["measure"] == row["measure"])]["effect"].to_numpy()
        more = (prompts["control"] - prompts["after"]).to_numpy()
        return means(more, name, least_p=p_among(-row["effect"], -random), second=RANDOM)

    return read


def p_among(value: float, random: Float[np.ndarray, "set"]) -> float:
    """One-sided p of a set's effect among those of random sets.

    Where no random set reaches it, Student's t of one more draw from their distribution, at most 1 / (m + 1): counting
    could never pass a correction over claims with a hundred sets.
    """
    m = len(random)
    beyond = int((random >= value).sum())
    spread = float(random.std(ddof=1))
    if beyond or spread == 0:
        return (beyond + 1) / (m + 1)
    t = (value - float(random.mean())) / (spread * math.sqrt(1 + 1 / m))
    return min(float(stats.t.sf(t, m - 1)), 1 / (m + 1))


def reasoning_data(results: Results, margins: Mapping[str, float]) -> Evidence:
    """Refusal lost after the largest dose of reasoning data; supported only where maths is kept."""
    series = part(results, "series", SeriesBehavior)
    arms = {arm: seeds for arm, seeds in last_dose(series).items() if arm != EFFORT} or last_dose(series)
    refused = refusals(series)
    before = refused[series.reference][:, None]
    evidence = lost_between(before, over_arms(arms, refused), series.errors, "series")
    maths = results.get("series_maths")
    if not isinstance(maths, SeriesMaths):
        return replace(evidence, hindrance="maths was not measured, so reasoning may be lost")
    likelihood = by_checkpoint(maths.answers, lambda rows: rows["likelihood"])
    after = over_arms(arms, likelihood)
    gained = after - likelihood[maths.reference].mean(axis=1)[:, None, None]
    solved = (
        means(gained[:, 0, 0], "series_maths")
        if gained.shape[1] == 1
        else crossed(gained.mean(axis=2), np.zeros((len(gained), 1)), "series_maths")
    )
    shifted = replace(solved, effect=solved.effect + margins["maths_kept"], bounds=moved(solved, margins["maths_kept"]))
    return replace(evidence, least_p=max(evidence.least_p, shifted.p_of_none()))


def moved(evidence: Evidence, by: float) -> Callable[[float], tuple[float, float]]:
    """Bounds of the effect plus a constant."""

    def bounds(a: float) -> tuple[float, float]:
        low, high = evidence.bounds(a)
        return low + by, high + by

    return bounds


def effort_data(results: Results, margins: Mapping[str, float]) -> Evidence:
    """Refusal after each other arm minus after effort-minimizing data, at the largest dose; the smallest counts."""
    series = part(results, "series", SeriesBehavior)
    trained = series.table[series.table["checkpoint"] != series.reference]
    names, refused = cells_of(trained), refusals(series)
    steps = [step for arm, step in names if arm == EFFORT and step is not None]
    parts = []
    for arm in dict.fromkeys(arm for arm, _ in names if arm != EFFORT):
        shared = [step for step in steps if (arm, step) in names]
        if not shared:
            continue
        other, effort = names[arm, max(shared)], names[EFFORT, max(shared)]
        seeds = sorted(other.keys() & effort.keys())
        if seeds:
            before, after = (np.stack([refused[side[seed]] for seed in seeds], axis=1) for side in (other, effort))
            parts.append(lost_between(before, after, series.errors, "series"))
    if not parts:
        raise RimLensError("no arm of effort-minimizing data beside another at the same dose")
    return weakest(parts)


def neuron_shift(results: Results, margins: Mapping[str, float]) -> Evidence:
    """Movement of the neurons on safety prompts beyond that of matched neurons, in % of their activation, over arms."""
    shift = part(results, "neuron_shift", SeriesShift)
    rows = shift.table[(shift.table["scope"] == "all") & (shift.table["prompts"] == "safety")]
    if "control_moved" not in rows:
        raise RimLensError("measured before the movement of neurons was; measure again")
    last = rows.groupby(rows["arm"].fillna(rows["checkpoint"]), sort=False).tail(1)
    effect = 100 * float((last["moved"] - last["control_moved"]).mean())
    error = 100 * float(((last["moved_high"] - last["moved_low"]) / 2).mean()) / float(stats.norm.ppf(0.975))
    # twice the mean of p-values is a p-value however they depend on each other (Rüschendorf 1982)
    p = float(last["p_moved"].iloc[0]) if len(last) == 1 else min(1.0, 2 * float(last["p_moved"].mean()))

    def bounds(a: float) -> tuple[float, float]:
        half = float(stats.norm.isf(a)) * error
        return effect - half, effect + half

    return Evidence(effect, bounds, shift.n_safety, "neuron_shift", least_p=p, second=RANDOM)


def ras(results: Results, margins: Mapping[str, float]) -> Evidence:
    """Rank correlation of RAS with the refusals that each training lost, at its largest dose.

    One point per training: the doses of one training grow together, so that they are not independent of each other.
    """
    table = part(results, "forgetting", Forgetting).table
    if "refusals_lost" not in table:
        raise RimLensError("no judged answers at the checkpoints")
    trainings = table.fillna({"arm": "", "seed": 0}).sort_values("step").groupby(["arm", "seed"], sort=False)
    last = trainings.tail(1)
    if len(last) < FEWEST:
        raise RimLensError(f"{len(last)} trainings, where {FEWEST} are needed")
    if last["ras_safety"].nunique() == 1 or last["refusals_lost"].nunique() == 1:
        raise RimLensError("RAS or refusals lost do not vary")
    return rank_correlation(
        last["ras_safety"].to_numpy(), last["refusals_lost"].to_numpy(), "forgetting", counted="trainings"
    )


READERS: dict[str, Callable[[Results, Mapping[str, float]], Evidence]] = {
    "thinking": thinking,
    "effort_cot": effort_cot,
    "attention": attention,
    "heads": set_of("head_test"),
    "reasoning_data": reasoning_data,
    "effort_data": effort_data,
    "safety_neurons": set_of("neuron_test"),
    "neuron_shift": neuron_shift,
    "ras": ras,
}


def condition_of(table: RimTable, name: str) -> pd.DataFrame:
    """Answers to harmful requests in one condition."""
    rows = table.answers[(table.answers["set"] == "harmful") & (table.answers["condition"] == name)]
    if rows.empty:
        raise RimLensError(f"no answers with thinking {name}")
    return rows


def refusal_lost(before: pd.DataFrame, after: pd.DataFrame, errors: JudgeErrors | None, where: str) -> Evidence:
    """Points of refusal that the second condition has less, over shared prompts."""
    first, second = on_same_prompts(*(cells(rows, outcomes(rows, REFUSED).tolist()) for rows in (before, after)))
    return lost_between(first, second, errors, where)


def lost_between(before: np.ndarray, after: np.ndarray, errors: JudgeErrors | None, where: str) -> Evidence:
    """Points of refusal lost between outcomes [prompt, second factor, sample] of the same prompts."""
    if len(before) < 2:
        raise RimLensError("fewer than 2 prompts")
    trainings = max(before.shape[1], after.shape[1]) if where == "series" else 1
    about: dict[str, Any] = {"n": trainings, "counted": "trainings per arm"} if trainings > 1 else {}
    evidence = shares(before, after, where, **about)
    if any(math.isnan(end) for end in evidence.bounds(0.025)):
        raise RimLensError("answers that do not vary give no interval")
    known = errors.of(REFUSED) if errors else None
    could = known is not None and known.could_make(float(np.nanmean(before)), float(np.nanmean(after)))
    return replace(evidence, hindrance=JUDGE) if could else evidence


def refusals(series: SeriesBehavior) -> dict[str, Float[np.ndarray, "prompt sample"]]:
    """Refused or not, by checkpoint."""
    return by_checkpoint(series.answers, lambda rows: pd.Series(outcomes(rows, REFUSED)))


def last_dose(series: SeriesBehavior) -> dict[str, dict[int, str]]:
    """Each arm's checkpoints after its largest dose, by seed."""
    trained = series.table[series.table["checkpoint"] != series.reference]
    if trained.empty:
        raise RimLensError("the series holds only its reference")
    last: dict[str, tuple[int, dict[int, str]]] = {}
    for (arm, step), seeds in cells_of(trained).items():
        if arm not in last or (step or 0) >= last[arm][0]:
            last[arm] = (step or 0, seeds)
    return {arm: seeds for arm, (_, seeds) in last.items()}


def over_arms(
    arms: Mapping[str, Mapping[int, str]], values: Mapping[str, Float[np.ndarray, "prompt sample"]]
) -> Float[np.ndarray, "prompt seed sample"]:
    """The mean over arms for every seed that all arms have; arms are fixed, seeds are drawn."""
    shared = sorted(set.intersection(*(set(seeds) for seeds in arms.values())))
    if not shared:
        raise RimLensError("no seed that all arms were trained with")
    return np.stack([np.mean([values[seeds[seed]] for seeds in arms.values()], axis=0) for seed in shared], axis=1)
