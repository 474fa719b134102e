"""The annotator that needs no model: a sentence has a pattern where a rule says so and no veto takes it back.

Precision comes before recall: a share of pattern sentences measured with it is a lower bound. Where rules of several patterns
match, the one whose rules match most decides, then the order of `marker_rules`. Figures on hand-labelled sentences:
docs/patterns.md.
"""

from collections import Counter
from collections.abc import Sequence

from rim_lens.behavior.sentences import Sentence
from rim_lens.patterns.labels import SentenceLabel
from rim_lens.patterns.marker_rules import ALWAYS_VETO, RULES
from rim_lens.patterns.taxonomy import NONE


class TextAnnotator:
    """Labels sentences by their words; the evidence is the words that a rule matched."""

    name = "text rules"

    def __call__(
        self, cots: Sequence[Sequence[Sentence]], problems: Sequence[str] | None = None
    ) -> list[list[SentenceLabel]]:
        """One label a sentence of every CoT; problems are not looked at."""
        return [[labelled(sentence) for sentence in sentences] for sentences in cots]


def labelled(sentence: Sentence) -> SentenceLabel:
    """The label of one sentence, with the place of its evidence in the CoT."""
    text = sentence.text
    if ALWAYS_VETO.search(text):
        return SentenceLabel(NONE, sentence.start, sentence.start)
    hits = [
        (rule.pattern, found)
        for rule in RULES
        if (found := rule.says.search(text)) and not (rule.veto and rule.veto.search(text))
    ]
    if not hits:
        return SentenceLabel(NONE, sentence.start, sentence.start)
    votes = Counter(pattern for pattern, _ in hits)
    pattern = max(votes, key=lambda name: votes[name])  # of equals the first in the order of rules
    found = next(found for name, found in hits if name == pattern)
    return SentenceLabel(pattern, sentence.start + found.start(), sentence.start + found.end())
