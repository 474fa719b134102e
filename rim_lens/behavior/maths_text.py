r"""Mathematical text as math-verify reads it: the part of an answer with the result, and equality of two texts.

1. Characters: Unicode minus signs, spaces, digits and operators become those of LaTeX; digit groups are joined.
2. The statement: the last `\boxed{}`, else what follows `####` or the last "answer is", else the last bold text that is
   mathematics, else the last mathematics in the text. It ends where prose begins, so that units and reasons are left
   out.
3. Comparison: both texts are parsed as LaTeX by math-verify; words ("Evelyn", "even") are compared as words.

math-verify's own time limits use signals, which only a main thread has. Numbers too large to be computed are compared
as texts.
"""

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from rim_lens.behavior.maths_characters import plain

CURRENCY = "$€£¥₹"
BOX = re.compile(r"\\f?boxed\s*\{")
MARK = re.compile(
    r"answers?\b[^.\n]{0,60}?(?:\bis\b|\bare\b|[:=])(?:\s*(?:\bis\b|\bare\b|:))?|answer\s*\n|答案\s*(?:是|为|[:=])",
    re.I,
)
HASHES = re.compile(r"####[^\S\n]*(?=\S)")
BOLD = re.compile(r"\*\*(?=\S)(.+?)(?<=\S)\*\*", re.S)
SPAN = re.compile(
    r"\$\$(?P<a>.+?)\$\$|(?<!\\)\$(?=\S)(?P<b>[^$\n]+?)(?<=\S)(?<!\\)\$(?!\d)|\\\((?P<c>.+?)\\\)|\\\[(?P<d>.+?)\\\]",
    re.S,
)
NUMBER = re.compile(
    r"(?<![\w^_.])(?:(?<![\w)\]}])-\s?)?[$€£¥₹]?(?:\d+ \d+/\d+|\d+:\d\d(?!\d)|(?:\d[\d,]*(?<!,))?(?:\.\d+|(?<=\d))"
    r"(?:[eE][+-]?\d+)?(?:/\d+|_\{?\d+\}?)?)(?:\s?\\?%)?"
)
TOKEN = re.compile(
    r"""(?P<space>\s+|~|\\[ ,;:!]|\\q?quad)
    |(?P<begin>\\begin\s*\{(?P<env>\w+\*?)\}.*?\\end\s*\{(?P=env)\})
    |(?P<text>\\(?:text|mbox|textbf|mathrm|textit|operatorname|mathbf)\s*\{)
    |(?P<command>\\[a-zA-Z]+|\\.)
    |(?P<number>\d+(?:\.\d+)?|\.\d+)
    |(?P<word>[^\W\d_]+)
    |(?P<sign>[-+*/^_=<>()\[\]{}|&%'!])
    |(?P<stop>[,;:])""",
    re.X | re.S,
)
FUNCTIONS = {"sin", "cos", "tan", "cot", "sec", "csc", "log", "ln", "exp", "sqrt", "pi", "infinity", "arcsin", "arctan"}
UNIT = re.compile(r"(?<=[\d}])\s*(?:[mgshLl](?:\s*/\s*[smh])?)(?:\s*\^\s*\{?[23]\}?)?$")
ENORMOUS = re.compile(r"\^\s*\{?\s*-?\d{4,}|\d{3,}\s*!|\^\s*\{[^{}]*\^|\^\s*\{[^{}]*!|!\s*!|\d{400,}")
UNITS = frozenset(
    re.findall(
        r"\w+", "cm mm km ft in yd mi kg mg lb lbs oz hr hrs min sec ml st nd rd th am pm mph kph usd eur dollars cents"
    )
)
WORDS = re.compile(r"[^\W\d_]{2,}")
TEXT = re.compile(r"\\(?:text|mbox|textbf|mathrm|textit|mathbf|operatorname)\s*\{([^{}]*)\}")
WITH_UNIT = re.compile(
    r"(?P<number>(?:[^A-Za-z\\]|\\(?!text|mbox|mathrm)[A-Za-z]+|\\.)*[\d}%])(?:\s+[A-Za-z]{2,}|[\s~\\,]*\\(?:text|mbox|mathrm)).*"
)
CHOICE = re.compile(r"\(?([A-Z])\)?(?![A-Za-z^_=+*/-])")
BASE = re.compile(r"_\s*\{?\s*(\d+)\s*\}?$")
AND = re.compile(r"\s*,?\s*\\text\{\s*,?\s*(?:and|or)\s*\}\s*|\s*,?\s*\b(?:and|or)\b\s*")
LONGEST = 400  # characters of an answer that is read as mathematics


@dataclass(frozen=True)
class Reference:
    """A reference answer, with its words (in lower case) and whether variables occur in it."""

    text: str
    words: frozenset[str] = frozenset()
    has_variables: bool = False


