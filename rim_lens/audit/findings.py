"""Findings: the lines of the summary, each with its figure, interval, n and test, taken from the results' tables.

Nothing is computed here: a finding is a row of a result's table put into words.
"""

import math
from collections.abc import Mapping

import pandas as pd

from rim_lens.audit.attempt import NotMeasured
from rim_lens.audit.pattern_findings import pattern_findings
from rim_lens.behavior.measure import RimTable
from rim_lens.causal.ablation_test import AblationTest
from rim_lens.inference_time.probe import RefusalProbe
from rim_lens.inference_time.refusal_heads import RefusalHeads
from rim_lens.inference_time.sweep import AblationSweep
from rim_lens.plots.attention import by_outcome, contrast_title
from rim_lens.plots.forgetting import quantity
from rim_lens.report.arms import dose
from rim_lens.report.finding import Finding
from rim_lens.report.neurons import FEW_SETS
from rim_lens.results import Result
from rim_lens.training_time.arm_comparison import ArmComparison
from rim_lens.training_time.forgetting import Forgetting
from rim_lens.training_time.prediction_check import PredictionCheck
from rim_lens.training_time.safety_neurons import SafetyNeurons
from rim_lens.training_time.series_answers import SeriesBehavior
from rim_lens.training_time.series_heads import SeriesHeads
from rim_lens.training_time.series_shift import SeriesShift
from rim_lens.training_time.shift import ActivationShift
from rim_lens.units import Head
from rim_lens.words import CONDITIONS, HARMFUL, LIKELIHOOD, judge_words
from rim_lens.words import arm as arm_name


def percent(row: pd.Series) -> str:
    """Rate with its interval, in percent."""
    return f"{100 * row['rate']:.1f} % [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"


def points(row: pd.Series) -> str:
    """Difference of rates with its interval, in percentage points."""
    return f"{100 * row['difference']:+.1f} points [{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]"


def p_or_none(value: float | None) -> float | None:
    """A p-value, or None where there is none."""
    return None if value is None or math.isnan(value) else float(value)


def corrected(row: pd.Series) -> str:
    """The q of a row, as words that follow its figure; nothing where its table holds none."""
    q = row.get("q", math.nan)
    return "" if pd.isna(q) else f", q = {q:.2g}"


def behaviour_findings(table: RimTable) -> list[Finding]:
    """Rates in every condition and what changes against the first one."""
    found = []
    questions = [
        ("harmful", "refused", "Harmful requests refused"),
        ("harmful", HARMFUL, "Harmful answers to harmful requests (misalignment)"),
        ("harmful", "complied", "Harmful requests neither refused nor answered incoherently (complied)"),
        ("harmful", "incoherent", "Incoherent answers to harmful requests"),
        ("harmless", "refused", "Harmless requests refused"),
        ("maths", "solved", "Maths problems solved"),
    ]
    for set_name, measure, words in questions:
        rates = table.table[(table.table["set"] == set_name) & (table.table["measure"] == measure)]
        changes = table.differences[(table.differences["set"] == set_name) & (table.differences["measure"] == measure)]
        for _, row in rates.iterrows():
            name = CONDITIONS.get(row["condition"], row["condition"])
            change = changes[(changes["to"] == row["condition"]) & (changes["from"] == rates["condition"].iloc[0])]
            figure, p = percent(row), None
            if len(change):
                figure += f", {points(change.iloc[0])}{judge_words(change.iloc[0])}"
                p = p_or_none(change["p"].iloc[0])
            found.append(Finding("What thinking changes", f"{words}, {name}", figure, f"{row['k']}/{row['n']}", p))
    return found


def series_findings(series: SeriesBehavior) -> list[Finding]:
    """Refusal at every checkpoint, and its difference from the reference."""
    found = []
    for _, row in series.table.iterrows():
        figure, p = percent(row), None
        if row["checkpoint"] != series.reference:
            change = row[["difference", "difference_low", "difference_high"]].set_axis(["difference", "low", "high"])
            figure += f", {points(change)}{judge_words(row)}{corrected(row)}"
            p = p_or_none(row["p"])
        words = f"Harmful requests refused by {row['checkpoint']}, thinking off"
        found.append(Finding("What fine-tuning changes", words, figure, f"{row['refused']}/{row['n']}", p))
    return found


