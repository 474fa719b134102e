"""The sections on effort-minimizing reasoning.

What each pattern costs, patterns in fine-tuning data and in the model's own CoTs.
"""

import math
from collections.abc import Sequence

import pandas as pd

from rim_lens.patterns.arm_distance import ArmDivergence
from rim_lens.patterns.costs import PatternCosts
from rim_lens.patterns.own_cots import OwnPatterns
from rim_lens.patterns.taxonomy import NAMES, load_patterns
from rim_lens.plots.patterns import ALL_SENTENCES, cost_by_category, cost_by_class, cost_rows, own_shares, shares_by_arm
from rim_lens.plots.style import interval, number, p_value, percent, points
from rim_lens.report.blocks import Block, Definition, Definitions, Drawing, Grid, Section, Words, excerpt
from rim_lens.report.wording import counted
from rim_lens.words import ANY, arm, judge_words, pattern_class

SHOWN_SENTENCES, SENTENCE = 12, 120  # examples on the page, and characters of one
RATES = ("refused", "partial", "complied", "incoherent")
COST_COLUMNS = ("class", "against", "refusal lost", "p", "q", *RATES, "answers", "requests", "wordings")


def cost_section(anchor: str, costs: PatternCosts) -> Section:
    """Refusal with each class of CoT given, and what it costs."""
    reference = pattern_class(costs.reference)
    blocks: list[Block] = [
        Words(
            "Every harmful request is asked with given chains of thought (CoT) of each class, all of one length "
            f"under the model's own tokenizer. What a class costs is the refusal rate with {reference} minus the "
            "refusal rate with the class, on the same requests. Wordings are drawn anew like requests, so an "
            "interval speaks for other wordings of the class too; careful, neutral and irrelevant text are the "
            "controls, and lost refusals may be compliance or incoherent answers (both are in the table)."
            + (
                ""
                if costs.own_tags
                else " The chat template writes no think tags: they stand in the chat as plain text."
            )
        ),
        Definitions([Definition(pattern.title, pattern.definition) for pattern in load_patterns()]),
        Drawing(cost_by_class(costs)),
        cost_grid("Every class as a table", cost_rows(costs)),
        cost_grid("Patterns together, and against each other", costs.contrasts),
    ]
    if len(costs.by_category):
        blocks += [Drawing(cost_by_category(costs)), cost_grid("Every harm category as a table", costs.by_category)]
    return Section(anchor, "What each pattern costs", costs_in_short(costs), blocks)


def costs_in_short(costs: PatternCosts) -> list[str]:
    """Patterns together, the one that costs most, and categories, each with what n allows one to say."""
    sentences = []
    for _, row in costs.contrasts[costs.contrasts["class"] == ANY].iterrows():
        sentences.append(verdict(row, "Given a CoT with any of the patterns, the model"))
    patterns = costs.table[costs.table["class"].isin(NAMES)]
    if len(patterns):
        most = patterns.loc[patterns["cost"].idxmax()]
        sentences.append(most_sentence(costs, most))
    rows = costs.by_category
    if len(rows):
        clear = rows[(rows["q"] < 0.05) & rows["class"].isin((ANY, *NAMES))]
        where = "; ".join(
            f"{pattern_class(row['class'])} in {row['category']} {lost(row)}" for _, row in clear.iterrows()
        )
        n = counted(rows["category"].nunique(), "harm category", "harm categories")
        sentences.append(
            f"By harm category: {where}."
            if where
            else f"In none of {n} is a pattern separated from {pattern_class(costs.reference)} (q < 0.05 over "
            f"{len(rows)} comparisons)."
        )
    return sentences


def most_sentence(costs: PatternCosts, most: pd.Series) -> str:
    """The pattern with the largest cost, and whether it is separated from the reference and from the other patterns."""
    name, reference = pattern_class(most["class"]), pattern_class(costs.reference)
    text = f"Of the single patterns {name} has the largest estimate against {reference}, {lost(most)}"
    if most["cost"] <= 0:
        text = (
            f"No single pattern costs refusal against {reference} by its estimate; the largest is {name}, {lost(most)}"
        )
    if costs.worst is None:
        return f"{text}; no pattern is separated from {reference}, so which costs most is not established."
    pairs = costs.contrasts[costs.contrasts[["class", "reference"]].isin(NAMES).all(axis=1)]
    mine = pairs[(pairs[["class", "reference"]] == most["class"]).any(axis=1)]
    above = mine[mine["q"] < 0.05]
    return f"{text}; it is separated from {len(above)} of the {len(mine)} other patterns (q < 0.05)."


