"""arm_divergence: which patterns the CoTs of each arm of fine-tuning data have, and how else the arms differ.

A difference between two arms after training speaks for the pattern only as far as their data differ in nothing else: so
beside the share of pattern sentences stand length, word overlap and answer agreement (`divergence`), on the problems
that both arms have.
"""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd

from rim_lens.behavior.maths import is_correct
from rim_lens.behavior.maths_text import final_answer
from rim_lens.errors import RimLensError
from rim_lens.model.lens_model import LensModel
from rim_lens.patterns.annotation import annotate_reasoning
from rim_lens.patterns.divergence import add_side, divergence, overlap
from rim_lens.patterns.drafts import Count
from rim_lens.patterns.labels import Annotator
from rim_lens.patterns.rewrite import counter, has_number
from rim_lens.patterns.taxonomy import NONE
from rim_lens.patterns.training_rows import TrainingRow, read_training_rows
from rim_lens.results import Manifest, Result
from rim_lens.stats import bootstrap_mean, wilson

MIN_SHARED = 4  # problems that two arms must share to be compared
Arms = dict[str, list[TrainingRow]]


@dataclass(frozen=True, eq=False)
class ArmDivergence(Result):
    """The arms of a fine-tuning data set.

    `table`: per arm and pattern, and for any, the number of sentences, their share with its interval over CoTs, and
    CoTs that have one. `arms`: per arm its CoTs, rows without one, mean tokens with interval, and CoTs whose result
    equals the response's number. `divergence`: for every two arms that share at least 4 problems, per measure both
    means, their paired difference with its interval, and n problems. `sentences`: those with a pattern, with their
    evidence.
    """

    figure: ClassVar = "patterns:shares_by_arm"

    table: pd.DataFrame
    arms: pd.DataFrame
    divergence: pd.DataFrame
    sentences: pd.DataFrame
    annotator: str

    def caption(self) -> str:
        """Who labelled, and how many CoTs."""
        counts = ", ".join(f"{row['arm']} {row['n_cots']}" for _, row in self.arms.iterrows())
        return f"Pattern sentences in the CoTs of each arm ({counts}), by {self.annotator}; intervals over CoTs"


def arm_divergence(
    files: Mapping[str, str | Path],
    *,
    tokenizer: Any,
    annotator: Annotator | None = None,
    base: LensModel | None = None,
    n: int | None = None,
    seed: int = 0,
) -> ArmDivergence:
    """Read the fine-tuning data of arms and say how their CoTs differ.

    Args:
        files: a file with request, cot and response for each arm, as `finetune` takes them.
        tokenizer: a tokenizer, or a LensModel, whose tokens count.
        annotator: `TextAnnotator()` by default.
        base: a model for the perplexity of the CoTs; left out without one.
        n: problems, drawn with `seed` over all arms; all by default.
        seed: of the draw and the bootstraps.

    Raises:
        RimLensError: no arm, a file that cannot be read, rows without a CoT that do not say "thinking": "off", or an
            arm without any CoT.

    """
    if not files:
        raise RimLensError("arm_divergence was given no arms; give a file with request, cot and response for each.")
    read = {arm: read_training_rows(Path(path), check_answers=False) for arm, path in files.items()}
    sample = sampled(read, n, seed)
    with_cot = {arm: [row for row in rows if row.cot] for arm, rows in sample.items()}
    for arm, rows in with_cot.items():
        if not rows:
            raise RimLensError(f"The arm {arm} has no CoT in {files[arm]}; give rows with a cot.")
    count, tables, sentences, about = counter(tokenizer), [], [], []
    for arm, rows in with_cot.items():
        annotation = annotate_reasoning([row.cot for row in rows], annotator, problems=[row.request for row in rows])
        tables.append(annotation.table.assign(arm=arm))
        patterned = annotation.sentences[annotation.sentences["label"] != NONE]
        sentences.append(patterned.assign(arm=arm))
        about.append(arm_row(arm, rows, len(sample[arm]) - len(rows), count, seed))
    pairs = [
        compared(first, second, with_cot, count, annotator, base, seed) for first, second in combinations(with_cot, 2)
    ]
    return ArmDivergence(
        manifest=Manifest.collect(base, seed=seed, n=n, files={arm: str(path) for arm, path in files.items()}),
        table=arm_first(pd.concat(tables, ignore_index=True)),
        arms=pd.DataFrame(about),
        divergence=pd.concat(pairs, ignore_index=True) if pairs else pd.DataFrame(),
        sentences=arm_first(pd.concat(sentences, ignore_index=True)),
        annotator=annotation.annotator,
    )


