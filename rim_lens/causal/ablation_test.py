"""What becomes of refusal, and of other tasks, without these heads or neurons, or without this direction?

A set of units is changed, and so are matched random sets.

1. The first k units of a list (a *dose*; by default all of them) are ablated, and so are control sets: as many heads in
   each layer, as many neurons in each layer that are as active and write as much, or random directions.
2. Refusal score for every set; judged answers, refusals of harmless requests and maths for the set and as many control
   sets as asked.
3. Effect = changed − untouched model, with its interval over prompts, its place among the control sets (percentile, p),
   and q over all tests of one measure (Benjamini-Hochberg).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from torch import Tensor

from rim_lens.behavior.judge import Judge, RefusalJudge
from rim_lens.behavior.refusal_score import RefusalTokens, refusal_tokens
from rim_lens.causal.ablation import Kind, Method, ablation
from rim_lens.causal.measures import AnswerMeasure, Change, MathsLikelihood, MathsMeasure, ScoreMeasure
from rim_lens.causal.set_effects import alternative_for, recovered_share, set_effect
from rim_lens.causal.tested_sets import Units, dose_sets, units_from
from rim_lens.chat.chat import Chat
from rim_lens.chat.positions import Positions, words_of
from rim_lens.chat.segments import Thinking
from rim_lens.data.prompts import Prompt, as_problems
from rim_lens.data.prompts import Prompts as ProblemSet
from rim_lens.errors import RimLensError
from rim_lens.intervene.recording import HeadRecording
from rim_lens.intervene.selection import chosen_heads
from rim_lens.model.as_chats import as_chats
from rim_lens.model.lens_model import LensModel
from rim_lens.model.requests import Prompts
from rim_lens.results import Manifest, Result
from rim_lens.stats import benjamini_hochberg
from rim_lens.stats.controls import Alternative
from rim_lens.units import Head, Neuron

SHORT_ANSWER, MATHS_ANSWER = 24, 64  # tokens


@dataclass(frozen=True, eq=False)
class AblationTest(Result):
    """Effect of changing a set of heads or neurons on refusal and on what it costs, against matched random sets.

    `table`: one row per change, dose k and measure, with the means `before` and `after`, their difference `effect` with
    its 95 % interval over prompts (`low`, `high`), `n` prompts; the place among `n_controls` control sets
    (`control_mean`, `control_low` and `control_high`: their 2.5 and 97.5 % quantiles, `percentile`, `p`, `q`); and,
    after `restore_refusal`, the share `recovered` of the gap to thinking off, with its interval. Refused, complied and
    incoherent answers are rows of their own. `controls`: every control set with its effect. `prompts`: every prompt
    before and after, and the mean after the control sets (`control`). `kind`: "heads", "neurons" or "direction".
    """

    figure: ClassVar = "set_effects:ablation_figure"

    table: pd.DataFrame
    controls: pd.DataFrame
    prompts: pd.DataFrame
    units: list[Any]
    kind: str
    positions: str
    alternative: str

    def __repr__(self) -> str:
        return f"AblationTest({len(self.units)} {self.kind}; {self.caption()})"

    @property
    def where(self) -> str:
        """At which positions, as words that follow "neurons" or "heads"."""
        return {"decision": " at the decision position", "from_decision": " from the decision position on"}.get(
            self.positions, ""
        )

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
        place = (
            f"percentile {row['percentile']:.0f} of {row['n_controls']} matched random sets (mean "
            f"{row['control_mean']:+.3g}), p = {row['p']:.2g}"
        )
        return (
            f"{row['change']} of {row['k']} {self.kind}{self.where}: {row['measure']} {row['effect']:+.3g} "
            f"[{row['low']:.3g}, {row['high']:.3g}], n = {row['n']}; "
            f"{place if row['n_controls'] else 'no control sets'} ({row['alternative']})."
        )


def ablation_test(
    model: LensModel,
    units: Any,
    harmful: Prompts,
    *,
    harmless: Prompts | None = None,
    maths: ProblemSet | None = None,
    doses: Sequence[int] | None = None,
    method: Method | Sequence[Method] = "zero",
    positions: Positions = "all",
    reference: Prompts | HeadRecording | Float[Tensor, "layer head d_head"] | None = None,
    controls: Int[np.ndarray, "set neuron index"] | Float[np.ndarray, "set d_model"] | None = None,
    n_controls: int = 100,
    n_generated_controls: int = 20,
    n_maths_controls: int = 20,
    generated: bool = True,
    solve: bool = True,
    thinking: Thinking = "off",
    maths_thinking: Thinking | None = None,
    cot: str | Sequence[str] | None = None,
    judge: Judge | None = None,
    tokens: RefusalTokens | None = None,
    alternative: Alternative = "two-sided",
    seed: int = 0,
    **generation: Any,
) -> AblationTest:
    """Ablate heads, neurons or a direction and measure what becomes of refusal, and of maths.

    Args:
        model: the model.
        units: heads: names ("L12H3"), pairs (layer, head) or `Head`s; neurons: `SafetyNeurons`, an array of rows
            (layer, unit) or (layer, expert, unit), names ("L12N345") or `Neuron`s. A ranked list if `doses` are given.
            Or a direction: a `RefusalDirection`, anything else with a `vector`, or a vector [d_model].
        harmful: requests (rendered for `thinking`), or chats up to the decision position.
        harmless: the same for harmless requests, where refusals are a cost.
        maths: problems with answers: how many are solved, and the log-likelihood of the right answer.
        doses: how many of the first units to ablate, a test each; larger ones than the list are left out. Default: all.
        method: "zero", "mean" over `reference`, "resample" (another prompt's), or several of them; neurons of experts
            are changed at the tokens sent to their expert. A direction is zeroed in all that is written to the stream.
        positions: "all" (generated tokens included), "decision", or "from_decision" (that position and all later ones).
        reference: prompts or chats that "mean" and "resample" take values from, at the positions where they are put;
            the harmful ones by default. For heads also what `ablate_heads` takes.
        controls: random sets of neurons; by default ones matched by activation, that of `SafetyNeurons`, or else
            that at the decision position of `harmful`. Or other directions; by default random ones, even over all.
        n_controls: random sets for the refusal score, at least 1; of heads fewer where fewer exist (see `n_controls` in
            the table).
        n_generated_controls: random sets for whatever is generated; 0 for none.
        n_maths_controls: random sets for the log-likelihood of maths answers.
        generated: whether to generate at all; False leaves scores and likelihoods.
        solve: whether generation includes the maths problems.
        thinking: mode of requests that are not rendered yet; "prefilled" needs `cot`.
        maths_thinking: mode of the maths problems; "on" for neurons by default, else as `thinking`.
        cot: the CoT to prefill, one for all or one per request.
        judge: labels the answers; `RefusalJudge` by default.
        tokens: the refusal tokens; `refusal_tokens(model)` by default.
        alternative: "less" where refusal was expected to fall before anything was looked at; compliance is then
            expected to rise, and costs stay two-sided.
        seed: of the control sets and bootstraps.
        generation: options of `generate`: max_new_tokens (24, and 64 for maths), cot_budget, batch_size.

    Raises:
        RimLensError: no units or an unknown one, an unknown method, fewer control sets of neurons than asked for, or
            none asked for.
    """
    if n_controls < 1:
        raise RimLensError(
            f"n_controls={n_controls} leaves the effect without random sets to hold it against; use 19 or more for "
            "p < 0.05."
        )
    kind, chosen = units_from(units)
    wanted = max(n_controls, n_generated_controls, 0 if maths is None else n_maths_controls)
    if kind == "heads":
        chosen_heads(model, chosen)  # an unknown head is an error before anything is measured
    chats = as_chats(model, harmful, thinking=thinking, cot=cot)
    sets = dose_sets(model, units, kind, chosen, doses, wanted, controls, seed, chats)
    harmless_chats = None if harmless is None else as_chats(model, harmless, thinking=thinking, cot=cot)
    problems = None if maths is None else as_problems(maths)
    changes = {
        f"{one} ablation": ablation(model, kind, one, positions, chats if reference is None else reference, seed)
        for one in ([method] if isinstance(method, str) else method)
    }
    mode = maths_thinking or ("on" if kind == "neurons" else thinking)
    measures = measures_of(
        model, chats, harmless_chats, problems if solve else None, mode, generated, judge, tokens, generation
    )
    if problems is not None:
        measures.append(MathsLikelihood(model, problems))
    limits = {"score": n_controls, "answers": n_generated_controls, "likelihood": n_maths_controls}
    return SetTest(model, chosen, kind, positions, sets, limits, alternative, seed).result(changes, measures)


@dataclass(frozen=True, eq=False)
class SetTest:
    """Sets of units by dose, the tested one first, under every change and measure."""

    model: LensModel
    units: list[Any]
    kind: Kind
    positions: Positions
    sets: dict[int, list[Units]]
    n_controls: dict[str, int]  # by what a set costs: "score", "answers", "likelihood"
    alternative: Alternative
    seed: int

    def result(
        self,
        changes: Mapping[str, Change],
        measures: Sequence[Any],
        targets: dict[str, Float[np.ndarray, "prompt"]] | None = None,
    ) -> AblationTest:
        """Run every dose of every change through every measure; `targets` are per-prompt values to be reached."""
        rows, control_rows, prompt_tables = [], [], []
        for measure in measures:
            before: dict[str, Float[np.ndarray, "prompt"]] = {}
            for label, change in changes.items():
                for k, sets in self.sets.items():
                    drawn = sets[: 1 + self.n_controls[measure.cost]]
                    # The untouched model is one more set, the first time.
                    for name, measured in measure(drawn if before else [[], *drawn], change).items():
                        where = {"change": label, "k": k, "measure": name}
                        values = measured.values
                        if len(values) > len(drawn):
                            before[name], values = values[0], values[1:]
                        base, after, null = before[name], values[0], values[1:]
                        row = self._row(name, base, after, null, measured.is_share, (targets or {}).get(name))
                        rows.append(where | row)
                        effects = (null - base).mean(axis=1)
                        control_rows += [
                            where | {"units": self._named(units), "effect": effect}
                            for units, effect in zip(drawn[1:], effects.tolist(), strict=True)
                        ]
                        prompt = np.arange(len(base))
                        among = null.mean(axis=0) if len(null) else np.full(len(base), np.nan)
                        columns = {"before": base, "after": after, "control": among}
                        prompt_tables.append(pd.DataFrame({**where, "prompt": prompt, **columns}))
        table = pd.DataFrame(rows)
        table["q"] = table.groupby("measure", sort=False)["p"].transform(lambda p: benjamini_hochberg(p.to_numpy()))
        named = [Neuron.parse(one) for one in self.units] if self.kind == "neurons" else self.units
        return AblationTest(
            table=table,
            controls=pd.DataFrame(control_rows, columns=["change", "k", "measure", "units", "effect"]),
            prompts=pd.concat(prompt_tables, ignore_index=True),
            units=named,
            kind=self.kind,
            positions=words_of(self.positions),
            alternative=self.alternative,
            manifest=Manifest.collect(self.model, seed=self.seed),
        )

    def _named(self, units: Units) -> str:
        if self.kind == "direction":
            return "another direction"
        parse = Head.parse if self.kind == "heads" else Neuron.parse
        return " ".join(str(parse(one)) for one in units)

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
) -> list[Any]:
    """The cheap ones first: the first measure is the one that captions and curves show."""
    judge, tokens = judge or RefusalJudge(), tokens or refusal_tokens(model)
    sets = {"harmful": harmful} | ({} if harmless is None else {"harmless": harmless})
    measures: list[Any] = [ScoreMeasure(model, chats, tokens, where) for where, chats in sets.items()]
    if generated:
        short = {"max_new_tokens": SHORT_ANSWER, **generation}
        measures += [AnswerMeasure(model, chats, judge, where, short) for where, chats in sets.items()]
        if maths is not None:
            room = {**generation, "max_new_tokens": max(MATHS_ANSWER, generation.get("max_new_tokens", 0))}
            mode: Thinking = "off" if maths_thinking == "prefilled" else maths_thinking
            measures.append(MathsMeasure(model, maths, mode, room))
    return measures
