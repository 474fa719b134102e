"""rim_lens: mechanistic interpretability of Reasoning-Induced Misalignment, on TransformerLens.

Everything public is on this page and is imported when first used, so that `import rim_lens` is instant.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# public name -> module that defines it, in the order in which data flows
_PUBLIC = {
    "RimLensError": "errors",
    "Result": "results",
    "load_result": "results",
    "Prompt": "data.prompts",
    "PromptSet": "data.prompts",
    "load_prompts": "data.prompts",
    "list_prompt_sets": "data.prompts",
    "load_wordings": "data.prompts",
    "load_model": "model.load",
    "LensModel": "model.lens_model",
    "Chat": "chat.chat",
    "ThinkTags": "chat.tags",
    "ChatFormat": "chat.format",
    "Tap": "model.taps",
    "attention_rows": "capture.attention",
    "segment_masses": "capture.attention",
    "residuals": "capture.activations",
    "head_outputs": "capture.activations",
    "neuron_activations": "capture.neurons",
    "ablate_heads": "intervene",
    "scale_heads": "intervene",
    "knock_out": "intervene",
    "patch_heads": "intervene",
    "record_heads": "intervene",
    "ablate_neurons": "intervene",
    "scale_neurons": "intervene",
    "steer": "intervene",
    "generate": "behavior.generate",
    "RefusalJudge": "behavior.judge",
    "ClassifierJudge": "behavior.classifier_judge",
    "LLMJudge": "behavior.llm_judge",
    "judge_report": "behavior.judge_report",
    "refusal_tokens": "behavior.refusal_score",
    "fit_refusal_tokens": "behavior.refusal_score",
    "refusal_score": "behavior.refusal_score",
    "sequence_refusal_score": "behavior.refusal_score",
    "maths_accuracy": "behavior.maths",
    "measure_rim": "behavior.measure",
    "span_attention": "inference_time.span_attention",
    "attention_by_length": "inference_time.cot_length",
    "token_attention": "inference_time.token_attention",
    "find_refusal_heads": "inference_time.refusal_heads",
    "ablation_sweep": "inference_time.sweep",
    "patching_sweep": "inference_time.patching",
    "interchange_sweep": "inference_time.interchange",
    "ablation_test": "causal.ablation_test",
    "mediation": "causal.mediation",
    "restore_refusal": "inference_time.restore",
    "probe_refusal": "inference_time.probe",
    "trace_refusal": "inference_time.trace",
    "refusal_direction": "inference_time.refusal_direction",
    "direct_attribution": "inference_time.direct_attribution",
    "self_repair": "inference_time.direct_attribution",
    "receiver_heads": "inference_time.receiver_heads",
    "expert_load": "inference_time.expert_load",
    "cot_importance": "inference_time.cot_importance",
    "Checkpoints": "training_time.checkpoints",
    "measure_series": "training_time.series_measurement",
    "series_behavior": "training_time.series_measurement",
    "series_maths": "training_time.series_measurement",
    "compare_arms": "training_time.compare_arms",
    "given_pairs": "training_time.counterfactuals",
    "refusal_forcing_pairs": "training_time.counterfactuals",
    "teacher_forced_pairs": "training_time.counterfactuals",
    "find_safety_neurons": "training_time.safety_neurons",
    "matched_controls": "capture.neuron_sets",
    "neuron_table": "training_time.neuron_table",
    "activation_shift": "training_time.shift",
    "ras": "training_time.ras",
    "direction_drift": "training_time.direction_drift",
    "predict_shift": "training_time.predict_shift",
    "explore_heads": "explore.heads",
    "explore_neurons": "explore.neurons",
    "load_patterns": "patterns.taxonomy",
    "annotate_reasoning": "patterns.annotation",
    "LLMAnnotator": "patterns.llm_annotator",
    "annotator_agreement": "patterns.agreement",
    "rewrite_cot": "patterns.rewrite",
    "make_cot_pairs": "patterns.pairs",
    "TemplateWriter": "patterns.template_writer",
    "LLMWriter": "patterns.llm_writer",
    "pattern_costs": "patterns.costs",
    "arm_divergence": "patterns.arm_divergence",
    "own_patterns": "patterns.own_cots",
    "TrainingSettings": "patterns.training_plan",
    "finetune": "patterns.finetune",
    "verdicts": "claims.verdicts",
    "power": "claims.power",
    "check_model": "check.model_check",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'rim_lens' has no attribute {name!r}")
    value = getattr(import_module(f"rim_lens.{_PUBLIC[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
