"""Numbers as sentences: rates with interval and count, and differences with what they allow one to say."""

import math

import pandas as pd

from rim_lens.plots import style
from rim_lens.plots.style import interval, p_value, percent


def rate(row: pd.Series) -> str:
    """84.4 % [68.2, 93.1], 27 of 32."""
    return f"{percent(row['rate'])} {interval(row['low'], row['high'], '%')}, {row['k']} of {row['n']}"


def points(difference: float, low: float, high: float, p: float | None = None) -> str:
    """−21.9 points [−38.0, −5.1], p = 0.03."""
    return ", ".join(part for part in (style.points(difference, low, high), p_value(p)) if part)


def corrected(difference: float, low: float, high: float, q: float) -> str:
    """−21.9 points [−38.0, −5.1], q = 0.03: the q decides where several comparisons are made."""
    return f"{style.points(difference, low, high)}, q\u00a0=\u00a0{q:.2g}"


def clearly(low: float, high: float, p: float | None = None, alpha: float = 0.05) -> bool:
    """Whether an interval leaves out zero and its test, if there is one, is below alpha."""
    tested = p is None or math.isnan(p) or p < alpha
    return tested and (low > 0 or high < 0)


def counted(n: int, one: str, many: str) -> str:
    """1 candidate, 2 candidates."""
    return f"{n} {one if n == 1 else many}"


def joined(parts: list[str]) -> str:
    """a; b; and c."""
    return parts[0] if len(parts) == 1 else f"{'; '.join(parts[:-1])}; and {parts[-1]}"
