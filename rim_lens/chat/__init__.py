"""A request as a model reads it: chat templates, think tags, and the segment of every token."""

from rim_lens.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
