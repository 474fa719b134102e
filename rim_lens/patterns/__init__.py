"""Effort-minimizing reasoning.

What it is, where it stands in a CoT, control and target CoT, what it costs, training on it.
"""

from rim_lens.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
