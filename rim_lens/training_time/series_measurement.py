"""measure_series: everything about a series of checkpoints, each loaded once and each prompt passed once.

At every checkpoint, the reference first:

1. One pass over the safety prompts gives neuron moments, decision logits (refusal score, forward KL) and attention, and
   leaves the prompts' keys and values. From these, followed heads are ablated and answers are written.
2. One pass over the task prompts gives neuron moments; right answers are scored, and problems solved, from its keys and
   values.

What is not asked for is not computed. The views (`behavior`, `maths`, `shift`, `ras`, `forgetting`, `heads`, `drift`)
compute from what was measured alone, also after loading a saved measurement.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from rim_lens.behavior.judge import Judge
from rim_lens.behavior.judge_errors import JudgeErrors, errors_for
from rim_lens.behavior.judge_report import JudgeReport
from rim_lens.behavior.refusal_score import RefusalTokens, refusal_tokens
from rim_lens.capture.neuron_activations import Measure
from rim_lens.capture.neuron_sets import NeuronRows, neuron_rows
from rim_lens.chat.positions import Positions
from rim_lens.chat.segments import Thinking
from rim_lens.data.prompts import Prompts as PromptSource
from rim_lens.data.prompts import as_problems, as_prompt_set
from rim_lens.errors import RimLensError
from rim_lens.model.as_chats import as_chats
from rim_lens.model.lens_model import LensModel
from rim_lens.model.requests import Prompts
from rim_lens.progress import track
from rim_lens.results import Manifest, Result
from rim_lens.stats import bootstrap_mean
from rim_lens.training_time.checkpoint_passes import Answering, MathsAnswering, Passes
from rim_lens.training_time.checkpoints import Checkpoints
from rim_lens.training_time.forgetting import Forgetting, forgetting_of
from rim_lens.training_time.ras import Ras, ras
from rim_lens.training_time.series import Checkpoint
from rim_lens.training_time.series_answers import SeriesBehavior, series_table
from rim_lens.training_time.series_heads import SeriesHeads, followed, series_heads
from rim_lens.training_time.series_measures import (
    REQUEST_AND_ANSWER,
    AtCheckpoint,
    activation_distance,
    asked_for,
)
from rim_lens.training_time.series_problems import SeriesMaths, maths_table
from rim_lens.training_time.series_shift import SeriesShift, series_shift
from rim_lens.units import AnyHead, Head


@dataclass(frozen=True, eq=False)
class SeriesMeasurement(Result):
    """What was measured at every checkpoint of a series; the views ask it.

    `table`: one row per checkpoint, as from `drift`. `found`: the measurements, the reference first. `order`: the
    checkpoints' names in the order of the series. `neurons`: the set with values per prompt; `head_sets`: the followed
    heads, the `n_chosen` chosen ones before the random ones. `judge`, `errors`: who labelled the answers.
    """

    table: pd.DataFrame
    found: list[AtCheckpoint]
    order: list[str]
    neurons: np.ndarray | None
    head_sets: list[list[Head]]
    n_chosen: int
    has_cot: bool
    judge: str
    errors: JudgeErrors | None
    worked: bool
    solved_with: str | None

    def __repr__(self) -> str:
        return f"SeriesMeasurement({len(self.found)} checkpoints against {self.reference})"

    @property
    def reference(self) -> str:
        """Name of the checkpoint that others are compared with."""
        return self.found[0].checkpoint.name

    @property
    def checkpoints(self) -> list[Checkpoint]:
        """The checkpoints, in the order of the series."""
        return [self[name].checkpoint for name in self.order]

    def __getitem__(self, name: str) -> AtCheckpoint:
        """What was measured at one checkpoint; a RimLensError for one that is not in the series."""
        for one in self.found:
            if one.checkpoint.name == name:
                return one
        raise RimLensError(f"There is no checkpoint {name!r}; the series has {', '.join(self.order)}.")

    def caption(self) -> str:
        """What was measured, on how many prompts."""
        return (
            f"{len(self.found)} checkpoints against {self.reference}, n = {len(self.found[0].refusal)} safety prompts"
        )

    def drift(self) -> pd.DataFrame:
        """Refusal score with its interval, and distances from the reference, per checkpoint."""
        return self.table

    def behavior(self, *, seed: int = 0) -> SeriesBehavior:
        """Answers to the safety prompts: labels, rates and differences from the reference."""
        frames = [asked_for(self[name].answers, "answers", "answers=True") for name in self.order]
        answers = pd.concat(frames, ignore_index=True)
        return SeriesBehavior(
            table=series_table(answers, self.checkpoints, self.reference, seed, self.errors),
            answers=answers,
            reference=self.reference,
            judge=self.judge,
            errors=self.errors,
            manifest=replace(self.manifest, seed=seed),
        )

    def maths(self, *, seed: int = 0) -> SeriesMaths:
        """Likelihood of right answers and, where they were asked, problems solved."""
        frames = [asked_for(self[name].maths, "maths problems", "maths=") for name in self.order]
        answers = pd.concat(frames, ignore_index=True)
        return SeriesMaths(
            table=maths_table(answers, self.checkpoints, self.reference, seed),
            answers=answers,
            reference=self.reference,
            worked=self.worked,
            thinking=self.solved_with,
            manifest=replace(self.manifest, seed=seed),
        )

    def shift(
        self, *, n_controls: int = 1000, measure: Measure = "magnitude", n_resamples: int = 2000, seed: int = 0
    ) -> SeriesShift:
        """Activation shift of the neurons at every checkpoint, against matched random sets (see `series_shift`)."""
        options: Any = {"n_controls": n_controls, "measure": measure, "n_resamples": n_resamples, "seed": seed}
        return series_shift(self.found, self._rows(), **options)

    def ras(self, checkpoint: str, **options: Any) -> Ras:
        """RAS of the neurons between the reference and a checkpoint; options as in `ras`."""
        first, one = self.found[0], self[checkpoint]
        return ras(first.safety, one.safety, first.task, one.task, self._rows(), **options)

    def forgetting(self, refused: Mapping[str, float] | None = None, **options: Any) -> Forgetting:
        """What the series forgets and what predicts it; options as in `forgetting_of`.

        `refused` by checkpoint is the share of answers that refuse, by default of the answers that were asked for.
        """
        if refused is None and self.found[0].answers is not None:
            table = self.behavior().table
            refused = dict(zip(table["checkpoint"], table["refused"] / table["n"], strict=True))
        found = forgetting_of(None, self.found, self._rows(), refused, **options)
        return replace(found, manifest=replace(self.manifest, seed=found.manifest.seed, extra=found.manifest.extra))

    def heads(self, *, n_resamples: int = 1000, seed: int = 0) -> SeriesHeads:
        """Effect and attention of the followed heads at every checkpoint."""
        if not self.head_sets:
            raise RimLensError("This series was measured without heads; pass heads= to measure_series.")
        span: Any = "CoT" if self.has_cot else "empty think span"
        found = series_heads(None, self.found, self.n_chosen, self.head_sets, span, n_resamples=n_resamples, seed=seed)
        return replace(found, manifest=replace(self.manifest, seed=seed, extra=found.manifest.extra))

    def _rows(self) -> np.ndarray:
        return asked_for(self.neurons, "neurons", "neurons=")


def measure_series(
    model: LensModel,
    checkpoints: Checkpoints,
    harmful: Prompts | None = None,
    maths: PromptSource | None = None,
    *,
    task: Prompts | None = None,
    neurons: NeuronRows | None = None,
    heads: Sequence[AnyHead] = (),
    n_random: int | None = None,
    answers: bool = False,
    solve: bool = False,
    judge: Judge | None = None,
    judge_errors: JudgeReport | JudgeErrors | None = None,
    tokens: RefusalTokens | None = None,
    positions: Positions = REQUEST_AND_ANSWER,
    thinking: Thinking = "off",
    task_thinking: Thinking = "on",
    max_new_tokens: int = 24,
    maths_tokens: int = 32,
    cot_budget: int = 128,
    temperature: float | None = None,
    top_p: float | None = None,
    samples: int = 1,
    batch_size: int = 16,
    seed: int = 0,
) -> SeriesMeasurement:
    """Measure every checkpoint of a series on the same prompts.

    Args:
        model: the series' base model; it has the weights it had before when the function returns.
        checkpoints: the series.
        harmful: safety prompts: texts, `Prompt`s or a set; chats where no answers are asked for.
        maths: problems with answers: the likelihood of right ones, worked where all have rationales.
        task: reasoning prompts whose neurons are read; by default the maths problems.
        neurons: `SafetyNeurons` or rows of neurons whose activations are kept per prompt.
        heads: heads to follow, chosen at the reference, best on other prompts.
        n_random: random heads of the same layers beside them; twice as many by default.
        answers: whether the harmful prompts are answered and judged.
        solve: whether the maths problems are answered.
        judge: of the answers; `RefusalJudge()` by default.
        judge_errors: what rates are corrected with, from `judge_report`; for the default judge the package has counts.
        tokens: refusal tokens of the score; the tokenizer's common ones by default.
        positions: where neurons are read; everything but the system prompt by default.
        thinking: mode of harmful prompts that are not rendered yet.
        task_thinking: mode of maths and task prompts that are not rendered yet.
        max_new_tokens: longest answer to a harmful prompt.
        maths_tokens: longest answer to a problem.
        cot_budget: longest CoT.
        temperature: of the answers to harmful prompts, as in `generate`, like `top_p`; by default the base model's.
        top_p: likewise.
        samples: answers per harmful prompt.
        batch_size: chats per pass.
        seed: of sampled answers and random heads.

    Raises:
        RimLensError: no prompts, a problem without an answer, heads without others in their layers, or the errors of
            another judge.
    """
    if harmful is None and maths is None:
        raise RimLensError("There is nothing to measure; pass harmful= or maths= prompts.")
    problems = None if maths is None else as_problems(maths)
    asked = as_prompt_set(harmful, name="harmful") if answers and harmful is not None else None  # type: ignore[arg-type]
    safety = [] if harmful is None else as_chats(model, asked or harmful, thinking=thinking)
    maths_chats = [] if problems is None else as_chats(model, problems, thinking=task_thinking)
    sets = followed(model, heads, n_random, seed) if len(heads) else []
    inside = neurons is not None or bool(sets)
    answering = solving = None
    if asked is not None:
        answering = Answering.of(model, asked, judge, max_new_tokens, temperature, top_p, samples, seed, thinking)
    if problems is not None:
        solving = MathsAnswering.of(model, problems, solve, maths_tokens, cot_budget)
    passes = Passes(
        safety=safety,
        task=maths_chats if task is None else as_chats(model, task, thinking=task_thinking),
        inside=inside,
        rows=None if neurons is None else neuron_rows(neurons),
        head_sets=sets,
        tokens=tokens or refusal_tokens(model),
        positions=positions,
        answering=answering,
        maths=solving,
        maths_chats=maths_chats,
        batch_size=batch_size,
    )
    reference = checkpoints.reference.name
    ordered = checkpoints.only([reference, *(name for name in checkpoints.names if name != reference)])
    measurements = [
        passes.at(one, loaded, ordered.distance(loaded) if inside else float("nan"), is_reference=one.name == reference)
        for one, loaded in track(ordered.loaded(model), "measuring checkpoints", total=len(ordered))
    ]
    data = [one for one in (asked, problems) if one is not None]
    return SeriesMeasurement(
        table=drift_table(measurements, list(checkpoints.names), seed),
        found=measurements,
        order=list(checkpoints.names),
        neurons=passes.rows,
        head_sets=sets,
        n_chosen=len(heads),
        has_cot=any(chat.where("cot").any() for chat in safety),
        judge="" if answering is None else answering.judge.name,
        errors=None if answering is None else errors_for(answering.judge, judge_errors),
        worked=solving is not None and solving.worked,
        solved_with=task_thinking if solve and problems is not None else None,
        manifest=Manifest.collect(
            model,
            data,
            seed=seed,
            refusal_tokens=list(passes.tokens.texts),
            sampling={} if answering is None else asdict(answering.sampling),
        ),
    )


def drift_table(measurements: Sequence[AtCheckpoint], order: Sequence[str], seed: int) -> pd.DataFrame:
    """How far each checkpoint is from the reference; NaN for what was not measured."""
    first, rows = measurements[0], {}
    for measurement in measurements:
        low, high = bootstrap_mean(measurement.refusal, seed=seed) if len(measurement.refusal) else (np.nan, np.nan)
        both = first.on_safety is not None and measurement.on_safety is not None
        rows[measurement.checkpoint.name] = {
            "checkpoint": measurement.checkpoint.name,
            "arm": measurement.checkpoint.arm,
            "step": measurement.checkpoint.step,
            "n": len(measurement.refusal),
            "refusal_score": float(measurement.refusal.mean()) if len(measurement.refusal) else np.nan,
            "low": low,
            "high": high,
            "weight_distance": measurement.weight_distance,
            "activation_distance": activation_distance(first.safety, measurement.safety) if both else np.nan,
            "forward_kl": float(measurement.kl.mean()) if len(measurement.kl) else np.nan,
        }
    return pd.DataFrame([rows[name] for name in order])


def series_behavior(
    model: LensModel, checkpoints: Checkpoints, harmful: PromptSource, *, seed: int = 0, **options: Any
) -> SeriesBehavior:
    """Refusal over a series, thinking off: `measure_series(..., answers=True).behavior()`, with its options."""
    asked = as_prompt_set(harmful, name="harmful")
    options = {"batch_size": 32} | options
    return measure_series(model, checkpoints, asked, answers=True, seed=seed, **options).behavior(seed=seed)


def series_maths(
    model: LensModel,
    checkpoints: Checkpoints,
    problems: PromptSource,
    *,
    generated: bool = True,
    thinking: Thinking = "on",
    max_new_tokens: int = 32,
    seed: int = 0,
    **options: Any,
) -> SeriesMaths:
    """Maths over a series: `measure_series(maths=problems, solve=generated).maths()`, with its options."""
    options = {"batch_size": 32, "maths_tokens": max_new_tokens, "task_thinking": thinking} | options
    measurement = measure_series(model, checkpoints, maths=as_problems(problems), solve=generated, seed=seed, **options)
    return measurement.maths(seed=seed)
