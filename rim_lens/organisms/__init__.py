"""Model organisms with a known mechanism: only named heads, or named neurons, of a real model were trained.

    organism = rim_lens.organisms.load("inference-known")
    organism.truth      # the heads that were trained; all other weights are the base model's, bit by bit
    organism.model      # a LensModel, for any method that is to find them

    organism = rim_lens.organisms.load("training-known", lineage=0)
    organism.truth      # neurons
    series = rim_lens.Checkpoints.from_folder(rim_lens.organisms.series(lineage=0))
    measured = rim_lens.measure_series(series.open(), series, organism.prompts, maths, neurons=organism.truth)

A lineage goes on from refusal to maths in two arms: learned by the neurons that refuse (entangled), or by other ones
(separate). All refuse requests about food, a benign topic, so that both refusing and answering could be trained.
`prompts` and `wordings` were not trained on.
"""

from rim_lens.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
