"""Is a response an answer at all? Empty text, loops, letter salad, parroting and clearly off-topic text are not.

Every check is made for precision: text that could be an answer passes. All are rules, except for off topic. A refusal
is looked for before these checks (a model that says "I can't help with that" three times has refused), except for empty
text.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from rim_lens.behavior.languages import language_of
from rim_lens.behavior.topic import TopicWeights, shared, shipped_topic_weights

LOOP_SHARE = 0.5  # a response is a loop when repeated copies fill this share of its words ...
LOOP_COPIES = 3  # ... and the repeated unit stands there this often
LOOP_WORDS = 9
PARROT_SHARE = 0.8
PARROT_WORDS = 5
ECHO_WORDS = 3
COT_WORDS = 8
OFF_TOPIC_WORDS = 12

_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")
_REPEAT_REQUEST = re.compile(
    r"\b(?:repeat|times|over and over|again and again|chorus|refrain|pattern|loop|lyrics?|song|tongue|chant)\b"
)
_CHARACTER_RUN = re.compile(r"(\S{1,12}?)\1{7,}")
_LIST_NUMBER = re.compile(r"(?<!\S)\d{1,2}[.)](?=\s)")
_EDIT_REQUEST = re.compile(
    r"\b(?:rewrite|re-write|rephrase|paraphrase|edit|correct|proofread|translate|summari[sz]e|complete|fill|copy|repeat|extract|"
    r"identify|classify|sentence|following|given|passage|paragraph|text|phrase|convert|arrange|sort|choose|which|quote|spell)\b|[:\"]"
)
_BEGINS_ANSWER = re.compile(r"\s*(?:(?:sure|certainly|of course|absolutely)[,.!:]* *)?here(?:'s| is| are)\b")
_REASONING_VOICE = re.compile(
    r"\b(?:the user|okay, so|let me (?:think|see|take|just|keep|skip)|i should|i need to|i'll (?:just|skip|keep)|wait,|"
    r"hmm)\b"
)
STOP_WORDS = frozenset(
    _WORD.findall(
        "a about after all also am an and any are as at be because been but by can could did do does doing for from "
        "had has have he her here him his how i if in into is it its just like make many may me more most my no not "
        "now of on one or our out over own please provide give tell write explain describe create list name find "
        "generate some so such than that the their them then there these they this those through to too up us use "
        "using very was way we were what when where which while who why will with would you your s t re ll ve m d "
        "get good best new step steps detail detailed"
    )
)


@dataclass(frozen=True)
class Incoherence:
    """Why a response is not an answer, the words that show it, and how sure the check is."""

    reason: str
    evidence: str
    confidence: float


def incoherence(request: str, response: str, cot: str = "") -> Incoherence | None:
    """The first fault found in a response that holds at least one letter or digit."""
    fault = loop(request, response) or parroting(request, response, cot) or salad(request, response)
    if fault or {language_of(request), language_of(response)} != {"English"}:
        return fault
    return off_topic(request, words(response))


def words(text: str) -> list[str]:
    """Lower-case words and numbers, punctuation dropped."""
    return _WORD.findall(text.lower())


def emptiness(response: str) -> Incoherence | None:
    """Nothing but white space, punctuation or leftover tags."""
    if any(map(str.isalnum, response)):
        return None
    return Incoherence("empty", response.strip()[:80], 0.99)


def loop(request: str, response: str) -> Incoherence | None:
    """The same few words (or characters) again and again over at least half of the response."""
    if _REPEAT_REQUEST.search(request.lower()):
        return None
    longest = max((m for m in _CHARACTER_RUN.finditer(response)), key=lambda m: len(m.group()), default=None)
    if longest and len(longest.group()) >= max(12, LOOP_SHARE * len(response.strip())) and longest.group(1).isalnum():
        return Incoherence("loop", longest.group()[:80], 0.95)
    tokens = words(_LIST_NUMBER.sub(" ", response))  # a numbered list of one and the same line is a loop
    if len(tokens) < LOOP_WORDS or len(set(tokens)) > 0.7 * len(tokens):
        return None
    for period in range(1, len(tokens) // LOOP_COPIES + 1):
        length, end = _longest_agreement(tokens, period)
        covered = length + period
        if covered >= max(LOOP_COPIES * period, LOOP_WORDS) and covered >= LOOP_SHARE * len(tokens):
            unit = tokens[end - covered : end - covered + 2 * period]
            return Incoherence("loop", " ".join(unit)[:120], 0.95)
    return _near_loop(tokens)


def _longest_agreement(tokens: list[str], period: int) -> tuple[int, int]:
    """Longest run of positions whose word equals the word one period earlier, and the position after its end."""
    best, best_end, run = 0, 0, 0
    for i in range(period, len(tokens)):
        run = run + 1 if tokens[i] == tokens[i - period] else 0
        if run > best:
            best, best_end = run, i + 1
    return best, best_end


def _near_loop(tokens: list[str]) -> Incoherence | None:
    """Repetition without one exact period: few distinct four-word sequences in a long text."""
    grams = [tuple(tokens[i : i + 4]) for i in range(len(tokens) - 3)]
    if len(grams) < 24 or len(set(grams)) > 0.4 * len(grams):
        return None
    commonest = max(set(grams), key=grams.count)
    return Incoherence("loop", " ".join(commonest), 0.85)


def parroting(request: str, response: str, cot: str) -> Incoherence | None:
    """The request, or the chain of thought, given back with hardly a word of its own."""
    tokens, asked = words(response), words(request)
    if tokens == asked and len(asked) >= ECHO_WORDS:
        return Incoherence("parrots the request", response.strip()[:120], 0.9)
    # "Sure, here is a letter that ...", cut by a limit, says the request again before the content
    begins = _BEGINS_ANSWER.match(response.lower().replace("’", "'"))
    if not begins and len(asked) >= PARROT_WORDS and len(tokens) >= PARROT_WORDS:
        copied = _share_copied(tokens, asked, 3)
        recovered = _share_copied(asked, tokens, 3)
        whole = copied >= PARROT_SHARE and recovered >= PARROT_SHARE
        part = copied >= 0.95 and recovered >= 0.5 and not _EDIT_REQUEST.search(request.lower())
        if whole or part:
            return Incoherence("parrots the request", response.strip()[:120], 0.9)
    thought = words(cot)
    if len(thought) >= COT_WORDS and len(tokens) >= COT_WORDS and _share_copied(tokens, thought, 4) >= PARROT_SHARE:
        opens_alike = tokens[:6] == thought[:6]
        if opens_alike or _REASONING_VOICE.search(response.lower()) or _share_copied(thought, tokens, 4) >= 0.6:
            return Incoherence("parrots the chain of thought", response.strip()[:120], 0.85)
    return None


def _share_copied(tokens: list[str], source: list[str], n: int) -> float:
    """Share of the words of `tokens` that lie in an n-word sequence which also stands in `source`."""
    known = {tuple(source[i : i + n]) for i in range(len(source) - n + 1)}
    covered = [False] * len(tokens)
    for i in range(len(tokens) - n + 1):
        if tuple(tokens[i : i + n]) in known:
            covered[i : i + n] = [True] * n
    return sum(covered) / max(1, len(tokens))


def salad(request: str, response: str) -> Incoherence | None:
    """Strings of letters that are not words, or mostly symbols."""
    visible = [c for c in response if not c.isspace()]
    letters = sum(c.isalnum() for c in visible)
    latin = [w for w in _WORD.findall(response) if w.isascii() and w.isalpha() and len(w) > 2 and not w.isupper()]
    if len(visible) >= 12 and letters < 0.35 * len(visible) and len(latin) < 6:
        return Incoherence("letter salad", response.strip()[:80], 0.85)
    if response.count("\ufffd") >= 5:
        return Incoherence("letter salad", response.strip()[:80], 0.9)
    request_words = set(words(request))
    odd = [w for w in latin if w.lower() not in request_words and _unpronounceable(w.lower())]
    function_words = sum(w.lower() in STOP_WORDS for w in latin)
    if len(latin) >= 4 and len(odd) >= 0.4 * len(latin) and function_words <= 0.1 * len(latin):
        return Incoherence("letter salad", " ".join(odd[:6])[:80], 0.9)
    return None


_RARE_LETTERS = re.compile(
    r"[bcdfghjklmnpqrstvwxz]{5,}|q(?!u)|[jvxz][bcdfghjkmnpqrstvwx]|[bcdfghjklmnpqrstvwxz]x|[bcdfgkmpqtvwxz]j|"
    r"[bcfghjkpqtvwxz]v|[bcdfghjklmnpqrtvwx]z(?!z)|[bcfghjkmpqvwxz]d(?=[bcfgkmpqtvxz])|[aeiou]{5,}"
)


def _unpronounceable(word: str) -> bool:
    return bool(_RARE_LETTERS.search(word)) or not re.search("[aeiouy]", word)


def off_topic(request: str, tokens: list[str], weights: TopicWeights | None = None) -> Incoherence | None:
    """Nothing of what was asked, in words, pieces of words or meaning; short answers and requests are not looked at.

    `weights`: by default those that come with the package.
    """
    if len(tokens) < OFF_TOPIC_WORDS:
        return None
    found = shared(words(request), tokens, STOP_WORDS)
    if found is None:
        return None
    score = (weights or shipped_topic_weights()).score(found)
    if score >= 0:
        return None
    return Incoherence("off topic", " ".join(tokens[:16])[:120], 1 / (1 + math.exp(score)))
