"""The function whose call makes each kind of result, as the page names it. A test holds it against the annotations."""

from rim_lens.results import Result

MADE_BY = {
    "RimTable": "rim_lens.measure_rim",
    "FinetuneRun": "rim_lens.finetune",
    "SeriesBehavior": "rim_lens.training_time.series_behavior",
    "SeriesMaths": "rim_lens.training_time.series_maths",
    "ArmComparison": "rim_lens.training_time.compare_arms",
    "PatternCosts": "rim_lens.patterns.pattern_costs",
    "OwnPatterns": "rim_lens.patterns.own_patterns",
    "ArmDivergence": "rim_lens.patterns.arm_divergence",
    "RefusalHeads": "rim_lens.find_refusal_heads",
    "SpanAttention": "rim_lens.span_attention",
    "AblationSweep": "rim_lens.ablation_sweep",
    "PatchingSweep": "rim_lens.patching_sweep",
    "InterchangeSweep": "rim_lens.inference_time.interchange_sweep",
    "TokenAttention": "rim_lens.token_attention",
    "AblationTest": "rim_lens.ablation_test",
    "AblationComparison": "rim_lens.compare_ablations",
    "CotImportance": "rim_lens.cot_importance",
    "RefusalProbe": "rim_lens.probe_refusal",
    "RefusalTrace": "rim_lens.inference_time.trace_refusal",
    "SafetyNeurons": "rim_lens.find_safety_neurons",
    "NeuronTable": "rim_lens.neuron_table",
    "ActivationShift": "rim_lens.training_time.activation_shift",
    "SeriesShift": "rim_lens.measure_series().shift",
    "Ras": "rim_lens.ras",
    "Forgetting": "rim_lens.measure_series().forgetting",
    "PredictionCheck": "rim_lens.training_time.prediction_check.prediction_check",
    "SeriesHeads": "rim_lens.measure_series().heads",
}


def made_by(result: Result) -> str:
    """The full name of the function that makes this kind of result, or nothing for a kind that is not listed."""
    return MADE_BY.get(type(result).__name__, "")
