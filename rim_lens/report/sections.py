"""Which section a result gets, and in which chapter; a kind without a section of its own gets its caption and table."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from rim_lens.behavior.measure import RimTable
from rim_lens.causal.ablation_comparison import AblationComparison
from rim_lens.causal.ablation_test import AblationTest
from rim_lens.inference_time.cot_importance import CotImportance
from rim_lens.inference_time.interchange import InterchangeSweep
from rim_lens.inference_time.patching import PatchingSweep
from rim_lens.inference_time.probe import RefusalProbe
from rim_lens.inference_time.refusal_heads import RefusalHeads
from rim_lens.inference_time.span_attention import SpanAttention
from rim_lens.inference_time.sweep import AblationSweep
from rim_lens.inference_time.token_attention import TokenAttention
from rim_lens.inference_time.trace import RefusalTrace
from rim_lens.patterns.arm_distance import ArmDivergence
from rim_lens.patterns.costs import PatternCosts
from rim_lens.patterns.finetune import FinetuneRun
from rim_lens.patterns.own_cots import OwnPatterns
from rim_lens.report import (
    arms,
    behavior,
    cot,
    directions,
    heads,
    methods,
    neuron_series,
    neuron_table,
    neurons,
    patterns,
    series,
    sweeps,
)
from rim_lens.report.blocks import Definition, Grid, Section, Words
from rim_lens.results import Result
from rim_lens.training_time.arm_comparison import ArmComparison
from rim_lens.training_time.forgetting import Forgetting
from rim_lens.training_time.neuron_table import NeuronTable
from rim_lens.training_time.prediction_check import PredictionCheck
from rim_lens.training_time.ras import Ras
from rim_lens.training_time.safety_neurons import SafetyNeurons
from rim_lens.training_time.series_answers import SeriesBehavior
from rim_lens.training_time.series_heads import SeriesHeads
from rim_lens.training_time.series_measurement import SeriesMeasurement
from rim_lens.training_time.series_problems import SeriesMaths
from rim_lens.training_time.series_shift import SeriesShift
from rim_lens.training_time.shift import ActivationShift

SHOWN_ROWS = 100


@dataclass(frozen=True)
class Chapter:
    """A part of the page: which kinds of results it shows, in which order, and the definitions they need."""

    anchor: str
    title: str
    lead: str
    sections: dict[type[Result], Callable[[str, Any], Section]]
    definitions: Sequence[Definition]


CHAPTERS = (
    Chapter(
        "behaviour",
        "Behaviour",
        "Does the model refuse less when it thinks, and what does fine-tuning on reasoning do to its refusals?",
        {
            RimTable: behavior.section,
            FinetuneRun: arms.training_section,
            SeriesBehavior: series.section,
            SeriesMaths: series.maths_section,
            ArmComparison: arms.comparison_section,
        },
        (*methods.BEHAVIOR, *methods.SCORE),
    ),
    Chapter(
        "patterns",
        "Effort-minimizing reasoning",
        "Reasoning that saves effort is said to cost refusal most: is it so here, which pattern costs most, and "
        "where is it found?",
        {
            PatternCosts: patterns.cost_section,
            OwnPatterns: patterns.own_section,
            ArmDivergence: patterns.training_section,
        },
        methods.PATTERNS,
    ),
    Chapter(
        "inference",
        "Inference time: heads",
        "Which attention heads turn towards or away from the chain of thought when the model refuses, and is it they "
        "that refuse?",
        {
            RefusalHeads: heads.contrast_section,
            SpanAttention: heads.span_section,
            AblationSweep: sweeps.ablation_section,
            PatchingSweep: sweeps.patching_section,
            InterchangeSweep: sweeps.interchange_section,
            TokenAttention: heads.token_section,
            AblationTest: heads.test_section,
            AblationComparison: directions.comparison_section,
            CotImportance: cot.section,
            RefusalProbe: heads.probe_section,
            RefusalTrace: heads.trace_section,
        },
        methods.HEADS,
    ),
    Chapter(
        "training",
        "Training time: neurons",
        "Which neurons carry safety, what does fine-tuning on reasoning do to them, and does that predict what is "
        "forgotten?",
        {
            SafetyNeurons: neurons.set_section,
            NeuronTable: neuron_table.section,
            AblationTest: neurons.test_section,
            ActivationShift: neurons.shift_section,
            SeriesShift: neuron_series.shift_section,
            Ras: neurons.ras_section,
            Forgetting: neurons.forgetting_section,
            PredictionCheck: neuron_series.prediction_section,
            SeriesHeads: neuron_series.heads_section,
        },
        methods.NEURONS,
    ),
)
CHAPTER_OF_TESTED = {"heads": "inference", "direction": "inference", "neurons": "training"}
VIEWED = (SeriesMeasurement,)  # shown as its views, each in a section of its own
OTHER = Chapter("more", "More results", "Results that have no figures of their own yet, as tables.", {}, ())


def chapter_of(result: Result) -> Chapter:
    """The chapter that shows this kind of result."""
    if isinstance(result, AblationTest):
        return next(chapter for chapter in CHAPTERS if chapter.anchor == CHAPTER_OF_TESTED[result.kind])
    return next((chapter for chapter in CHAPTERS if type(result) in chapter.sections), OTHER)


def section_of(anchor: str, result: Result) -> Section:
    """The section of one result."""
    make = chapter_of(result).sections.get(type(result), plain_section)
    return make(anchor, result)


def plain_section(anchor: str, result: Result) -> Section:
    """Caption and the first rows of the table."""
    table = result.to_dataframe()
    first_rows = table.head(SHOWN_ROWS)
    rows = [[cell(value) for value in row] for row in first_rows.itertuples(index=False)]
    note = (
        f"{len(first_rows)} of {len(table)} rows; all are in the audit's folder."
        if len(table) > len(first_rows)
        else ""
    )
    grid = Grid("Table", [str(name) for name in table.columns], rows, note)
    return Section(anchor, result.title(), [], [Words(result.caption()), grid])


def cell(value: Any) -> str:
    """A table's value as text."""
    if isinstance(value, float):
        return "–" if pd.isna(value) else f"{value:.4g}"
    return str(value)
