"""The text annotator on thoughts of real reasoning models: hand labels of two readers, kept here without the texts."""

import pytest
from made_patterns import LAZY

from benchmarks import native_thoughts
from rim_lens.patterns import annotate_reasoning
from rim_lens.patterns.text_annotator import TextAnnotator

HEDGES = [
    "I guess it's because the plates aren't moving smoothly.",
    "I should also remember that most countries share a border with others, but many don't recognize it.",
    "I should first address the legal issues, then give advice on security rather than on locks.",
]


def test_hedges_and_plans_of_real_thoughts_have_no_pattern():
    assert set(annotate_reasoning(HEDGES).labels()) == {"none"}
    assert "none" not in annotate_reasoning([LAZY]).labels()


@pytest.mark.skipif(not native_thoughts.ANSWERS.exists(), reason="the stored thoughts are not beside the repository")
def test_limits_say_what_the_readers_labels_give():
    sentences = native_thoughts.labelled_sentences()
    row = native_thoughts.error_table(sentences).set_index("half").astype(object).loc["measurement"]
    assert f"found {row['right']} of {row['patterns']} pattern sentences" in TextAnnotator.limits
    assert f"[0 %, {100 * row['recall_high']:.0f} %]" in TextAnnotator.limits
    assert f"marked {row['false']} of {row['sentences'] - row['patterns']} others" in TextAnnotator.limits.replace(
        "  ", " "
    )
    assert f"[0 %, {100 * row['false_high']:.1f} %]" in TextAnnotator.limits
    assert round(native_thoughts.readers_agreement(sentences).kappa, 2) == 0.72
