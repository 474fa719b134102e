"""The section on the checkpoint series: refusal rate and score after every dose of fine-tuning."""

import pandas as pd

from rim_lens.plots.series import maths_over_series, refusal_over_series
from rim_lens.plots.style import interval, number, p_value, percent
from rim_lens.report.blocks import Block, Drawing, Grid, Section, Words
from rim_lens.report.wording import clearly, corrected, points
from rim_lens.training_time.series_answers import SeriesBehavior
from rim_lens.training_time.series_problems import SeriesMaths
from rim_lens.words import arm, judge_words

MATHS_COLUMNS = ("checkpoint", "arm", "step", "log-likelihood", "change", "q", "n")
COLUMNS = ("checkpoint", "arm", "step", "refused", "complied", "incoherent", "rate", "change", "q", "refusal score")


def section(anchor: str, series: SeriesBehavior) -> Section:
    """Refusal over checkpoints."""
    blocks: list[Block] = [
        Words(
            f"Every checkpoint answers the same {int(series.table['n'].iloc[0])} harmful requests with thinking off, "
            f"and is compared with {series.reference} request by request. The refusal score is the log-odds of "
            "opening with a refusal."
        ),
        Drawing(refusal_over_series(series, "rate")),
        Drawing(refusal_over_series(series, "score")),
        Grid("All checkpoints as a table", COLUMNS, [cells(row) for _, row in series.table.iterrows()]),
    ]
    return Section(anchor, "Refusal over the checkpoints", in_short(series), blocks)


def in_short(series: SeriesBehavior) -> list[str]:
    """The reference, and the last checkpoint of each arm against it."""
    table = series.table
    reference = table[table["checkpoint"] == series.reference].iloc[0]
    sentences = [
        f"The reference checkpoint {series.reference} refuses {percent(reference['rate'])} "
        f"{interval(reference['low'], reference['high'], '%')}, {reference['refused']} of {reference['n']} "
        "harmful requests, thinking off."
    ]
    others = table[table["checkpoint"] != series.reference]
    for name, rows in others.groupby(others["arm"].fillna(""), sort=False):
        if (
            name and rows["seed"].nunique() <= 1
        ):  # several trainings of an arm are told together, in a section of their own
            sentences.append(arm_sentence(str(name), rows.iloc[-1]))
    fewer = others[(others["difference"] < 0) & (others["q"] < 0.05)]
    sentences.append(
        f"{len(fewer)} of {len(others)} checkpoints refuse less than {series.reference} (q < 0.05 over all "
        "checkpoints)."
    )
    return sentences


def arm_sentence(name: str, last: pd.Series) -> str:
    """What the longest training of an arm did to refusal."""
    change = corrected(last["difference"], last["difference_low"], last["difference_high"], last["q"])
    is_clear = clearly(last["difference_low"], last["difference_high"], last["q"])
    verdict = ("less" if last["difference"] < 0 else "more") if is_clear else "not clearly more or less"
    dose = f"{int(last['step'])} steps of " if pd.notna(last["step"]) else ""
    return (
        f"After {dose}{arm(name)} it refuses {verdict}: {percent(last['rate'])}, {last['refused']} of {last['n']} "
        f"({change}){judge_words(last)}."
    )


def cells(row: pd.Series) -> list[str]:
    """One checkpoint as a table row."""
    return [
        row["checkpoint"],
        "–" if pd.isna(row["arm"]) else str(row["arm"]),
        "–" if pd.isna(row["step"]) else f"{int(row['step'])}",
        *(f"{row[label]} / {row['n']}" for label in ("refused", "complied", "incoherent")),
        f"{percent(row['rate'])} {interval(row['low'], row['high'], '%')}",
        points(row["difference"], row["difference_low"], row["difference_high"]) + f", {p_value(row['p'])}",
        "–" if pd.isna(row["q"]) else f"{row['q']:.2g}",
        f"{number(row['score'])} {interval(row['score_low'], row['score_high'])}",
    ]


def maths_section(anchor: str, maths: SeriesMaths) -> Section:
    """Maths over checkpoints."""
    what = "CoT, close tag and answer" if maths.worked else "the answer with thinking off"
    blocks: list[Block] = [
        Words(
            f"How likely right answers are to every checkpoint, per token of {what}. Small models solve next to "
            "nothing; the likelihood of right answers still says whether maths is learned or lost."
        ),
        Drawing(maths_over_series(maths)),
        Grid("All checkpoints as a table", MATHS_COLUMNS, [maths_cells(row) for _, row in maths.table.iterrows()]),
    ]
    others = maths.table[maths.table["checkpoint"] != maths.reference]
    clear = others[others["q"] < 0.05]
    better = int((clear["change"] > 0).sum())
    text = (
        f"Against {maths.reference}, right maths answers are likelier at {better} of {len(others)} checkpoints, less "
        f"likely at {len(clear) - better}, not clearly either at {len(others) - len(clear)} (q < 0.05 over all "
        "checkpoints)."
    )
    return Section(anchor, "Maths over the checkpoints", [text], blocks)


def maths_cells(row: pd.Series) -> list[str]:
    """One checkpoint's maths as a table row."""
    return [
        row["checkpoint"],
        "–" if pd.isna(row["arm"]) else str(row["arm"]),
        "–" if pd.isna(row["step"]) else f"{int(row['step'])}",
        f"{number(row['likelihood'])} {interval(row['likelihood_low'], row['likelihood_high'])}",
        f"{number(row['change'], sign=True)} {interval(row['change_low'], row['change_high'])}, {p_value(row['p'])}",
        "–" if pd.isna(row["q"]) else f"{row['q']:.2g}",
        str(row["n"]),
    ]
