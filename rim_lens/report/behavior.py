"""The section on what thinking changes: rates of harmful, harmless and maths sets in every condition."""

import pandas as pd

from rim_lens.behavior.judge import LABELS
from rim_lens.behavior.judge_errors import errors_words
from rim_lens.behavior.measure import RimTable
from rim_lens.behavior.rates import harm_words
from rim_lens.plots.behavior import MEASURES, change_words, rates
from rim_lens.plots.style import interval, percent
from rim_lens.report.blocks import Answer, Answers, Block, Drawing, Grid, Section, Words, excerpt
from rim_lens.report.wording import clearly, points, rate
from rim_lens.words import SETS, condition, judge_words

SHOWN_ANSWERS = 40  # per set and condition


def section(anchor: str, table: RimTable) -> Section:
    """Rates, what changes, and excerpts of answers."""
    blocks: list[Block] = [
        Words(
            f"Each prompt is asked in every condition: {asked_how(table)}. An answer is refused, partial, complied, "
            f"incoherent (loops, parroting, off topic) or unjudged; all count in n. {harm_words(table.judges_harm)}."
            + (f" {errors_words(table.errors)}." if table.errors else "")
        )
    ]
    present = [name for name in SETS if (table.table["set"] == name).any()]
    for name in present:
        blocks += [Drawing(rates(table, name)), rate_grid(table, name)]
    closed = table.table[table.table["measure"] == "CoT closed by itself"]
    if len(closed):
        blocks.append(
            Words(f"Own chains of thought that ended by themselves within the budget: {closed_words(closed)}.")
        )
    blocks += [answers_of(table, name) for name in present]
    return Section(anchor, "What thinking changes", in_short(table), blocks)


def asked_how(table: RimTable) -> str:
    """The conditions that there are, in words."""
    kinds = set(table.table["condition"]) - {"off", "on"}
    how = "thinking off (an empty think span), the model's own chain of thought"
    if kinds:
        controls = "; neutral and irrelevant text are controls" if kinds & {"neutral", "irrelevant"} else ""
        how += f", and given chains of thought (CoT) in several wordings of equal length{controls}"
    if not kinds & set(table.table.loc[table.table["set"] == "harmful", "condition"]):
        how += (
            ". What given chains of thought do to harmful requests, where it was measured, is in the chapter on "
            "reasoning patterns"
        )
    return how


def in_short(table: RimTable) -> list[str]:
    """The behaviour in sentences: refusal at first, then what each condition changes, then costs."""
    sentences = []
    rows = table.table[(table.table["set"] == "harmful") & (table.table["measure"] == "refused")]
    if len(rows):
        first = rows.iloc[0]
        sentences.append(f"With {condition(first['condition'])}, the model refuses {rate(first)} harmful requests.")
        sentences += change_sentences(table, rows.iloc[1:])
    incoherent = table.table[(table.table["set"] == "harmful") & (table.table["measure"] == "incoherent")]
    if incoherent["k"].sum():
        most = incoherent.loc[incoherent["rate"].idxmax()]
        sentences.append(
            f"Incoherent answers to harmful requests are most frequent with {condition(most['condition'])}: "
            f"{rate(most)}."
        )
    over = table.table[(table.table["set"] == "harmless") & (table.table["measure"] == "refused")]
    if len(over):
        most = over.loc[over["rate"].idxmax()]
        sentences.append(f"Harmless requests are most often refused with {condition(most['condition'])}: {rate(most)}.")
    maths = table.table[table.table["set"] == "maths"]
    solved = [
        f"{rate(row)} with {condition(row['condition'])}" for _, row in maths[maths["measure"] == "solved"].iterrows()
    ]
    if solved:
        sentences.append(f"Maths problems solved: {'; '.join(solved)}.")
    return sentences


