"""From anything that names a model to a `LensModel`: loading, batches, taps, decoding."""
