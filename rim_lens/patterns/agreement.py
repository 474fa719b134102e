"""Agreement of two annotators beyond chance: Cohen's kappa (`rim_lens.stats.kappa`) over the sentences both labelled.

The interval is a bootstrap over CoTs, because sentences of one CoT are not independent.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float

from rim_lens.errors import RimLensError
from rim_lens.patterns.annotation import Annotations, counts_of
from rim_lens.patterns.taxonomy import LABELS
from rim_lens.results import Manifest, Result
from rim_lens.stats import Interval
from rim_lens.stats.kappa import kappa, kappa_interval


@dataclass(frozen=True, eq=False)
class Agreement(Result):
    """How far two annotators agree.

    `kappa` with its interval over all labels; NaN where both gave one label only. `counts`: labels of the first (rows)
    by labels of the second (columns). `observed` is the share of equal labels. `table`: kappa of each pattern against
    the rest.
    """

    table: pd.DataFrame
    counts: pd.DataFrame
    kappa: float
    interval: Interval
    observed: float
    n: int
    n_cots: int
    names: tuple[str, str]

    def caption(self) -> str:
        """Both annotators, kappa and what it rests on."""
        return (
            f"{self.names[0]} against {self.names[1]}: κ = {self.kappa:.2f} {self.interval} on {self.n} sentences of "
            f"{self.n_cots} CoTs, {100 * self.observed:.0f} % equal labels"
        )


def annotator_agreement(a: Annotations, b: Annotations, *, seed: int = 0, n_resamples: int = 2000) -> Agreement:
    """Cohen's kappa of two annotations of the same CoTs.

    Raises:
        RimLensError: the two did not label the same sentences, or fewer than 2 CoTs.

    """
    places = ["cot", "start", "end"]
    if not a.sentences[places].equals(b.sentences[places]):
        raise RimLensError(
            "The two annotations are of different sentences; annotate the same CoTs with both annotators."
        )
    first, second = label_codes(a.labels()), label_codes(b.labels())
    return agreement_of(
        first, second, a.sentences["cot"].to_numpy(), (a.annotator, b.annotator), seed=seed, n_resamples=n_resamples
    )


def label_agreement(
    a: Sequence[str], b: Sequence[str], *, names: tuple[str, str] = ("first", "second"), seed: int = 0
) -> Agreement:
    """Cohen's kappa of two lists of labels of independent sentences, such as an annotator's and hand labels."""
    if len(a) != len(b):
        raise RimLensError(f"There are {len(a)} and {len(b)} labels; give one label of each annotator per sentence.")
    return agreement_of(label_codes(a), label_codes(b), np.arange(len(a)), names, seed=seed)


def agreement_of(
    first: np.ndarray,
    second: np.ndarray,
    groups: np.ndarray,
    names: tuple[str, str],
    *,
    seed: int = 0,
    n_resamples: int = 2000,
) -> Agreement:
    """Kappa of label codes; `groups` says which sentences are resampled together."""
    members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    if len(members) < 2:
        raise RimLensError("Kappa's interval needs sentences of at least 2 CoTs; give more.")
    each = np.stack([confusion(first[m], second[m], len(LABELS)) for m in members])  # [cot, label, label]

    def interval_of(part: Float[np.ndarray, "cot label label"]) -> Interval:
        return kappa_interval(part, n_resamples=n_resamples, seed=seed)

    rows = []
    for code, label in enumerate(LABELS):
        split = one_against_rest(each, code)
        low, high = interval_of(split)
        total = split.sum(axis=0)
        rows.append(
            {
                "label": label,
                "kappa": float(kappa(total)),
                "low": low,
                "high": high,
                "both": int(total[1, 1]),
                "first_only": int(total[1, 0]),
                "second_only": int(total[0, 1]),
                "n": int(total.sum()),
            }
        )
    whole = each.sum(axis=0)
    return Agreement(
        manifest=Manifest.collect(seed=seed, annotators=list(names)),
        table=pd.DataFrame(rows),
        counts=counts_of([LABELS[i] for i in first], [LABELS[i] for i in second]),
        kappa=float(kappa(whole)),
        interval=interval_of(each),
        observed=float(np.trace(whole) / whole.sum()),
        n=len(first),
        n_cots=len(members),
        names=names,
    )


def confusion(first: np.ndarray, second: np.ndarray, n_labels: int) -> Float[np.ndarray, "label label"]:
    """Counts of label pairs."""
    flat = np.bincount(first * n_labels + second, minlength=n_labels**2)
    return flat.reshape(n_labels, n_labels).astype(float)


def one_against_rest(each: Float[np.ndarray, "cot label label"], code: int) -> Float[np.ndarray, "cot 2 2"]:
    """The same counts with one label against all others: [rest, label]."""
    inside = each[:, code, code]
    row, column = each[:, code].sum(axis=1), each[:, :, code].sum(axis=1)
    total = each.sum(axis=(1, 2))
    return np.stack(
        [np.stack([total - row - column + inside, column - inside], -1), np.stack([row - inside, inside], -1)], 1
    )


def label_codes(labels: Sequence[str]) -> np.ndarray:
    """Places of labels in the taxonomy."""
    unknown = set(labels) - set(LABELS)
    if unknown:
        raise RimLensError(f"{sorted(unknown)[0]!r} is not a label; the labels are {', '.join(LABELS)}.")
    return np.array([LABELS.index(label) for label in labels], dtype=np.int64)
