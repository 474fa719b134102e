"""Do these neurons carry safety, and what else do they carry? Ablating a set of neurons against matched random sets.

1. The set is ablated (zero; mean over reference chats; resample: another prompt's), and so are control sets with as many
   neurons in each layer and decile of base activation: everywhere, or from the decision position on, which leaves the
   reading of the prompt alone and lets every set share one pass over it.
2. Refusal score for every set; judged answers and maths accuracy in generation for the set and as many control
   sets as asked for.
3. Effect = ablated − untouched, with its interval over prompts, percentile and p among the control sets, and q over all
   tests of one measure (Benjamini-Hochberg).
"""
# ruff: noqa: PT028 - test_neurons is no test of this package

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int

from rim_lens.behavior.judge import Judge
from rim_lens.behavior.refusal_score import RefusalTokens
from rim_lens.capture.neurons import neuron_activations
from rim_lens.chat.chat import Chat
from rim_lens.chat.segments import Thinking
from rim_lens.data.prompts import Prompts as ProblemSet
from rim_lens.data.prompts import as_problems
from rim_lens.errors import RimLensError
from rim_lens.inference_time.dose_test import measures_of
from rim_lens.inference_time.head_measures import AnswerMeasure, Change, Measured, ScoreMeasure
from rim_lens.inference_time.set_effects import alternative_for, set_effect
from rim_lens.intervene.experts import ablate_expert_neurons
from rim_lens.intervene.neurons import ablate_neurons
from rim_lens.intervene.selection import Where
from rim_lens.model.as_chats import as_chats
from rim_lens.model.lens_model import LensModel
from rim_lens.model.requests import Prompts
from rim_lens.results import Manifest, Result
from rim_lens.stats import benjamini_hochberg
from rim_lens.stats.controls import Alternative
from rim_lens.training_time.neuron_sets import NeuronRows, matched_controls, neuron_rows
from rim_lens.training_time.set_answers import AnswersFromDecision, MathsLikelihood
from rim_lens.training_time.set_scores import scores_of_sets

Method = Literal["zero", "mean", "resample"]
NeuronTuples = list[Any]  # (layer, unit), or (layer, expert, unit)


@dataclass(frozen=True, eq=False)
class NeuronTest(Result):
    """Effect of ablating a set of neurons, against matched random sets.

    `table`: one row a method and measure, with the means `before` and `after`, their difference `effect` with its 95 %
    interval over `n` prompts, and its place among `n_controls` control sets (`control_mean`, `control_low`, `control_high`,
    `percentile`, `p`, `q`). `controls`: the effect of every control set. `prompts`: every prompt before and after.
    """

    figure: ClassVar = "set_effects:set_effects"

    table: pd.DataFrame
    controls: pd.DataFrame
    prompts: pd.DataFrame
    n_neurons: int
    positions: str
    alternative: str

    def __repr__(self) -> str:
        return f"NeuronTest({self.n_neurons} neurons; {self.caption()})"

    @property
    def where(self) -> str:
        """At which positions, as words that follow "neurons"."""
        return " from the decision position on" if self.positions == "from_decision" else ""

    def caption(self) -> str:
        """The first measure in words."""
        row = self.table.iloc[0]
        return (
            f"{row['method']} ablation of {self.n_neurons} neurons{self.where}: {row['measure']} {row['effect']:+.3g} "
            f"[{row['low']:.3g}, {row['high']:.3g}], n = {row['n']}; percentile {row['percentile']:.0f} of "
            f"{row['n_controls']} matched random sets (mean {row['control_mean']:+.3g}), p = {row['p']:.2g}"
        )


