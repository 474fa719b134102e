"""Speed and memory, measured against the plain way of doing the same: `python -m benchmarks [names]`.

A figure is registered by decorating a function of a module of this package:

    @benchmark
    def neurons(setting: Setting) -> Iterator[Figure]:
        yield Figure("neuron moments / plain forward", value, "ratio", at_most=1.1, n=setting.pairs)

All modules of the package are imported, so a new file joins by being there. Times are CPU seconds of this process with
one thread, which other processes on the machine disturb less than wall time; both sides of a ratio are measured in
turn.
"""
