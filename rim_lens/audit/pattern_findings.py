"""Findings on effort-minimizing reasoning: costs of each class of CoT, patterns in fine-tuning data and in own CoTs."""

import math
from collections.abc import Mapping

import pandas as pd

from rim_lens.patterns.arm_distance import ArmDivergence
from rim_lens.patterns.costs import PatternCosts
from rim_lens.patterns.own_cots import OwnPatterns
from rim_lens.report.finding import Finding
from rim_lens.results import Result
from rim_lens.words import arm, pattern_class

CHAPTER = "Effort-minimizing reasoning"


def pattern_findings(results: Mapping[str, Result]) -> list[Finding]:
    """Lines of the chapter, for what was measured."""
    found: list[Finding] = []
    if isinstance(costs := results.get("pattern_costs"), PatternCosts):
        others = costs.table[costs.table["class"] != costs.reference]
        found += [cost_finding(row) for rows in (others, costs.contrasts) for _, row in rows.iterrows()]
    if isinstance(own := results.get("own_patterns"), OwnPatterns):
        row = own.table[own.table["pattern"] == "any"].iloc[0]
        found.append(share_finding("Sentences with a pattern in the model's own CoTs", row))
        found += [outcome_finding(row) for _, row in own.outcomes.iterrows()]
    if isinstance(arms := results.get("training_patterns"), ArmDivergence):
        for _, row in arms.table[arms.table["pattern"] == "any"].iterrows():
            found.append(share_finding(f"Sentences with a pattern in fine-tuning data, {arm(row['arm'])}", row))
    return found


def cost_finding(row: pd.Series) -> Finding:
    """Refusal lost with a class against another one."""
    q = "" if math.isnan(row["q"]) else f", q = {row['q']:.2g}"
    figure = f"{100 * row['cost']:+.1f} points [{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]{q}"
    what = f"Refusal lost with {pattern_class(row['class'])} against {pattern_class(row['reference'])}"
    n = f"{row['n_prompts']} requests, {row['n_wordings']} wordings"
    return Finding(CHAPTER, what, figure, n, None if math.isnan(row["p"]) else float(row["p"]))


def share_finding(what: str, row: pd.Series) -> Finding:
    """A share of sentences with its interval."""
    figure = f"{100 * row['share']:.1f} % [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"
    return Finding(CHAPTER, what, figure, f"{row['k']}/{row['n']} sentences, {row['n_cots']} CoTs")


def outcome_finding(row: pd.Series) -> Finding:
    """An outcome among own CoTs with and without a pattern; where too few have one, that no outcome could show it."""
    figure = f"{rate(row, 'with')} with a pattern, {rate(row, 'without')} without"
    if row["smallest_p"] >= 0.05:
        figure += "; too few for p < 0.05"
    what = f"Own CoTs with and without a pattern, answer {row['outcome']}"
    n = f"{row['with_n']} and {row['without_n']}"
    return Finding(CHAPTER, what, figure, n, None if math.isnan(row["p"]) else float(row["p"]))


def rate(row: pd.Series, side: str) -> str:
    """A rate with its interval, or that there is none."""
    if not row[f"{side}_n"]:
        return "none"
    low, high = 100 * row[f"{side}_low"], 100 * row[f"{side}_high"]
    return f"{100 * row[f'{side}_rate']:.1f} % [{low:.1f}, {high:.1f}]"