def test_neurons(
    model: LensModel,
    neurons: NeuronRows,
    harmful: Prompts,
    *,
    harmless: Prompts | None = None,
    maths: ProblemSet | None = None,
    positions: Literal["all", "from_decision"] = "all",
    methods: Sequence[Method] = ("zero",),
    reference: Sequence[Chat] | None = None,
    controls: Int[np.ndarray, "set neuron index"] | None = None,
    n_controls: int = 100,
    n_generated_controls: int = 20,
    n_maths_controls: int = 20,
    generated: bool = True,
    solve: bool = True,
    thinking: Thinking = "off",
    maths_thinking: Thinking = "on",
    cot: str | Sequence[str] | None = None,
    judge: Judge | None = None,
    tokens: RefusalTokens | None = None,
    alternative: Alternative = "two-sided",
    seed: int = 0,
    **generation: Any,
) -> NeuronTest:
    """Ablate neurons and see what becomes of refusal and of maths.

    Args:
        model: the model.
        neurons: `SafetyNeurons`, or rows (layer, unit) or (layer, expert, unit).
        harmful: requests (rendered for `thinking`), or chats up to the decision position.
        harmless: the same for harmless requests, where refusals are a cost.
        maths: problems with answers: log-likelihood of the right answer, and how many are solved in generation.
        positions: where the neurons are ablated: everywhere, or from the decision position on.
        methods: "zero", "mean", "resample"; mixtures of experts know "zero" only.
        reference: chats that "mean" and "resample" take values from; the harmful ones by default.
        controls: matched random sets; drawn where not given, which needs `SafetyNeurons` for their base activation.
        n_controls: random sets for the refusal score.
        n_generated_controls: random sets for whatever is generated; 0 for none.
        n_maths_controls: random sets for the log-likelihood of maths answers.
        generated: whether to generate at all; False leaves scores and likelihoods.
        solve: whether generation includes the maths problems.
        thinking: mode of requests that are not rendered yet; "prefilled" needs `cot`.
        maths_thinking: mode of the maths problems.
        cot: the CoT to prefill, one for all or one a request.
        judge: labels the answers; `RefusalJudge` by default.
        tokens: the refusal tokens; `refusal_tokens(model)` by default.
        alternative: "less" where refusal was expected to fall before anything was looked at; compliance is then
            expected to rise, and costs stay two-sided.
        seed: of the control sets and bootstraps.
        generation: options of `generate`: max_new_tokens (24, and 64 for maths), cot_budget, batch_size.

    Raises:
        RimLensError: an empty set, an unknown method or neuron, fewer control sets than asked for.
    """
    rows = neuron_rows(neurons)
    if controls is None:
        controls = matched_controls(neurons, max(n_controls, n_generated_controls, n_maths_controls), seed=seed)
    chats = as_chats(model, harmful, thinking=thinking, cot=cot)
    gentle = None if harmless is None else as_chats(model, harmless, thinking=thinking, cot=cot)
    problems = None if maths is None else as_problems(maths)
    solved = problems if solve else None
    measures: list[Any] = [
        *measures_of(model, chats, gentle, solved, maths_thinking, generated, judge, tokens, generation),
        *([] if problems is None else [MathsLikelihood(model, problems, positions == "from_decision")]),
    ]
    if positions == "from_decision":
        measures = [at_decision(measure) for measure in measures]
    changes: dict[str, Change] = {
        method: change_of(model, method, list(reference or chats), positions) for method in methods
    }
    sets = [tuples(rows), *(tuples(control) for control in controls)]
    table, control_rows, prompts = [], [], []
    for measure in measures:
        n_drawn = n_generated_controls if measure.generated else n_controls
        drawn = sets[: 1 + (n_maths_controls if isinstance(measure, MathsLikelihood) else n_drawn)]
        for method, found in measured(measure, changes, drawn).items():
            for name, (before, values, is_share) in found.items():
                where = {"method": method, "measure": name}
                after, null = values[0], values[1:]
                side = alternative_for(name, alternative)
                effect = set_effect(before, after, null, is_share=is_share, alternative=side, seed=seed)
                table.append(where | effect)
                effects = (null - before).mean(axis=1).tolist()
                control_rows += [where | {"set": i, "effect": value} for i, value in enumerate(effects)]
                index = np.arange(len(before))
                prompts.append(pd.DataFrame({**where, "prompt": index, "before": before, "after": after}))
    whole = pd.DataFrame(table)
    whole["q"] = whole.groupby("measure", sort=False)["p"].transform(lambda p: benjamini_hochberg(p.to_numpy()))
    return NeuronTest(
        table=whole,
        controls=pd.DataFrame(control_rows, columns=["method", "measure", "set", "effect"]),
        prompts=pd.concat(prompts, ignore_index=True),
        n_neurons=len(rows),
        positions=positions,
        alternative=alternative,
        manifest=Manifest.collect(model, seed=seed, thinking=thinking, neurons=rows.tolist()),
    )


