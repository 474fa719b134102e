"""Doses of a ranked list of heads under some change, measured and judged against matched random sets.

1. The first k heads of the list are changed (a *dose*), and so are control sets drawn for that dose, with as many heads
   in each layer.
2. Refusal score, judged answers and what it costs (refusals of harmless requests, maths) are measured for each.
3. Effect = changed − untouched model; its place among the control sets gives percentile and p, and q over all tests of
   one measure (Benjamini-Hochberg).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from jaxtyping import Float

from rim_lens.behavior.judge import Judge, RefusalJudge
from rim_lens.behavior.refusal_score import RefusalTokens, refusal_tokens
from rim_lens.chat.chat import Chat
from rim_lens.chat.segments import Thinking
from rim_lens.data.prompts import Prompt
from rim_lens.errors import RimLensError
from rim_lens.inference_time.head_measures import (
    AnswerMeasure,
    Change,
    MathsMeasure,
    Measure,
    ScoreMeasure,
    ZeroedScoreMeasure,
)
from rim_lens.inference_time.run_scores import Region
from rim_lens.inference_time.set_effects import alternative_for, recovered_share, set_effect
from rim_lens.model.lens_model import LensModel
from rim_lens.results import Manifest, Result
from rim_lens.stats import benjamini_hochberg, count_head_sets, matched_head_sets
from rim_lens.stats.controls import Alternative
from rim_lens.units import Head

SHORT_ANSWER, MATHS_ANSWER = 24, 64  # tokens


@dataclass(frozen=True, eq=False)
class HeadTest(Result):
    """Effect of changing a set of heads on refusal and on what it costs, against matched random sets.

    `table`: one row per change, dose k and measure, with the means `before` and `after`, their difference `effect` with its
    95 % interval over prompts (`low`, `high`), `n` prompts; the place among `n_controls` control sets (`control_mean`,
    `control_low` and `control_high`: their 2.5 and 97.5 % quantiles, `percentile`, `p`, `q`); and, after
    `restore_refusal`, the share `recovered` of the gap to thinking off, with its interval. Refused, complied and incoherent
    answers are rows of their own. `controls`: every control set with its effect. `prompts`: every prompt before and after.
    """

    figure: ClassVar = "set_effects:dose_curve"

    table: pd.DataFrame
    controls: pd.DataFrame
    prompts: pd.DataFrame
    heads: list[Head]
    alternative: str

    def dose_curve(self, measure: str | None = None, change: str | None = None) -> pd.DataFrame:
        """Rows of one measure (default: the first) and one change (default: all), by dose."""
        name = self.table["measure"].iloc[0] if measure is None else measure
        rows = self.table[self.table["measure"] == name]
        if rows.empty:
            raise RimLensError(f"No measure {name!r}; there are {', '.join(self.table['measure'].unique())}.")
        return rows if change is None else rows[rows["change"] == change]

    def caption(self) -> str:
        """The first measure at the largest dose in words: effect, interval, n, place among the controls."""
        curve = self.dose_curve()
        row = curve.loc[curve["k"].idxmax()]
        place = f"percentile {row['percentile']:.0f} of {row['n_controls']} matched random sets, p = {row['p']:.2g}"
        return (
            f"{row['change']} of {row['k']} heads: {row['measure']} {row['effect']:+.3g} "
            f"[{row['low']:.3g}, {row['high']:.3g}], n = {row['n']}; "
            f"{place if row['n_controls'] else 'no control sets'} ({row['alternative']})."
        )


@dataclass(frozen=True, eq=False)
class DoseTest:
    """Doses of a ranked list, each with control sets of its own, under every change and measure."""

    model: LensModel
    heads: list[Head]
    doses: Sequence[int] | None
    n_controls: int
    n_generated_controls: int
    alternative: Alternative
    seed: int

    def result(
        self,
        changes: dict[str, Change],
        measures: Sequence[Measure],
        targets: dict[str, Float[np.ndarray, "prompt"]] | None = None,
    ) -> HeadTest:
        """Run every dose of every change through every measure; `targets` are per-prompt values to be reached."""
        rows, control_rows, prompt_tables = [], [], []
        controls = {k: self._controls(k) for k in self._doses()}
        for measure in measures:
            first = next(iter(changes.values()))
            before = measure([[]], first)
            for label, change in changes.items():
                for k, sets in controls.items():
                    drawn = sets[: self.n_generated_controls if measure.generated else self.n_controls]
                    for name, found in measure([self.heads[:k], *drawn], change).items():
                        where = {"change": label, "k": k, "measure": name}
                        base, after, null = before[name].values[0], found.values[0], found.values[1:]
                        row = self._row(name, base, after, null, found.is_share, (targets or {}).get(name))
                        rows.append(where | row)
                        effects = (null - base).mean(axis=1)
                        control_rows += [
                            where | {"heads": _named(heads), "effect": effect}
                            for heads, effect in zip(drawn, effects.tolist(), strict=True)
                        ]
                        prompt = np.arange(len(base))
                        prompt_tables.append(pd.DataFrame({**where, "prompt": prompt, "before": base, "after": after}))
        table = pd.DataFrame(rows)
        table["q"] = table.groupby("measure", sort=False)["p"].transform(lambda p: benjamini_hochberg(p.to_numpy()))
        return HeadTest(
            table=table,
            controls=pd.DataFrame(control_rows, columns=["change", "k", "measure", "heads", "effect"]),
            prompts=pd.concat(prompt_tables, ignore_index=True),
            heads=self.heads,
            alternative=self.alternative,
            manifest=Manifest.collect(self.model, seed=self.seed),
        )

    def _doses(self) -> list[int]:
        if not self.heads:
            raise RimLensError("There are no heads to test; pass at least one, such as L12H3.")
        wanted = [len(self.heads)] if self.doses is None else sorted({int(k) for k in self.doses})
        fitting = [k for k in wanted if 1 <= k <= len(self.heads)]
        if not fitting:
            raise RimLensError(f"None of the doses {wanted} fits a list of {len(self.heads)} heads; doses count heads.")
        return fitting

    def _controls(self, k: int) -> list[list[Head]]:
        """As many distinct matched sets as asked for, or as there are."""
        wanted = max(self.n_controls, self.n_generated_controls)
        possible = count_head_sets(self.heads[:k], self.model.n_heads)
        return matched_head_sets(self.heads[:k], self.model.n_heads, min(wanted, possible), self.seed)

    def _row(
        self,
        measure: str,
        before: Float[np.ndarray, "prompt"],
        after: Float[np.ndarray, "prompt"],
        null: Float[np.ndarray, "set prompt"],
        is_share: bool,
        target: Float[np.ndarray, "prompt"] | None,
    ) -> dict[str, Any]:
        alternative = alternative_for(measure, self.alternative)
        row = set_effect(before, after, null, is_share=is_share, alternative=alternative, seed=self.seed)
        if target is not None:
            share, interval = recovered_share(before, after, target, self.seed)
            row |= {"recovered": share, "recovered_low": interval.low, "recovered_high": interval.high}
        return row


def measures_of(
    model: LensModel,
    harmful: list[Chat],
    harmless: list[Chat] | None,
    maths: Sequence[Prompt] | None,
    maths_thinking: Thinking,
    generated: bool,
    judge: Judge | None,
    tokens: RefusalTokens | None,
    generation: dict[str, Any],
    zeroed_in: Region | None = None,
) -> list[Measure]:
    """The cheap ones first: the first measure is the one that captions and curves show.

    `zeroed_in` says that every change zeroes heads, and where: scores then resume each run where it is changed.
    """
    judge, tokens = judge or RefusalJudge(), tokens or refusal_tokens(model)
    sets = {"harmful": harmful} | ({} if harmless is None else {"harmless": harmless})
    measures: list[Measure] = [
        ScoreMeasure(model, chats, tokens, where)
        if zeroed_in is None
        else ZeroedScoreMeasure(model, chats, tokens, where, zeroed_in)
        for where, chats in sets.items()
    ]
    if generated:
        short = {"max_new_tokens": SHORT_ANSWER, **generation}
        measures += [AnswerMeasure(model, chats, judge, where, short) for where, chats in sets.items()]
        if maths is not None:
            room = {**generation, "max_new_tokens": max(MATHS_ANSWER, generation.get("max_new_tokens", 0))}
            mode: Thinking = "off" if maths_thinking == "prefilled" else maths_thinking
            measures.append(MathsMeasure(model, maths, mode, room))
    return measures


def _named(heads: Sequence[Head]) -> str:
    return " ".join(map(str, heads))
