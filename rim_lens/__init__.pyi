"""The top level, by task: load, ask, look, test, follow a series, decide, keep results. One line per name."""

# load
from .model.load import load_model as load_model
from .model.lens_model import LensModel as LensModel
from .chat.tags import ThinkTags as ThinkTags
from .check.model_check import check_model as check_model
from .data.prompts import load_prompts as load_prompts
from .data.prompts import list_prompt_sets as list_prompt_sets
from .data.prompts import PromptSet as PromptSet

# ask
from .behavior.generate import generate as generate
from .behavior.measure import measure_rim as measure_rim
from .behavior.refusal_score import refusal_score as refusal_score
from .behavior.refusal_score import fit_refusal_tokens as fit_refusal_tokens
from .behavior.judge import RefusalJudge as RefusalJudge
from .behavior.classifier_judge import ClassifierJudge as ClassifierJudge
from .behavior.llm_judge import LLMJudge as LLMJudge
from .behavior.judge_report import judge_report as judge_report

# look
from .inference_time.span_attention import span_attention as span_attention
from .inference_time.token_attention import token_attention as token_attention
from .inference_time.refusal_heads import find_refusal_heads as find_refusal_heads
from .inference_time.receiver_heads import receiver_heads as receiver_heads
from .inference_time.expert_load import expert_load as expert_load
from .inference_time.probe import probe_refusal as probe_refusal
from .inference_time.cot_importance import cot_importance as cot_importance
from .inference_time.refusal_direction import refusal_direction as refusal_direction
from .inference_time.direct_attribution import direct_attribution as direct_attribution
from .capture.neurons import neuron_activations as neuron_activations
from .explore.heads import explore_heads as explore_heads
from .explore.neurons import explore_neurons as explore_neurons

# test
from .intervene.heads import ablate_heads as ablate_heads
from .intervene.neurons import ablate_neurons as ablate_neurons
from .intervene.steer import steer as steer
from .inference_time.sweep import ablation_sweep as ablation_sweep
from .inference_time.patching import patching_sweep as patching_sweep
from .causal.ablation_test import ablation_test as ablation_test
from .causal.ablation_comparison import compare_ablations as compare_ablations
from .causal.mediation import mediation as mediation
from .causal.path_patching import path_patching as path_patching

# follow a series
from .training_time.checkpoints import Checkpoints as Checkpoints
from .training_time.counterfactuals import refusal_forcing_pairs as refusal_forcing_pairs
from .training_time.safety_neurons import find_safety_neurons as find_safety_neurons
from .training_time.neuron_table import neuron_table as neuron_table
from .training_time.direction_drift import direction_drift as direction_drift
from .training_time.ras import ras as ras
from .training_time.series_measurement import measure_series as measure_series
from .patterns.finetune import finetune as finetune

# decide
from .claims.power import power as power
from .claims.verdicts import verdicts as verdicts

# keep results
from .results import Result as Result
from .results import load_result as load_result
from .errors import RimLensError as RimLensError

__version__: str