def verdict(row: pd.Series, who: str) -> str:
    """Whether a class refuses less than its reference; at q < 0.05, or not established."""
    against = f"with {pattern_class(row['reference'])}" if row["reference"] != "off" else "with no CoT"
    if not (row["q"] < 0.05):
        return f"{who} does not clearly refuse more or less than {against}: {lost(row)}."
    return f"{who} refuses {'less' if row['cost'] > 0 else 'more'} than {against}: {lost(row)}."


def lost(row: pd.Series) -> str:
    """Refusal lost: +4.2 points [−1.0, +9.5], q = 0.3, n = 64 requests."""
    q = "" if math.isnan(row["q"]) else f", {p_value(row['q']).replace('p', 'q', 1)}"
    return (
        f"{points(row['cost'], row['low'], row['high'])} of refusal lost{q}, n = {row['n_prompts']} "
        f"requests{judge_words(row)}"
    )


def cost_grid(title: str, rows: pd.DataFrame) -> Grid:
    """Costs with the class's own rates."""
    by_category = "category" in rows
    cells = [
        [
            *([str(row["category"])] if by_category else []),
            pattern_class(row["class"]),
            pattern_class(row["reference"]),
            points(row["cost"], row["low"], row["high"]),
            p_value(row["p"]) or "–",
            "–" if math.isnan(row["q"]) else f"{row['q']:.2g}",
            *(rate_words(row, name) for name in RATES),
            *(f"{row[count]}" for count in ("n", "n_prompts", "n_wordings")),
        ]
        for _, row in rows.iterrows()
    ]
    note = (
        "Refusal lost: refusal rate of the other class minus that of the class, in percentage points. q corrects p "
        "within this table."
    )
    return Grid(title, [*(["harm category"] if by_category else []), *COST_COLUMNS], cells, note)


def rate_words(row: pd.Series, name: str) -> str:
    """A class's own rate with its interval."""
    return f"{percent(row[name])} {interval(row[f'{name}_low'], row[f'{name}_high'], '%')}"


def training_section(anchor: str, arms: ArmDivergence) -> Section:
    """Patterns in the fine-tuning data of each arm, and how else the arms differ."""
    blocks: list[Block] = [
        Words(
            "A difference between arms after fine-tuning speaks for the pattern only as far as their data differ in "
            "nothing else: length, words, answers. Labels are the annotator's; it puts precision before recall, so "
            "shares are lower bounds."
        ),
        Drawing(shares_by_arm(arms)),
        share_grid("Share of pattern sentences as a table", arms.table),
        arm_grid(arms.arms),
    ]
    if len(arms.divergence):
        blocks.append(divergence_grid(arms.divergence))
    return Section(anchor, "Patterns in the fine-tuning data", arms_in_short(arms), blocks)


def arms_in_short(arms: ArmDivergence) -> list[str]:
    """The share of each arm."""
    rows = arms.table[arms.table["pattern"] == ALL_SENTENCES]
    shares = "; ".join(f"{arm(row['arm'])} {share_words(row)}" for _, row in rows.iterrows())
    return [f"Sentences with a pattern in the fine-tuning data: {shares}."]


def share_words(row: pd.Series) -> str:
    """30.0 % [25.0, 35.0], 48 of 160 sentences in 32 CoTs."""
    return (
        f"{percent(row['share'])} {interval(row['low'], row['high'], '%')}, {row['k']} of {row['n']} sentences in "
        f"{row['n_cots']} CoTs"
    )


def share_grid(title: str, table: pd.DataFrame) -> Grid:
    """Shares by pattern, and by arm where there are arms."""
    with_arm = "arm" in table
    cells = [
        [
            *([arm(row["arm"])] if with_arm else []),
            pattern_class(ANY if row["pattern"] == ALL_SENTENCES else row["pattern"]),
            f"{row['k']} / {row['n']}",
            percent(row["share"]),
            interval(row["low"], row["high"], "%"),
            f"{row['cots_with_it']} / {row['n_cots']}",
        ]
        for _, row in table.iterrows()
    ]
    columns = ["pattern", "sentences", "share", "95 % interval (in %)", "CoTs with one"]
    return Grid(title, [*(["arm"] if with_arm else []), *columns], cells)


def arm_grid(table: pd.DataFrame) -> Grid:
    """CoTs, length and answer agreement of each arm."""
    cells = [
        [
            arm(row["arm"]),
            f"{row['n_cots']}",
            f"{row['without_cot']}",
            f"{number(row['tokens'])} {interval(row['tokens_low'], row['tokens_high'])}",
            f"{row['agree']} / {row['stated']} {interval(row['agree_low'], row['agree_high'], '%')}",
        ]
        for _, row in table.iterrows()
    ]
    columns = ["arm", "CoTs", "rows without", "tokens (mean)", "CoT reaches the answer"]
    return Grid("Length and answers of each arm", columns, cells)


