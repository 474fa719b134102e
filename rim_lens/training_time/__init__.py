"""What fine-tuning changes: checkpoints, safety-critical neurons, activation shift, RAS, forgetting."""

from rim_lens.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
