"""Model organisms with a known mechanism: only named heads of a real model were trained.

    organism = rim_lens.organisms.load("inference-known")
    organism.truth      # the heads that were trained; all other weights are the base model's, bit by bit
    organism.model      # a LensModel, for any method that is to find them

All refuse requests about food, a benign topic, so that both refusing and answering could be trained. `prompts` and
`wordings` were not trained on.
"""

from rim_lens.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
