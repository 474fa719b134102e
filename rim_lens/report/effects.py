"""Effects of changing a set of heads or neurons, as sentences and as a table."""

from collections.abc import Sequence

import pandas as pd

from rim_lens.plots.set_effects import effect_words, sentence
from rim_lens.plots.style import interval, number, p_value
from rim_lens.report.blocks import Grid
from rim_lens.report.wording import clearly


def effect_sentence(row: pd.Series, what: str) -> str:
    """What a change did to a measure, and whether random sets do the same."""
    text = f"{what}: {row['measure']} {effect_words(row)}, n = {row['n']}"
    if not row["n_controls"]:
        return f"{text}; no control sets."
    beyond = row["p"] < 0.05 and clearly(row["low"], row["high"])
    verdict = "more than random sets do" if beyond else "not more than random sets do"
    return f"{text}; {verdict} ({p_value(row['p'])} against {row['n_controls']} matched random sets)."


def effect_grid(table: pd.DataFrame, by: Sequence[str]) -> Grid:
    """Every effect with its interval and place among the control sets."""
    cells = []
    for _, row in table.iterrows():
        controls = interval(row["control_low"], row["control_high"]) if row["n_controls"] else "–"
        cells.append(
            [
                *(str(row[name]) for name in by),
                sentence(row["measure"]),
                f"{number(row['before'])} → {number(row['after'])}",
                effect_words(row),
                f"{row['n']}",
                controls,
                f"{row['n_controls']}",
                p_value(row["p"]) or "–",
                f"{row['q']:.2g}" if row["n_controls"] else "–",
            ]
        )
    columns = [*by, "measure", "before → after", "effect", "n", "random sets (95 %)", "sets", "p", "q"]
    return Grid("All effects as a table", columns, cells)
