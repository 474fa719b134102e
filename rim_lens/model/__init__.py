"""From anything that names a model to a `LensModel`: loading, chat format and segments, batches, taps, decoding."""