@lru_cache(maxsize=4096)
def reference(answer: str) -> Reference:
    """A reference answer as it is published: without dollars, currency and unit."""
    boxes = boxed(plain(answer))
    text = ", ".join(map(unwrapped, boxes)) if boxes else unwrapped(plain(answer))
    text = without_unit(text)
    bare = TEXT.sub("", text)
    variables = re.sub(r"\\[a-zA-Z]+", "", bare)
    spoken = " ".join([re.sub(r"\\[a-zA-Z]+", " ", bare), *TEXT.findall(text)])
    words = set(WORDS.findall(spoken.lower())) - FUNCTIONS - {"and", "or"}
    return Reference(text.rstrip("."), frozenset(words), bool(re.search(r"[A-Za-z]", variables)))


def without_unit(text: str) -> str:
    """A number without the unit behind it; other text as it is."""
    unit = WITH_UNIT.fullmatch(text.strip())
    if unit is None or not set(WORDS.findall(text.lower())).isdisjoint({"and", "or"}):
        return text.strip()
    return unit["number"].strip()


def states(text: str, answer: str) -> bool:
    """Whether the result that a text states equals the reference answer."""
    return equal(reference(answer).text, final_answer(text, answer))


def final_answer(text: str, answer: str = "") -> str:
    """The part of a text that states its result, in LaTeX; empty where it states none.

    The words of the reference `answer` belong to the result ("Evelyn"); other words end it.
    """
    return next(statements(text, reference(answer)), "")


@lru_cache(maxsize=4096)
def equal(gold: str, stated: str) -> bool:
    """Whether two results are equal: as words, as texts, or as mathematics."""
    if not stated or not gold:
        return False
    if (choice := CHOICE.fullmatch(bare_words(gold))) and (chosen := CHOICE.match(bare_words(stated))):
        return choice[1] == chosen[1]
    if squeezed(gold) == squeezed(stated):
        return True
    bases = [found[1] for one in (gold, stated) if (found := BASE.search(one))]
    if len(set(bases)) == 2 or max(len(gold), len(stated)) > LONGEST or ENORMOUS.search(gold + " " + stated):
        return False
    if (
        any(differ(a, b) for a, b in zip(parsed(gold)[:1], parsed(stated)[:1], strict=False))
        and "%" not in gold + stated
    ):
        return False
    from math_verify import verify

    return bool(verify(list(parsed(gold)), list(parsed(stated)), timeout_seconds=None))


def differ(a: Any, b: Any) -> bool:
    """Whether two expressions plainly have different values, at a fixed point where they have variables.

    Spares sympy's simplification, which takes most of the time, where it would find nothing.
    """
    from sympy import Expr, Rational, Tuple

    if isinstance(a, Tuple) and isinstance(b, Tuple) and len(a) == len(b):
        return any(map(differ, a, b))
    if not (isinstance(a, Expr) and isinstance(b, Expr)) or a.free_symbols != b.free_symbols:
        return False
    point = {
        symbol: Rational(7919 + 104729 * i, 6151)
        for i, symbol in enumerate(sorted(a.free_symbols, key=lambda symbol: str(symbol)))
    }
    try:
        x, y = (complex(one.subs(point).evalf(20)) for one in (a, b))
    except (TypeError, ValueError, OverflowError, ArithmeticError, AttributeError):
        return False
    return abs(x - y) > 1e-4 * max(abs(x), abs(y))


@lru_cache(maxsize=4096)
def parsed(text: str) -> tuple[Any, ...]:
    """What math-verify reads in LaTeX."""
    from math_verify import LatexExtractionConfig, parse

    for name in ("math_verify.parser", "math_verify.grader"):  # they warn at every call without a time limit
        logging.getLogger(name).setLevel(logging.ERROR)
    text = AND.sub(", ", text)
    text = re.sub(r"(?<![\d.])(\d+)\s+(\d+)/(\d+)", r"\1\\frac{\2}{\3}", text)
    if re.fullmatch(r"-?\d{1,3}(?: \d{3})+(?:\.\d+)?", text):
        text = text.replace(" ", "")
    return tuple(parse(f"${text}$", [LatexExtractionConfig()], parsing_timeout=None))


def bare_words(text: str) -> str:
    """`text` without the commands that set it as text."""
    return TEXT.sub(r"\1", text).strip()


def squeezed(text: str) -> str:
    """`text` without spaces, sizes of brackets and, where it is words, case."""
    words = bool(WORDS.search(re.sub(r"\\[a-zA-Z]+", "", text)))
    text = re.sub(r"\\(?:left|right|displaystyle)(?![a-zA-Z])|[\s~]|\\[,;:! ]", "", bare_words(text)).strip(".")
    return text.lower() if words else text


def statements(text: str, gold: Reference) -> Iterator[str]:
    """What can be the stated result, the strongest first."""
    words, text = gold.words, plain(text)
    boxes = boxed(text)
    if boxes:
        parts = [unwrapped(one) for one in boxes]
        yield ", ".join(parts if gold.has_variables else [leading(one, words) or one for one in parts])
        return
    text = re.sub(r"(?<=\d)\*\*(?=\d)", "^", text)
    for mark in (HASHES, MARK):
        for found in reversed(list(mark.finditer(text))):
            rest = text[found.end() :].replace("**", " ").lstrip(" \t\n:*_`>=")
            stated = leading(rest, words, gold.has_variables)
            yield from [stated] if stated else []
            if mark is MARK and not words:
                line = text[found.end() :].partition("\n")[0]
                yield from first_mathematics(line)
    for found in reversed(list(BOLD.finditer(text))):
        whole = found.group(1).strip(" .:")
        stated = leading(whole, words, gold.has_variables)
        if stated and not re.search(r"[^\W\d_]{2}", whole.replace(stated, "")):
            yield stated
            return
    if words and (stated := leading(text.strip(" *_`."), words)):
        yield stated
        return
    text = text.replace("**", " ")
    found_last = last_mathematics(text)
    if found_last:
        yield found_last


