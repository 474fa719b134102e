"""Maths CoT in three arms that differ only in their filler phrases; `rim_lens.patterns.arms` writes them.

Every arm takes the same GSM8K problems in the same order with the same rationale and final answer.
"""

from __future__ import annotations

import re

from rim_lens.patterns.arms import ARMS, PLACES, ArmWriter
from rim_lens.patterns.taxonomy import NAMES as PATTERNS

__all__ = ["ARMS", "PATTERNS", "PLACES", "ArmWriter", "plain_rationale"]


def plain_rationale(answer: str) -> tuple[list[str], str]:
    """A GSM8K answer as sentences without calculator marks, and the final number."""
    rationale, final = answer.split("####")
    lines = [line.strip() for line in re.sub(r"<<[^>]*>>", "", rationale).splitlines() if line.strip()]
    return [line if line.endswith((".", "!", "?")) else f"{line}." for line in lines], final.strip()
