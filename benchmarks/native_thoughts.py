"""Does the text annotator find patterns in thoughts that reasoning models wrote themselves?

    python -m benchmarks.native_thoughts

The thoughts are those of `outputs_dev.jsonl` (DeepSeek-R1 family), which lie beside the repository. Two readers
labelled all of their sentences, each without the other's labels and without the annotator's
(`tests/pattern_data/native.tsv` lists what either did not label `none`). Every second thought served for development;
the others measure. A sentence has a pattern where both readers name one.
"""

import json
from pathlib import Path

import pandas as pd

from rim_lens.patterns import annotate_reasoning
from rim_lens.patterns.agreement import Agreement, agreement_of, label_codes
from rim_lens.patterns.taxonomy import NONE
from rim_lens.stats import wilson

ROOT = Path(__file__).parents[1]
ANSWERS = ROOT.parent / "shared" / "data" / "outputs_dev.jsonl"
READERS = ["first_reader", "second_reader"]


def labelled_sentences() -> pd.DataFrame:
    """One row per sentence.

    Thought, sentence, both readers' labels, the annotator's, and whether the thought measures.
    """
    rows = [json.loads(line) for line in ANSWERS.read_text(encoding="utf-8").splitlines()]
    thoughts = [row for row in rows if (row.get("cot") or "").strip()]
    sentences = annotate_reasoning([row["cot"] for row in thoughts]).sentences
    sentences = sentences.assign(
        thought=[thoughts[i]["id"] for i in sentences["cot"]], measures=sentences["cot"] % 2 == 1
    )
    hand = pd.read_csv(ROOT / "tests" / "pattern_data" / "native.tsv", sep="\t", dtype={"thought": str})
    ids = sentences["thought"].astype(str)
    joined = sentences.assign(thought=ids).merge(hand, on=["thought", "sentence"], how="left", validate="one_to_one")
    return joined.fillna(dict.fromkeys(READERS, NONE))


def readers_agreement(sentences: pd.DataFrame) -> Agreement:
    """Cohen's kappa of the two readers over all sentences, resampled by thought."""
    first, second = (label_codes(list(sentences[reader])) for reader in READERS)
    return agreement_of(first, second, sentences["cot"].to_numpy(), ("first reader", "second reader"))


def error_table(sentences: pd.DataFrame) -> pd.DataFrame:
    """Per half.

    Sentences, how many both readers call a pattern, how many are marked, marked rightly, and with intervals.
    """
    rows = []
    for name, part in (
        ("development", sentences[~sentences["measures"]]),
        ("measurement", sentences[sentences["measures"]]),
    ):
        true = (part[READERS] != NONE).all(axis=1)
        marked = part["label"] != NONE
        right = int((true & marked).sum())
        row = {"half": name, "thoughts": part["cot"].nunique(), "sentences": len(part), "patterns": int(true.sum())}
        row |= {"marked": int(marked.sum()), "right": right}
        for figure, n in (("precision", int(marked.sum())), ("recall", int(true.sum()))):
            low, high = wilson(right, n)
            row |= {figure: right / n if n else float("nan"), f"{figure}_low": low, f"{figure}_high": high}
        false = int((marked & ~true).sum())
        row |= {"false": false, "false_high": wilson(false, int((~true).sum())).high}
        rows.append(row)
    return pd.DataFrame(rows)


if __name__ == "__main__":
    table = labelled_sentences()
    print(readers_agreement(table).caption())
    print(pd.crosstab(table["first_reader"], table["second_reader"]))
    print(error_table(table).to_string(index=False))