def boxed(text: str) -> list[str]:
    """The content of the last box, and of those before it that only "and", "or" or a comma stand between."""
    found: list[tuple[int, int, str]] = []
    for start in BOX.finditer(text):
        end = closing(text, start.end() - 1)
        if not found or start.start() >= found[-1][1]:
            found.append((start.start(), end, text[start.end() : end]))
    contents: list[str] = []
    for number in reversed(range(len(found))):
        contents.insert(0, found[number][2])
        between = text[found[number - 1][1] + 1 : found[number][0]] if number else "end"
        if not re.fullmatch(r"[\s$,;]*(?:\\q?quad|\\text\{)?\s*(?:and|or)?\s*\}?[\s$,;]*", between):
            break
    return contents


def closing(text: str, opening: int) -> int:
    """The index of the brace that closes the one at `opening`; the text's end where none does."""
    depth = 0
    for i in range(opening, len(text)):
        depth += {"{": 1, "}": -1}.get(text[i], 0) if text[i - 1 : i] != "\\" else 0
        if depth == 0:
            return i
    return len(text)


def unwrapped(text: str) -> str:
    """LaTeX without the dollars around it; a currency's dollar is dropped too."""
    text = SPAN.sub(lambda m: next(one for one in m.groups() if one), text)
    return re.sub(rf"\\?[{CURRENCY}]", " ", text).strip()


def leading(text: str, words: frozenset[str] = frozenset(), has_variables: bool = False) -> str:
    """The mathematics that `text` begins with; words other than `words` end it.

    Single letters after a number are units unless the reference has variables.
    """
    text = SPAN.sub(lambda m: "{" + without_unit(next(one for one in m.groups() if one)) + "}", text[: 4 * LONGEST])
    text = re.sub(rf"\\?[{CURRENCY}]", " ", text).strip()
    if words:
        text = re.sub(r"^(?:the|an?)\s+(?=[^\W\d_]{2})", "", text, flags=re.I)
    position = end = 0
    while position < len(text) and (token := TOKEN.match(text, position)):
        kind, stop = token.lastgroup, token.end()
        kind = "begin" if kind == "env" else kind
        if kind == "text":
            stop = closing(text, stop - 1) + 1
            inner = set(re.findall(r"[^\W\d_]+", text[token.end() : stop].lower()))
            if end and re.search(r"\d|[})]", text[:end]) and not inner <= words | {"and", "or"}:
                break  # a unit
            end = stop
        elif kind == "word" and not belongs(text, token, words, begun=bool(end)):
            break
        elif kind in ("number", "sign", "command", "begin") or (kind == "word" and token[0] not in ("and", "or")):
            end = stop
        position = stop
    stated = re.sub(r"[\s([{]+$", "", text[:end]).strip(" .,;:")
    if not has_variables:
        stated = UNIT.sub("", stated)
    stated = stated[1:-1] if stated.startswith("{") and closing(stated, 0) == len(stated) - 1 else stated
    return stated.strip() if re.search(r"[\w\\]", stated) else ""


def belongs(text: str, token: re.Match[str], words: frozenset[str], *, begun: bool) -> bool:
    """Whether a word is part of the mathematics around it."""
    word, after = token[0].lower(), text[token.end() :]
    if word in words or word in FUNCTIONS:
        return True
    if len(word) == 1:
        return word not in "ai" or not re.match(r"\s+[^\W\d_]{2}", after)  # an article
    if re.search(r"\d$", text[: token.start()]):
        return word not in UNITS  # 2xy
    before = text[: token.start()].rstrip().lower()
    if begun and words and re.search(r"\b(?:or|and)$", before):
        return True  # "even or odd" does not state "even"
    return begun and word in ("and", "or") and bool(re.match(r"\s*[-\w\\{(]", after))


def first_mathematics(text: str) -> list[str]:
    """The first formula between dollars or number in a text, as a list of at most one."""
    places = formulas(text)
    return [stated] if places and (stated := leading(text[places[0][0] :])) else []


def last_mathematics(text: str) -> str:
    """The last one."""
    places = formulas(text)
    return leading(text[places[-1][0] : places[-1][1]]) if places else ""


def formulas(text: str) -> list[tuple[int, int]]:
    """Where formulas between dollars, and numbers outside of them, stand."""
    spans = [m.span() for m in SPAN.finditer(text)]
    numbers = [m.span() for m in NUMBER.finditer(text) if re.search(r"\d", m.group())]
    return sorted([*spans, *(one for one in numbers if not any(start <= one[0] < end for start, end in spans))])
