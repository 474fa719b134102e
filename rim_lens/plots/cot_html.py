"""A CoT as text, its sentences shaded by what each does to refusal; click one to read what changes.

HTML without script and with its styles inside, so that a page and a notebook show the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from markupsafe import Markup

from rim_lens.plots import style
from rim_lens.plots.cot import WORDS, sentence_facts

if TYPE_CHECKING:
    from rim_lens.inference_time.cot_importance import CotImportance

MORE, LESS, DEEPEST = "213, 94, 0", "0, 114, 178", 0.55  # refusal rises, falls; opacity of the largest effect


def shaded_cot(importance: CotImportance, chat: int = 0, effect: str = "hidden") -> Markup:
    """One `<details>` per sentence of a chat's CoT, from first to last."""
    rows = importance.table[importance.table["chat"] == chat]
    largest = float(rows[effect].abs().max()) or 1.0
    sentences = [
        Markup(
            '<details style="margin:.1rem 0"><summary style="background:rgba({}, {:.3f});padding:.1em">{}</summary>'
            '<p style="margin:.2rem 1.2rem">{}</p></details>'
        ).format(
            MORE if row[effect] > 0 else LESS,
            DEEPEST * abs(row[effect]) / largest if row[effect] == row[effect] else 0.0,
            row["text"],
            Markup(sentence_facts(row)),  # escaped there
        )
        for _, row in rows.iterrows()
    ]
    return Markup("").join(sentences)


def cot_title(importance: CotImportance, chat: int, effect: str) -> tuple[str, str]:
    """Title and caption of the shaded CoT, plain text."""
    own, rows = importance.scores.iloc[chat], importance.table[importance.table["chat"] == chat]
    largest = style.number(float(rows[effect].abs().max()))
    return (
        f"One CoT, shaded by effect: {WORDS[effect]}",
        f"n = {len(rows)} sentences; refusal score {style.number(own['score'])} nats; vermilion: it rises, blue: "
        f"it falls, the deepest by {largest} nats; click a sentence to read what changes. "
        f"Request: {own['request'][:80]}",
    )