# A test framework that collects functions by name must not take this one for a test of its own.
test_neurons.__test__ = False  # type: ignore[attr-defined]


def measured(
    measure: Any, changes: dict[str, Change], sets: list[NeuronTuples]
) -> dict[str, dict[str, tuple[np.ndarray, np.ndarray, bool]]]:
    """Per method and name: values per prompt of the untouched model, and of every set, [set, prompt]."""
    untouched = measure([[]], next(iter(changes.values())))
    return {
        method: {
            name: (untouched[name].values[0], found.values, found.is_share)
            for name, found in measure(sets, change).items()
        }
        for method, change in changes.items()
    }


def tuples(rows: Int[np.ndarray, "neuron index"]) -> NeuronTuples:
    """Rows as tuples of plain integers."""
    return [tuple(row) for row in rows.tolist()]


@dataclass(frozen=True)
class DecisionScoreMeasure:
    """Refusal score with sets of neurons ablated at the decision position: prompts are computed once for all sets."""

    plain: ScoreMeasure
    generated: bool = field(default=False, init=False)

    def __call__(self, sets: Sequence[NeuronTuples], change: Change) -> dict[str, Measured]:
        """Scores [set, prompt] under the plain measure's name."""
        plain = self.plain
        scores = scores_of_sets(plain.model, plain.chats, sets, change, plain.tokens, batch_size=plain.batch_size)
        return {f"refusal score, {plain.where}": Measured(scores, is_share=False)}


def at_decision(measure: Any) -> Any:
    """The measure for ablations that begin at the decision position."""
    if isinstance(measure, AnswerMeasure):
        return AnswersFromDecision(measure)
    return DecisionScoreMeasure(measure) if isinstance(measure, ScoreMeasure) else measure


def change_of(model: LensModel, method: Method, reference: list[Chat], positions: Where = "all") -> Change:
    """Ablation by one method, as a context manager over one set or one set per row, and, if need be, other positions."""
    if model.is_moe:
        if method != "zero":
            raise RimLensError(f"Neurons of experts can be ablated by 'zero' only, not by {method!r}.")
        return partial(expert_ablation, model, where=positions)
    if method == "zero":
        return partial(ablation, model, method, None, (), where=positions)
    activations = neuron_activations(model, reference, "all", per_prompt=method == "resample", progress=False)
    values = activations.prompt_mean if method == "resample" else activations.mean
    requests = [chat.request for chat in reference]
    return partial(ablation, model, method, torch.from_numpy(values), requests, where=positions)


def ablation(
    model: LensModel, method: Method, values: Any, requests: Sequence[str], neurons: Any, where: Where
) -> AbstractContextManager[LensModel]:
    """`ablate_neurons` with the set last."""
    return ablate_neurons(model, neurons, method, reference=values, requests=requests, positions=where)


def expert_ablation(model: LensModel, neurons: Any, where: Where) -> AbstractContextManager[LensModel]:
    """`ablate_expert_neurons`, for the untouched model too."""
    if where != "all" and any(len(one) for one in neurons):
        raise RimLensError("Neurons of experts are ablated at all positions of a pass; use positions='all'.")
    return ablate_expert_neurons(model, neurons)
