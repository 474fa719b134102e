"""The audit's page on this machine alone, with what needs the model.

Ablation, new answers, attention in new prompts.
"""
