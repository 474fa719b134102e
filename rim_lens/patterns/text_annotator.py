"""The annotator that needs no model: a sentence has a pattern where a rule says so and no veto takes it back.

Precision comes before recall: a share of pattern sentences measured with it is a lower bound. It does not serve for
thoughts that reasoning models write by themselves (`TextAnnotator.limits`); `LLMAnnotator` is the way there. Where
rules of several patterns match, the one whose rules match most decides, then the order of `marker_rules`. Figures on
hand-labelled sentences: docs/patterns.md.
"""

from collections import Counter
from collections.abc import Sequence

from rim_lens.behavior.sentences import Sentence
from rim_lens.patterns.labels import SentenceLabel
from rim_lens.patterns.marker_rules import ALWAYS_VETO, RULES
from rim_lens.patterns.taxonomy import NONE


class TextAnnotator:
    """Labels sentences by their words; the evidence is the words that a rule matched.

    `limits` are its errors on 30 thoughts of the DeepSeek-R1 family that no rule was developed on, against two readers
    (κ = 0.72 between them); `python -m benchmarks.native_thoughts` computes the figures anew.
    """

    name = "text rules"
    limits = (
        "On native thoughts of reasoning models the text rules found 0 of 5 pattern sentences [0 %, 43 %] and marked "
        "0 of 678 others [0 %, 0.6 %], so a share near 0 says nothing there; use LLMAnnotator for native thoughts."
    )

    def __call__(
        self, cots: Sequence[Sequence[Sentence]], problems: Sequence[str] | None = None
    ) -> list[list[SentenceLabel]]:
        """One label per sentence of every CoT; problems are not looked at."""
        return [[labelled(sentence) for sentence in sentences] for sentences in cots]


def labelled(sentence: Sentence) -> SentenceLabel:
    """The label of one sentence, with the place of its evidence in the CoT."""
    text = sentence.text
    if ALWAYS_VETO.search(text):
        return SentenceLabel(NONE, sentence.start, sentence.start)
    hits = [
        (rule.pattern, match)
        for rule in RULES
        if (match := rule.says.search(text)) and not (rule.veto and rule.veto.search(text))
    ]
    if not hits:
        return SentenceLabel(NONE, sentence.start, sentence.start)
    votes = Counter(pattern for pattern, _ in hits)
    pattern = max(votes, key=lambda name: votes[name])  # of equals the first in the order of rules
    match = next(match for name, match in hits if name == pattern)
    return SentenceLabel(pattern, sentence.start + match.start(), sentence.start + match.end())
