"""Effort-minimizing reasoning.

What it is, where it stands in a CoT, control and target CoT, what it costs, training on it.
"""