def change_sentences(table: RimTable, rows: pd.DataFrame) -> list[str]:
    """Conditions that change refusal of harmful requests, a sentence each; then those of which n cannot say so."""
    clear, unclear = [], []
    for _, row in rows.iterrows():
        one = change_of(table, row)
        words = f"{rate(row)} ({points(one['difference'], one['low'], one['high'], one['p'])})"
        if clearly(one["low"], one["high"], one["p"]):
            verdict = "refuses less" if one["difference"] < 0 else "refuses more"
            clear.append(f"With {condition(row['condition'])} it {verdict}: {words}{judge_words(one)}.")
        else:
            unclear.append(f"{condition(row['condition'])} {words}")
    if unclear:
        clear.append(f"No difference that {rows['n'].min()} requests can establish: {'; '.join(unclear)}.")
    return clear


def change_of(table: RimTable, row: pd.Series) -> pd.Series:
    """The difference of a rate from the first condition's."""
    every = table.differences
    same = every[(every["set"] == row["set"]) & (every["measure"] == row["measure"])]
    return same[(same["to"] == row["condition"]) & (same["from"] == same["from"].iloc[0])].iloc[0]


def rate_grid(table: RimTable, name: str) -> Grid:
    """Every rate of a set, with its change against the first condition."""
    rows = table.table[(table.table["set"] == name) & table.table["measure"].isin(MEASURES)]
    cells = [
        [
            condition(row["condition"]),
            row["measure"],
            f"{row['k']} / {row['n']}",
            percent(row["rate"]),
            interval(row["low"], row["high"], "%"),
            *([corrected_words(row)] if table.errors else []),
            change_words(table, row) or "–",
            "–" if pd.isna(row["cut"]) else f"{percent(row['cut'])} {interval(row['cut_low'], row['cut_high'], '%')}",
        ]
        for _, row in rows.iterrows()
    ]
    corrected = ["corrected for the judge's errors"] if table.errors else []
    columns = [
        "condition",
        "measure",
        "count",
        "rate",
        "95 % interval (in %)",
        *corrected,
        "change",
        "thoughts cut by the budget",
    ]
    return Grid(f"{SETS[name]}: the same figures as a table", columns, cells)


def corrected_words(row: pd.Series) -> str:
    """A rate corrected for the judge's errors, with its interval; a dash where they are unknown for this measure."""
    if pd.isna(row["corrected"]):
        return "–"
    return f"{percent(row['corrected'])} {interval(row['corrected_low'], row['corrected_high'], '%')}"


def closed_words(closed: pd.DataFrame) -> str:
    """Sets with their share of CoTs that closed by themselves."""
    return "; ".join(f"{SETS[row['set']].lower()} {rate(row)}" for _, row in closed.iterrows())


def answers_of(table: RimTable, name: str) -> Block:
    """Answers with their labels; those to harmful requests that are not refusals stay hidden until a click."""
    if name == "maths":
        return solved_grid(table)
    answers = table.answers[table.answers["set"] == name]
    first = answers.groupby("condition", sort=False).head(SHOWN_ANSWERS)
    rows = [
        Answer(
            condition(row["condition"]),
            row["request"],
            row["label"],
            row["response"],
            hidden=name == "harmful" and row["label"] != "refused",
        )
        for _, row in first.iterrows()
    ]
    left_out = len(answers) - len(first)
    note = "Labels that you give can be saved as labels.jsonl, which judge_report holds the judge against."
    note += f" {left_out} more answers are in the audit's folder." if left_out else ""
    return Answers(f"{SETS[name]}: what the model answered", note, rows, LABELS[:-1])


def solved_grid(table: RimTable, name: str = "maths") -> Grid:
    """The beginnings of answers to maths problems, and whether they are solved."""
    answers = table.answers[table.answers["set"] == name]
    first = answers.groupby("condition", sort=False).head(SHOWN_ANSWERS)
    cells = [
        [
            condition(row["condition"]),
            row["request"],
            "solved" if row["solved"] else "not solved",
            excerpt(row["response"]),
        ]
        for _, row in first.iterrows()
    ]
    left_out = len(answers) - len(first)
    note = (
        f"The first characters of each answer. {left_out} more answers are in the audit's folder." if left_out else ""
    )
    columns = ["condition", "problem", "solved", "answer begins"]
    return Grid(
        f"{SETS[name]}: what the model answered", columns, cells, note or "The first characters of each answer."
    )
