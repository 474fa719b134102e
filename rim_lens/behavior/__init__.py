"""What the model does: generation with a thinking budget, judges, refusal score, maths accuracy, rates."""

from rim_lens.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
