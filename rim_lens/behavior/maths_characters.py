"""Characters of mathematics: Unicode minus signs, spaces, digits and operators become LaTeX's, digit groups are joined.

1,234,567.8    1 234 567 (thin, no-break or at least two plain spaces)    12,34,567    1.234.567,89
"""

import re

CHARACTERS = str.maketrans(
    {
        **dict.fromkeys("\u2212\u2010\u2011\u2012\u2013\u2014\ufe63\uff0d", "-"),
        **dict.fromkeys(
            "\u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000", " "
        ),
        **dict.fromkeys("\u200b\u2060\ufeff\u200e\u200f", ""),
        **{chr(0xFF01 + i): chr(0x21 + i) for i in range(94) if i != 0x0C},  # full-width forms
        **dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹", (f"^{i}" for i in range(10)), strict=True)),
        **dict(zip("₀₁₂₃₄₅₆₇₈₉", (f"_{i}" for i in range(10)), strict=True)),
        **{"½": " 1/2", "⅓": " 1/3", "⅔": " 2/3", "¼": " 1/4", "¾": " 3/4", "⅕": " 1/5", "⅛": " 1/8"},
        **{
            "×": r"\times ",
            "·": r"\cdot ",
            "⋅": r"\cdot ",
            "÷": r"\div ",
            "√": r"\sqrt ",
            "π": r"\pi ",
            "∞": r"\infty ",
        },
        **{
            "≤": r"\le ",
            "≥": r"\ge ",
            "≠": r"\ne ",
            "±": r"\pm ",
            "°": r"^\circ ",
            "∪": r"\cup ",
            "∩": r"\cap ",
            "∈": r"\in ",
        },
        **{"∅": r"\emptyset ", "θ": r"\theta ", "⁄": "/", "∕": "/", "’": "'", "‘": "'", "。": ". ", "、": ", "},
    }
)
GROUPS = (
    (re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])"), ","),  # 1,234,567.8
    (re.compile(r"(?<![\d.,])\d{1,3}(?: \d{3}){2,}(?![\d ])"), " "),  # 1 234 567
    (re.compile(r"(?<![\d.,])\d{1,2}(?:,\d{2})+,\d{3}(?![\d,])"), ","),  # 12,34,567
)
EUROPEAN = re.compile(r"(?<![\d.,])(\d{1,3}(?:\.\d{3})+),(\d+)(?![\d,.])|(?<![\d.,])(\d{1,3}(?:\.\d{3}){2,})(?![\d,.])")
SPACES = re.compile("(?<=\\d)[\u00a0\u2002-\u200a\u202f\u205f](?=\\d{3}(?!\\d))")  # between groups of digits


def plain(text: str) -> str:
    """`text` with LaTeX's characters in place of Unicode's, and digit groups joined."""
    text = SPACES.sub("", text).translate(CHARACTERS).replace("{,}", ",").replace(r"\!", "").replace("{:}", ":")
    text = re.sub(r"(?<=\d),?\\[,;: ](?=\d{3})|(?<=\d)~(?=\d{3})", ",", text)
    text = EUROPEAN.sub(lambda m: f"{m[1].replace('.', '')}.{m[2]}" if m[1] else m[3].replace(".", ""), text)
    for pattern, between in GROUPS:
        text = pattern.sub(lambda m, between=between: m[0].replace(between, ""), text)  # type: ignore[misc]
    return text