def sampled(arms: Arms, n: int | None, seed: int) -> Arms:
    """The rows of n problems; of all arms the same ones, so that problems which arms share stay shared."""
    requests = list(dict.fromkeys(row.request for rows in arms.values() for row in rows))
    if n is None or n >= len(requests):
        return arms
    chosen = set(random.Random(seed).sample(requests, n))
    return {arm: [row for row in rows if row.request in chosen] for arm, rows in arms.items()}


def arm_row(arm: str, rows: Sequence[TrainingRow], n_without: int, count: Count, seed: int) -> dict[str, Any]:
    """CoTs of an arm: their number, length, and how many reach the response's number."""
    lengths = pd.Series([count(row.cot) for row in rows], dtype=float).to_numpy()
    low, high = bootstrap_mean(lengths, seed=seed)
    stated = [row for row in rows if has_number(row.response)]
    agree = sum(is_correct(row.cot, final_answer(row.response)) for row in stated)
    agree_low, agree_high = wilson(agree, len(stated))
    return {
        "arm": arm,
        "n_cots": len(rows),
        "without_cot": n_without,
        "tokens": lengths.mean(),
        "tokens_low": low,
        "tokens_high": high,
        "agree": agree,
        "stated": len(stated),
        "agree_low": agree_low,
        "agree_high": agree_high,
    }


def compared(
    first: str,
    second: str,
    arms: Arms,
    count: Count,
    annotator: Annotator | None,
    base: LensModel | None,
    seed: int,
) -> pd.DataFrame:
    """The divergence report of two arms on the problems they share; empty where these are too few."""
    one, two = numbered(arms[first]), numbered(arms[second])
    shared = [key for key in one if key in two]
    if len(shared) < MIN_SHARED:
        return pd.DataFrame()
    frame = pd.DataFrame({"problem": [request for request, _ in shared]})
    for side, rows in (("target", one), ("control", two)):
        frame[side] = [rows[key].cot for key in shared]
        frame[f"{side}_tokens"] = [count(text) for text in frame[side]]
        frame[f"{side}_answer"] = [final_answer(rows[key].response) for key in shared]
        add_side(frame, side, annotator, base)
    frame["overlap"] = [overlap(a, b) for a, b in zip(frame["target"], frame["control"], strict=True)]
    report = divergence(frame, seed).rename(columns={"target": "first_mean", "control": "second_mean"})
    report["measure"] = report["measure"].replace("word overlap of target and control", "word overlap of both")
    return pd.concat([report, same_answer(frame)], ignore_index=True).assign(first=first, second=second)


def numbered(rows: Sequence[TrainingRow]) -> dict[tuple[str, int], TrainingRow]:
    """Rows by their request and how often it came before."""
    counts: Counter[str] = Counter()
    names = {}
    for row in rows:
        names[row.request, counts[row.request]] = row
        counts[row.request] += 1
    return names


def same_answer(frame: pd.DataFrame) -> pd.DataFrame:
    """Share of problems to which both arms give the same number, of those with one in both."""
    pairs = [
        (a, b)
        for a, b in zip(frame["target_answer"], frame["control_answer"], strict=True)
        if has_number(a) and has_number(b)
    ]
    same = sum(is_correct(a, b) for a, b in pairs)
    low, high = wilson(same, len(pairs))
    share = same / len(pairs) if pairs else float("nan")
    return pd.DataFrame(
        [{"measure": "same answer in both", "first_mean": share, "low": low, "high": high, "n": len(pairs)}]
    )


def arm_first(table: pd.DataFrame) -> pd.DataFrame:
    """The table with its arm in front."""
    return table[["arm", *(name for name in table if name != "arm")]]