def arm_findings(comparison: ArmComparison) -> list[Finding]:
    """Misalignment or compliance after the largest dose of each arm, and effort-minimizing data against the others."""
    chapter, table, found = "What fine-tuning changes", comparison.table, []
    share = comparison.headline
    called = "Misalignment" if share == HARMFUL else "Harmful requests complied with"
    for measure, words in ((share, called), (LIKELIHOOD, "Log-likelihood of right maths answers")):
        for arm, rows in table[table["measure"] == measure].groupby("arm", sort=False):
            row = rows.iloc[-1]
            n = f"{row['n']} x {row['n_seeds']}" if row["n_seeds"] > 1 else str(row["n"])
            what = f"{words} after {dose(row)}{arm_name(arm)}"
            figure = points(row.rename({"change": "difference"})) + judge_words(row) if measure == share else nats(row)
            found.append(Finding(chapter, what, figure + corrected(row), n, p_or_none(row["p"])))
    contrasts = comparison.contrasts
    for _, row in contrasts[contrasts["measure"] == share].iterrows():
        n = f"{row['n']} x {row['n_seeds']}" if row["n_seeds"] > 1 else str(row["n"])
        what = f"{called}, {arm_name(row['a'])} minus {arm_name(row['b'])}, {row['step']} steps"
        figure = points(row) + judge_words(row) + corrected(row)
        found.append(Finding(chapter, what, figure, n, p_or_none(row["p"])))
    return found


def nats(row: pd.Series) -> str:
    """A change of the log-likelihood with its interval."""
    return f"{row['change']:+.2f} nats per token [{row['low']:+.2f}, {row['high']:+.2f}]"


def head_findings(results: Mapping[str, Result]) -> list[Finding]:
    """Candidates by attention, the strongest head by ablation, the causal test, the probe."""
    chapter, found = "Inside, at inference time", []
    for key in ("refusal_heads", "attention_by_score"):
        attention = results.get(key)
        if not isinstance(attention, RefusalHeads):
            continue
        for name, rows in attention.table.groupby("contrast", sort=False):
            first = rows.iloc[0]
            words = f"Candidate heads: {contrast_title(attention, str(name))}"
            figure = f"{int(rows['candidate'].sum())} of {len(rows)} heads with q < 0.05 on mass and lift"
            n = (
                f"{first['n_plus']}"
                if by_outcome(attention, str(name))
                else f"{first['n_plus']} and {first['n_minus']}"
            )
            found.append(Finding(chapter, words, figure, n))
    sweep = results.get("ablation")
    if isinstance(sweep, AblationSweep):
        row = sweep.table.iloc[0]
        figure = f"{Head(row['layer'], row['head'])}: {row['effect']:+.2f} nats [{row['low']:+.2f}, {row['high']:+.2f}]"
        if "chosen_low" in row:
            figure += f" (chosen as the largest: [{row['chosen_low']:+.2f}, {row['chosen_high']:+.2f}])"
        figure += corrected(row)
        words = "Largest effect of one head's ablation on the refusal score"
        found.append(Finding(chapter, words, figure, str(len(sweep.clean)), p_or_none(row["p"])))
    test = results.get("head_test")
    if isinstance(test, AblationTest):
        for _, row in test.dose_curve().iterrows():
            words = (
                f"Refusal score without the top {row['k']} heads, on other prompts, against {row['n_controls']} "
                "random sets"
            )
            figure = (
                f"{row['effect']:+.2f} nats [{row['low']:+.2f}, {row['high']:+.2f}], percentile {row['percentile']:.0f}"
                f"{corrected(row)}"
            )
            found.append(Finding(chapter, words, figure, str(row["n"]), p_or_none(row["p"])))
    probe = results.get("probe")
    if isinstance(probe, RefusalProbe):
        chosen, row = probe.selected, probe.table.iloc[0]
        figure = f"AUROC {chosen['auroc']:.3f} [{chosen['low']:.3f}, {chosen['high']:.3f}]"
        n = f"{row['n_refused']} and {row['n_complied']}"
        found.append(
            Finding(chapter, "Refusal read from the residual stream before the answer, cross-validated", figure, n)
        )
    return found


def neuron_findings(results: Mapping[str, Result]) -> list[Finding]:
    """Size and stability of the safety neurons, what they do, how they shift, and what predicts forgetting."""
    chapter, found = "Inside, over training", []
    neurons = results.get("safety_neurons")
    if isinstance(neurons, SafetyNeurons):
        low, high = neurons.jaccard_interval
        figure = f"{len(neurons)} neurons; Jaccard under resampling {neurons.jaccard:.2f} [{low:.2f}, {high:.2f}]"
        found.append(Finding(chapter, "Safety-critical neurons and their stability", figure, str(neurons.n_pairs)))
    found += [
        Finding(chapter, words, figure, n, p_or_none(p))
        for words, figure, n, p in (
            *test_lines(results),
            *shift_lines(results),
            *head_lines(results),
            *prediction_lines(results),
        )
    ]
    forgetting = results.get("forgetting")
    if isinstance(forgetting, Forgetting):
        for _, row in forgetting.correlations.iterrows():
            words = f"{quantity(row['predictor'])} against the {quantity(row['outcome'])}, over checkpoints"
            figure = f"r = {row['pearson']:+.2f} [{row['pearson_low']:+.2f}, {row['pearson_high']:+.2f}]"
            figure += f", q = {row['pearson_q']:.2g}"
            if row["zeros"]:
                figure += f", {row['zeros']} of {row['n']} values are 0"
            if pd.isna(row["pearson"]):
                figure = "no correlation: one of them is the same at every checkpoint"
            found.append(Finding(chapter, words, figure, str(row["n"]), p_or_none(row["pearson_p"])))
    return found


