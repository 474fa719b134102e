"""own_patterns: patterns in the CoTs that a model writes itself, and whether they go with complying.

                     complied   did not comply
    CoT has one          a            b
    CoT has none         c            d            Fisher's exact test, two-sided

Association only: a request that invites compliance may invite the pattern too, and a long CoT has more sentences that
may have one; what a pattern does is measured by giving it (`pattern_costs`). With few CoTs on one side no table could
reach p < 0.05: `smallest_p` is the smallest p that these margins allow.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from scipy import stats

from rim_lens.behavior.measure import RimTable
from rim_lens.errors import RimLensError
from rim_lens.patterns.annotation import annotate_reasoning
from rim_lens.patterns.labels import Annotator
from rim_lens.patterns.taxonomy import NONE
from rim_lens.patterns.text_annotator import TextAnnotator
from rim_lens.results import Manifest, Result
from rim_lens.stats import wilson

OUTCOMES = ("complied", "refused")


@dataclass(frozen=True, eq=False)
class OwnPatterns(Result):
    """Patterns in a model's own CoTs.

    `table`: per pattern, and for any, the number of sentences, their share with its interval over CoTs, and CoTs that
    have one. `outcomes`: for complied and for refused, the counts among CoTs with and without a pattern, their rates
    with intervals, mean sentences, Fisher's exact p and the smallest p that the margins allow. `sentences`: those with
    a pattern, with evidence and request. `n_empty` CoTs without a sentence are in none of these. `limits`: the
    annotator's errors on native thoughts.
    """

    figure: ClassVar = "patterns:own_shares"

    table: pd.DataFrame
    outcomes: pd.DataFrame
    sentences: pd.DataFrame
    n_cots: int
    n_empty: int
    annotator: str
    judge: str
    limits: str

    def caption(self) -> str:
        """Whose CoTs, who labelled and judged."""
        return (
            f"Pattern sentences in {self.n_cots} CoTs of the model's own, by {self.annotator}; intervals over CoTs; "
            f"answers judged by {self.judge}. {self.limits}"
        )


def own_patterns(measured: RimTable, annotator: Annotator | None = None, *, set_name: str = "harmful") -> OwnPatterns:
    """Label the CoTs that a model wrote with thinking on, and compare them with its answers.

    Args:
        measured: the table of `measure_rim`, with thinking on.
        annotator: `TextAnnotator()` by default.
        set_name: whose answers: `harmful` or `harmless`.

    Raises:
        RimLensError: no answers with thinking on, or no CoT with a sentence.

    """
    every = measured.answers  # of a prompt's samples the first, so that CoTs are independent
    answers = every[(every["set"] == set_name) & (every["condition"] == "on") & (every["sample"] == 0)]
    if answers.empty:
        raise RimLensError(f"The table has no answers to the {set_name} set with thinking on; measure them first.")
    annotator = annotator or TextAnnotator()
    answers = answers.sort_values("prompt")
    annotation = annotate_reasoning(list(answers["cot"]), annotator, problems=list(answers["request"]))
    frame = annotation.sentences
    n_sentences = np.bincount(frame["cot"], minlength=len(answers))
    patterned = np.bincount(frame["cot"], weights=frame["label"] != NONE, minlength=len(answers)) > 0
    spoken = n_sentences > 0
    labels = answers["label"].to_numpy()
    marked = frame[frame["label"] != NONE]
    return OwnPatterns(
        manifest=Manifest.collect(annotator=annotation.annotator, set=set_name),
        table=annotation.table.assign(n_cots=int(spoken.sum())),
        outcomes=pd.DataFrame(
            [outcome_row(name, labels[spoken] == name, patterned[spoken], n_sentences[spoken]) for name in OUTCOMES]
        ),
        sentences=marked.assign(
            request=answers["request"].to_numpy()[marked["cot"]], outcome=labels[marked["cot"]]
        ).reset_index(drop=True),
        n_cots=int(spoken.sum()),
        n_empty=int((~spoken).sum()),
        annotator=annotation.annotator,
        judge=measured.judge,
        limits=annotator.limits,
    )


def outcome_row(name: str, hit: np.ndarray, patterned: np.ndarray, n_sentences: np.ndarray) -> dict[str, Any]:
    """An outcome among CoTs with and without a pattern."""
    row: dict[str, Any] = {"outcome": name}
    for side, chosen in (("with", patterned), ("without", ~patterned)):
        k, n = int(hit[chosen].sum()), int(chosen.sum())
        low, high = wilson(k, n)
        row |= {f"{side}_k": k, f"{side}_n": n, f"{side}_rate": k / n if n else np.nan}
        row |= {f"{side}_low": low, f"{side}_high": high}
        row[f"{side}_sentences"] = float(n_sentences[chosen].mean()) if n else np.nan
    return row | fisher(row["with_k"], row["with_n"], row["without_k"], row["without_n"])


def fisher(k: int, n: int, k_other: int, n_other: int) -> dict[str, float]:
    """Fisher's exact p of k in n against k_other in n_other, and the smallest p among all tables with these margins."""
    if not n or not n_other:
        return {"p": np.nan, "smallest_p": np.nan}
    total = k + k_other
    possible = range(max(0, total - n_other), min(n, total) + 1)
    every = {i: two_sided(i, n, total - i, n_other) for i in possible}
    return {"p": every[k], "smallest_p": min(every.values())}


def two_sided(k: int, n: int, k_other: int, n_other: int) -> float:
    """Fisher's exact two-sided p."""
    return float(stats.fisher_exact([[k, n - k], [k_other, n_other - k_other]]).pvalue)
