"""From anything that names a model to a `LensModel`: loading, batches, taps, decoding."""

from rim_lens.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