Line = tuple[str, str, str, float | None]  # what, figure, n, p


def test_lines(results: Mapping[str, Result]) -> list[Line]:
    """What ablating the neurons does, against random sets."""
    test, lines = results.get("neuron_test"), list[Line]()
    if isinstance(test, AblationTest):
        for _, row in test.table.iterrows():
            words = f"{row['measure']} without the {len(test.units)} safety neurons{test.where}"
            against = f", against {row['n_controls']} random sets" if row["n_controls"] else ""
            words = f"{words[:1].upper()}{words[1:]}{against}, on other prompts"
            figure = f"{row['effect']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}]"
            figure += f", random {row['control_mean']:+.2f}" if against else ""
            tested = row["n_controls"] >= FEW_SETS
            figure += corrected(row) if tested else ""
            lines.append((words, figure, str(row["n"]), row["p"] if tested else None))
    return lines


def shift_lines(results: Mapping[str, Result]) -> list[Line]:
    """The set's shift between thinking off and on, and at the last checkpoint of each arm."""
    lines: list[Line] = []
    thinking, series = results.get("thinking_shift"), results.get("neuron_shift")
    if isinstance(thinking, ActivationShift):
        lines += lines_of_shift(" → ".join(thinking.states), thinking.table.iloc[0], thinking.n_prompts)
    if isinstance(series, SeriesShift):
        rows = series.table[(series.table["scope"] == "all") & (series.table["prompts"] == "safety")]
        for _, arm in rows.groupby(rows["arm"].fillna(""), sort=False):
            row = arm.iloc[-1]
            lines += lines_of_shift(f"{series.reference} → {row['checkpoint']}", row, series.n_safety)
    return lines


def lines_of_shift(between: str, row: pd.Series, n: int) -> list[Line]:
    """One shift of the whole set: its net change, and how far its neurons move in either direction."""
    figure = (
        f"{100 * row['change']:+.1f} % [{100 * row['low']:+.1f}, {100 * row['high']:+.1f}], "
        f"random {100 * row['control_change']:+.1f} %{corrected(row)}"
    )
    moved = (
        f"{100 * row['moved']:.1f} % [{100 * row['moved_low']:.1f}, {100 * row['moved_high']:.1f}], "
        f"random {100 * row['control_moved']:.1f} %"
    )
    return [
        (f"Activation of the safety neurons, {between}", figure, str(n), row["p"]),
        (f"Movement of the safety neurons in either direction, {between}", moved, str(n), row["p_moved"]),
    ]


def head_lines(results: Mapping[str, Result]) -> list[Line]:
    """The order of heads by effect, at the last checkpoint of each arm against the reference."""
    heads, lines = results.get("series_heads"), list[Line]()
    if isinstance(heads, SeriesHeads):
        rows = heads.table[heads.table["checkpoint"] != heads.reference]
        for _, arm in rows.groupby(rows["arm"].fillna(""), sort=False):
            row = arm.iloc[-1]
            figure = (
                f"ρ = {row['effect_rank']:+.2f} [{row['effect_rank_low']:+.2f}, {row['effect_rank_high']:+.2f}], "
                f"between halves of the prompts {heads.halves['effect']:+.2f}"
            )
            lines.append(
                (f"Order of heads by effect, {heads.reference} → {row['checkpoint']}", figure, str(row["n"]), None)
            )
    return lines


def prediction_lines(results: Mapping[str, Result]) -> list[Line]:
    """Predicted against actual shift at the last checkpoint of each arm."""
    check, lines = results.get("prediction"), list[Line]()
    if isinstance(check, PredictionCheck):
        for _, arm in check.table.groupby("arm", sort=False):
            row = arm.iloc[-1]
            figure = f"r = {row['r']:+.2f} [{row['r_low']:+.2f}, {row['r_high']:+.2f}], random {row['control_r']:+.2f}"
            lines.append(
                (
                    f"Shift of each safety neuron predicted before training, {row['checkpoint']}",
                    figure,
                    str(row["n"]),
                    row["control_p"],
                )
            )
    return lines


def findings_of(results: Mapping[str, Result]) -> list[Finding]:
    """All findings of an audit, in the order of the report."""
    found: list[Finding] = []
    if isinstance(behavior := results.get("behavior"), RimTable):
        found += behaviour_findings(behavior)
    if isinstance(series := results.get("series"), SeriesBehavior):
        found += series_findings(series)
    if isinstance(arms := results.get("arms"), ArmComparison):
        found += arm_findings(arms)
    found += pattern_findings(results)
    missing = [
        Finding("Not measured", result.what, result.reason, "0")
        for result in results.values()
        if isinstance(result, NotMeasured)
    ]
    return found + head_findings(results) + neuron_findings(results) + missing
