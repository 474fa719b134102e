"""Sections of the sweeps: what each head alone does to refusal when it is ablated, patched or exchanged."""

import pandas as pd

from rim_lens.inference_time.interchange import InterchangeSweep
from rim_lens.inference_time.patching import PatchingSweep
from rim_lens.inference_time.sweep import AblationSweep
from rim_lens.plots.style import interval, number, p_value, percent
from rim_lens.plots.sweeps import DIRECTIONS, ablation_map, interchange_map, patching_map, patching_together, quantity
from rim_lens.report.blocks import Block, Drawing, Grid, Section, Words
from rim_lens.report.wording import counted

SHOWN = 20


def ablation_section(anchor: str, sweep: AblationSweep) -> Section:
    """Head map of ablation effects."""
    text = f"{first_words(sweep.table, len(sweep.clean))}; {changing(sweep.table, sweep.effect[0].size)}."
    blocks: list[Block] = [
        Words(sweep.caption()),
        Drawing(ablation_map(sweep)),
        effect_grid(sweep.table, quantity(sweep.metric)),
    ]
    return Section(anchor, "What ablating each head does to refusal", [f"Ablated alone, {text}"], blocks)


def patching_section(anchor: str, sweep: PatchingSweep) -> Section:
    """Head map of patching effects, and the first heads together."""
    row, everything = sweep.table.iloc[0], sweep.together.iloc[-1]
    text = (
        f"Given back its think-off output, {row['name']} alone returns {percent(row['returned'])} "
        f"{interval(row['returned_low'], row['returned_high'], '%')} of the refusal score that thinking takes; all "
        f"heads together {percent(everything['returned'])} (n = {len(sweep.score_on)} prompts, gap {sweep.gap:+.2f} "
        "nats)."
    )
    blocks: list[Block] = [
        Words(sweep.caption()),
        Drawing(patching_map(sweep)),
        Drawing(patching_together(sweep)),
        effect_grid(sweep.table, quantity(sweep.metric)),
    ]
    return Section(anchor, "Which heads bring refusal back", [text], blocks)


def interchange_section(anchor: str, sweep: InterchangeSweep) -> Section:
    """Head maps of both directions, and the pairs."""
    sentences = [
        f"{DIRECTIONS[name]}: {first_words(rows, len(sweep.score_harmful))}."
        for name, rows in sweep.table.groupby("direction", sort=False)
    ]
    cells = [
        [
            f"{row['a']}, {row['b']}",
            row["intervention"],
            f"{number(row['effect_a'], sign=True)}, {number(row['effect_b'], sign=True)}",
            number(row["effect_both"], sign=True),
            f"{number(row['interaction'], sign=True)} {interval(row['low'], row['high'])}",
            f"{row['q']:.2g}",
        ]
        for _, row in sweep.pairs.iterrows()
    ]
    columns = ["heads", "intervention", "alone", "together", "interaction", "q"]
    maps = [Drawing(interchange_map(sweep, name)) for name in ("into_harmful", "into_harmless")]
    grids = [effect_grid(sweep.table, quantity(sweep.metric)), Grid("Pairs of heads as a table", columns, cells)]
    return Section(
        anchor, "Heads exchanged between a request and its twin", sentences, [Words(sweep.caption()), *maps, *grids]
    )


def first_words(table: pd.DataFrame, n: int) -> str:
    """The first head of a table: its effect with interval and n."""
    row = table.iloc[0]
    effect = f"{number(row['effect'], sign=True)} nats {interval(row['low'], row['high'])}"
    return f"{row['name']} has the largest effect: {effect}, n = {n} prompts, q = {row['q']:.2g}"


def changing(table: pd.DataFrame, n_heads: int) -> str:
    """How many of the measured heads change the score; where all do, others may too."""
    n = int((table["q"] < 0.05).sum())
    screened = f", of {n_heads} in the model" if len(table) < n_heads else ""
    more = "; there may be more among those that were screened out" if screened and n == len(table) else ""
    return f"{n} of the {counted(len(table), 'head', 'heads')} that were measured{screened}, reach q < 0.05{more}"


def effect_grid(table: pd.DataFrame, unit: str) -> Grid:
    """The first heads of a sweep."""
    cells = [[row["name"], *effect_cells(row)] for _, row in table[table["rank"] <= SHOWN].iterrows()]
    columns = ("head", *effect_columns(table, unit))
    return Grid("The first heads as a table", columns, cells, f"{len(cells)} of {len(table)} rows.")


def effect_columns(table: pd.DataFrame, unit: str) -> list[str]:
    """Columns of `effect_cells`."""
    columns = [*(["direction"] if "direction" in table else []), f"change of the {unit}"]
    return [*columns, *(["share of the gap"] if "returned" in table else []), "n", "p", "q"]


def effect_cells(row: pd.Series) -> list[str]:
    """One head of a sweep: effect, share of the gap where there is one, n, p and q."""
    cells = [str(row["direction"]).replace("_", " ")] if "direction" in row else []
    cells.append(f"{number(row['effect'], sign=True)} {interval(row['low'], row['high'])}")
    if "returned" in row:
        cells.append(f"{percent(row['returned'])} {interval(row['returned_low'], row['returned_high'], '%')}")
    return [*cells, f"{row['n']}", p_value(row["p"]), f"{row['q']:.2g}"]
