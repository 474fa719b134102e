"""What TransformerLens must not do while it wraps a model."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_processor() -> Iterator[None]:
    """Keep TransformerLens from fetching a processor of images or sound, which nothing here uses.

    It asks the hub for it, and runs `pip install torchvision` where that fails. What pip then chooses may replace torch
    itself in the user's environment.
    """
    try:
        from transformer_lens.model_bridge.sources.transformers import source
    except ImportError:  # 3.x does it inside a longer function, where nothing can be put in its place
        yield
        return
    load = getattr(source, "load_modality_processor", None)
    if load is None:  # another version, which has no such step
        yield
        return
    source.load_modality_processor = lambda *args, **options: None
    try:
        yield
    finally:
        source.load_modality_processor = load
