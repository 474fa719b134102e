"""What is read in a pass: attention rows and their segment masses, residual stream, head outputs, neuron moments."""

from rim_lens.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
