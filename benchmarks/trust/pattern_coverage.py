"""Coverage of the intervals over annotated chains of thought: share of sentences with a pattern, and Cohen's kappa."""

import numpy as np
import pandas as pd

from benchmarks.trust.simulated import Coverage, coverage, covers
from rim_lens.patterns.agreement import agreement_of
from rim_lens.patterns.annotation import share_table
from rim_lens.patterns.taxonomy import LABELS, NAMES, NONE
from rim_lens.stats.kappa import kappa

SENTENCES = (4, 12)  # of a CoT, fewest and most


def cots(rng: np.random.Generator, n: int, share: float) -> tuple[np.ndarray, np.ndarray]:
    """The CoT of every sentence, and whether it has the pattern.

    CoTs differ in how lazy they are (beta, strength 4).
    """
    cot = np.repeat(np.arange(n), rng.integers(SENTENCES[0], SENTENCES[1] + 1, n))
    return cot, rng.random(len(cot)) < rng.beta(4 * share, 4 * (1 - share), n)[cot]


@covers
def pattern_shares(rng: np.random.Generator, runs: int) -> list[Coverage]:
    """Sentences with a pattern; CoTs are what is sampled."""
    rows = []
    for n in (12, 32, 96):
        for share in (0.02, 0.05, 0.3):
            ends = []
            for _ in range(runs):
                cot, hit = cots(rng, n, share)
                sentences = pd.DataFrame({"cot": cot, "label": np.where(hit, NAMES[0], NONE)})
                row = share_table(sentences, n).iloc[0]
                ends.append((row["low"], row["high"]))
            names = ("share of sentences", "annotate, pattern_pairs", f"share {share:g}, CoTs differ", f"{n} CoTs")
            rows.append(coverage(names, share, *np.array(ends).T))
    return rows


@covers
def kappas(rng: np.random.Generator, runs: int) -> list[Coverage]:
    """Two annotators who err independently, one sentence in five; the pattern is in 30 % of the sentences."""
    rows, pattern, none = [], LABELS.index(NAMES[0]), LABELS.index(NONE)
    right, share = 0.8, 0.3
    counts = np.zeros((2, 2))
    for truth, weight in ((1, share), (0, 1 - share)):
        says = np.array([1 - right, right]) if truth else np.array([right, 1 - right])
        counts += weight * np.outer(says, says)
    for n in (12, 32, 96):
        ends = []
        for i in range(runs):
            cot, hit = cots(rng, n, share)
            sides = [np.where(hit ^ (rng.random(len(hit)) > right), pattern, none) for _ in range(2)]
            found = agreement_of(*sides, cot, ("a", "b"), seed=i, n_resamples=500)
            ends.append(tuple(found.interval))
        names = ("Cohen's κ", "annotator_agreement", "one label in five wrong", f"{n} CoTs")
        rows.append(coverage(names, float(kappa(counts)), *np.array(ends).T))
    return rows