def divergence_grid(table: pd.DataFrame) -> Grid:
    """Every two arms on the problems they share."""
    cells = []
    for _, row in table.iterrows():
        paired = not math.isnan(row["difference"])
        ends = "–" if math.isnan(row["low"]) else interval(row["low"], row["high"])
        cells.append(
            [
                f"{arm(row['first'])} and {arm(row['second'])}",
                row["measure"],
                number(row["first_mean"]),
                number(row["second_mean"]) if paired or not math.isnan(row["second_mean"]) else "–",
                f"{number(row['difference'], sign=True)} {ends}" if paired else ends,
                f"{row['n']}",
            ]
        )
    columns = ["arms", "measure", "first", "second", "difference, or interval of the first", "n problems"]
    return Grid("How the arms differ on the problems they share", columns, cells)


def own_section(anchor: str, own: OwnPatterns) -> Section:
    """Patterns in the model's own CoTs, and whether they go with complying."""
    blocks: list[Block] = [
        Words(
            "The CoTs that the model wrote to the harmful requests with thinking on, sentence by sentence "
            f"({own.n_cots} CoTs with text, {own.n_empty} without). {own.limits} A pattern that goes with complying "
            "need not cause it: the request may invite both, and longer CoTs have more sentences that may have one. "
            "The test is Fisher's exact one."
        ),
        Drawing(own_shares(own)),
        share_grid("Share of pattern sentences as a table", own.table),
        outcome_grid(own.outcomes),
    ]
    if len(own.sentences):
        blocks.append(sentence_grid(own.sentences))
    return Section(anchor, "Patterns in the model's own chains of thought", own_in_short(own), blocks)


def own_in_short(own: OwnPatterns) -> list[str]:
    """The share, and whether CoTs with a pattern comply more often."""
    whole = own.table[own.table["pattern"] == ALL_SENTENCES].iloc[0]
    row = own.outcomes[own.outcomes["outcome"] == "complied"].iloc[0]
    sentences = [f"Sentences with a pattern in the model's own chains of thought: {share_words(whole)}."]
    if math.isnan(row["p"]):
        sides = "all" if row["with_n"] else "none"
        return [
            *sentences,
            f"Whether a pattern goes with complying cannot be asked: {sides} of {own.n_cots} CoTs have one.",
        ]
    counts = (
        f"{row['with_k']} of {row['with_n']} CoTs with one comply, {row['without_k']} of {row['without_n']} without "
        f"(Fisher's exact {p_value(row['p'])})"
    )
    if row["smallest_p"] >= 0.05:
        return [
            *sentences,
            f"Too few to say whether a pattern goes with complying: {counts}; no outcome could reach 0.05.",
        ]
    goes = "goes" if row["p"] < 0.05 else "does not clearly go"
    return [*sentences, f"A pattern {goes} with {'more' if more(row) else 'less'} compliance: {counts}."]


def more(row: pd.Series) -> bool:
    """Whether the rate is higher with a pattern than without."""
    return bool(row["with_rate"] > row["without_rate"])


def outcome_grid(table: pd.DataFrame) -> Grid:
    """The counts with and without a pattern."""
    cells = [
        [
            row["outcome"],
            *(
                f"{row[f'{side}_k']} / {row[f'{side}_n']} {interval(row[f'{side}_low'], row[f'{side}_high'], '%')}"
                for side in ("with", "without")
            ),
            p_value(row["p"]) or "–",
            p_value(row["smallest_p"]) or "–",
            *(number(row[f"{side}_sentences"]) for side in ("with", "without")),
        ]
        for _, row in table.iterrows()
    ]
    columns = ("answer", "CoT with a pattern", "CoT without", "p", "smallest p possible", "sentences, with", "without")
    return Grid("Answers after CoTs with and without a pattern", columns, cells, open=True)


def sentence_grid(sentences: pd.DataFrame) -> Grid:
    """The beginnings of some sentences, with the words that the label rests on."""
    sample = spread(sentences)
    cells = [
        [
            pattern_class(row["label"]),
            excerpt(row["text"], SENTENCE),
            excerpt(row["evidence"], SENTENCE),
            row["outcome"],
        ]
        for _, row in sample.iterrows()
    ]
    note = (
        f"{len(sample)} of {len(sentences)} sentences, excerpts of the CoT alone; the words that the label rests on "
        "stand beside."
    )
    return Grid("Sentences with a pattern", ["pattern", "sentence", "words", "answer"], cells, note)


def spread(sentences: pd.DataFrame) -> pd.DataFrame:
    """Some of every pattern, in order."""
    names: Sequence[str] = [name for name in NAMES if (sentences["label"] == name).any()]
    each = max(1, SHOWN_SENTENCES // max(1, len(names)))
    return sentences.groupby("label", sort=False).head(each).sort_values(["cot", "sentence"])
