"""The paper's section on inference: span attention, refusal heads, their causal tests, the refusal probe."""

from rim_lens.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
