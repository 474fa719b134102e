"""annotate_reasoning: which sentences of a CoT save effort, which pattern they have, and the words that say so.

    share of pattern sentences = sentences with a pattern / sentences

with Wilson's interval for as many trials as the sentences are worth (`stats.wilson_of_groups`), since sentences of one
CoT are not independent.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from rim_lens.behavior.sentences import Sentence, plain, split_sentences
from rim_lens.errors import RimLensError
from rim_lens.patterns.labels import Annotator, SentenceLabel
from rim_lens.patterns.taxonomy import LABELS, NAMES, NONE
from rim_lens.patterns.text_annotator import TextAnnotator
from rim_lens.results import Manifest, Result
from rim_lens.stats import wilson_of_groups


@dataclass(frozen=True, eq=False)
class Annotations(Result):
    """The sentences of CoTs with their labels.

    `sentences`: one row per sentence: cot, sentence, start, end, text, label, evidence, evidence_start, evidence_end
    (places are characters of the CoT). `table`: per pattern, and for any, the number of sentences, their share with its
    interval, and the number of CoTs that have one. `annotator` names who labelled.
    """

    table: pd.DataFrame
    sentences: pd.DataFrame
    annotator: str
    n_cots: int

    def caption(self) -> str:
        """Who labelled, and how many."""
        return f"{len(self.sentences)} sentences of {self.n_cots} CoTs labelled by {self.annotator}"

    def labels(self) -> list[str]:
        """The labels in order."""
        return list(self.sentences["label"])


def annotate_reasoning(
    cots: Sequence[str],
    annotator: Annotator | None = None,
    *,
    problems: Sequence[str] | None = None,
) -> Annotations:
    """Label every sentence of every CoT with a pattern or `none`.

    Args:
        cots: texts of CoTs; empty ones have no sentences.
        annotator: `TextAnnotator()` by default, which needs no model; `LLMAnnotator(url, model)` asks one.
        problems: the requests that the CoTs answer, shown to annotators that ask a model.

    Raises:
        RimLensError: no CoT with text, a single string, or numbers that do not match.

    """
    if isinstance(cots, str) or not any(cot.strip() for cot in cots):
        raise RimLensError("annotate_reasoning needs a list of CoTs with text in at least one; these hold none.")
    if problems is not None and len(problems) != len(cots):
        raise RimLensError(f"There are {len(cots)} CoTs and {len(problems)} problems; give one problem per CoT.")
    annotator = annotator or TextAnnotator()
    cut = [split_sentences(plain(cot)) for cot in cots]
    labels = annotator(cut, problems)
    rows = [
        row_of(number, place, cots[number], sentence, label)
        for number, (sentences, marks) in enumerate(zip(cut, labels, strict=True))
        for place, (sentence, label) in enumerate(zip(sentences, marks, strict=True))
    ]
    frame = pd.DataFrame(rows)
    return Annotations(
        manifest=Manifest.collect(annotator=annotator.name),
        table=share_table(frame, len(cots)),
        sentences=frame,
        annotator=annotator.name,
        n_cots=len(cots),
    )


def row_of(number: int, place: int, cot: str, sentence: Sentence, label: SentenceLabel) -> dict[str, object]:
    """One sentence as a row; texts are cut from the CoT as it was written."""
    return {
        "cot": number,
        "sentence": place,
        "start": sentence.start,
        "end": sentence.end,
        "text": cot[sentence.start : sentence.end],
        "label": label.pattern,
        "evidence": cot[label.start : label.end],
        "evidence_start": label.start,
        "evidence_end": label.end,
    }


def share_table(sentences: pd.DataFrame, n_cots: int) -> pd.DataFrame:
    """Sentences with each pattern and with any: number, share with its interval, and CoTs that have one."""
    in_cot = np.bincount(sentences["cot"], minlength=n_cots)
    rows = []
    for name in (*NAMES, "any"):
        hit = sentences["label"] != NONE if name == "any" else sentences["label"] == name
        hits = np.bincount(sentences["cot"], weights=hit, minlength=n_cots)
        low, high = wilson_of_groups(hits, in_cot)
        rows.append(
            {
                "pattern": name,
                "k": int(hits.sum()),
                "n": int(in_cot.sum()),
                "share": float(hits.sum() / in_cot.sum()),
                "low": low,
                "high": high,
                "cots_with_it": int((hits > 0).sum()),
                "n_cots": n_cots,
            }
        )
    return pd.DataFrame(rows)


def counts_of(a: Sequence[str], b: Sequence[str]) -> pd.DataFrame:
    """How often each label of `a` met each label of `b`."""
    table = pd.crosstab(pd.Categorical(a, LABELS), pd.Categorical(b, LABELS), dropna=False)
    return table.rename_axis(index=None, columns=None)
