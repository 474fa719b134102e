"""The sections on fine-tuning: how the arms were trained, and what each does to refusal and maths over its seeds."""

import pandas as pd

from rim_lens.patterns.finetune import FinetuneRun
from rim_lens.plots.arms import arm_changes, loss_curves
from rim_lens.plots.style import interval, number, p_value, percent
from rim_lens.report.blocks import Block, Drawing, Grid, Section, Words
from rim_lens.report.wording import clearly, corrected, points
from rim_lens.training_time.arm_comparison import ArmComparison
from rim_lens.words import HARM_SCORE, HARMFUL, LIKELIHOOD, SOLVED, judge_words
from rim_lens.words import arm as arm_name

DRAWN = (HARMFUL, "complied", "incoherent", LIKELIHOOD, SOLVED)
CHANGES = ("arm", "steps", "measure", "before", "after", "change", "p", "q", "n", "trainings")
CONTRASTS = ("steps", "measure", "arm", "against", "difference", "p", "q", "n", "trainings")


def comparison_section(anchor: str, comparison: ArmComparison) -> Section:
    """Arms against the reference, and against each other."""
    blocks: list[Block] = [
        Words(
            "Every training is compared with the start on the same requests and problems. An interval over several "
            "trainings says what another training would do; with one training per arm it speaks for that one alone."
        ),
        *(Drawing(arm_changes(comparison, name)) for name in DRAWN if name in set(comparison.table["measure"])),
        Grid("Every arm and dose as a table", CHANGES, [change_cells(row) for _, row in comparison.table.iterrows()]),
    ]
    if len(comparison.contrasts):
        rows = [contrast_cells(row) for _, row in comparison.contrasts.iterrows()]
        blocks.append(Grid("Arms against each other after the same steps", CONTRASTS, rows))
    return Section(anchor, "What each arm of fine-tuning changes", in_short(comparison), blocks)


def in_short(comparison: ArmComparison) -> list[str]:
    """The largest dose of each arm, and effort-minimizing data against the others."""
    table, sentences = comparison.table, []
    name = comparison.headline
    does = "gives harmful answers" if name == HARMFUL else "complies"
    for arm, rows in table[table["measure"] == name].groupby("arm", sort=False):
        last = rows.iloc[-1]
        is_clear = clearly(last["low"], last["high"], last["q"])
        verdict = ("more" if last["change"] > 0 else "less") if is_clear else "not clearly more or less"
        sentences.append(
            f"After {dose(last)}{arm_name(arm)} the model {does} {verdict}: {percent(last['before'])} → "
            f"{percent(last['after'])} "
            f"({corrected(last['change'], last['low'], last['high'], last['q'])}){judge_words(last)}."
        )
    contrasts = comparison.contrasts
    for _, row in contrasts[(contrasts["measure"] == name) & (contrasts["a"] == "effort")].iterrows():
        is_clear = clearly(row["low"], row["high"], row["q"])
        verdict = ("more" if row["difference"] > 0 else "less") if is_clear else "not clearly more or less"
        sentences.append(
            f"Effort-minimizing data raise {'misalignment' if name == HARMFUL else 'compliance'} {verdict} than "
            f"{arm_name(row['b'])} after {row['step']} steps "
            f"({corrected(row['difference'], row['low'], row['high'], row['q'])}){judge_words(row)}."
        )
    return sentences


def dose(row: pd.Series) -> str:
    """36 steps of; nothing where steps are unknown."""
    return "" if pd.isna(row["step"]) else f"{row['step']} steps of "


def change_cells(row: pd.Series) -> list[str]:
    """One arm, dose and measure."""
    if row["measure"] in (LIKELIHOOD, HARM_SCORE):
        before, after = number(row["before"]), f"{number(row['after'])} {interval(row['after_low'], row['after_high'])}"
    else:
        before = percent(row["before"])
        after = f"{percent(row['after'])} {interval(row['after_low'], row['after_high'], '%')}"
    step = "–" if pd.isna(row["step"]) else str(row["step"])
    return [str(row["arm"]), step, str(row["measure"]), before, after, gap(row, "change"), *tested(row)]


def contrast_cells(row: pd.Series) -> list[str]:
    """Two arms after the same steps."""
    return [str(row["step"]), str(row["measure"]), str(row["a"]), str(row["b"]), gap(row, "difference"), *tested(row)]


def gap(row: pd.Series, column: str) -> str:
    """A difference with its interval, in nats or points."""
    if row["measure"] in (LIKELIHOOD, HARM_SCORE):
        return f"{number(row[column], sign=True)} {interval(row['low'], row['high'])}"
    return points(row[column], row["low"], row["high"])


def tested(row: pd.Series) -> list[str]:
    """The last columns of either table."""
    return [p_value(row["p"]), f"{row['q']:.2g}", str(row["n"]), str(row["n_seeds"])]


def training_section(anchor: str, run: FinetuneRun) -> Section:
    """How the arms were trained."""
    rows = [[name, str(n), f"{run.minutes[name]:.1f}"] for name, n in run.n_rows.items()]
    words = Words(
        "Every arm starts from the same weights and is trained once with each seed, which draws its problems, "
        "phrases and order. The loss is on the assistant's tokens."
    )
    blocks: list[Block] = [words, Drawing(loss_curves(run)), Grid("Runs", ("run", "examples", "minutes"), rows)]
    return Section(anchor, "How the arms were trained", [], blocks)
