"""Section on the sentences of CoTs: which of them refusal hangs on, and a few CoTs to read."""

from rim_lens.inference_time.cot_importance import EFFECTS, CotImportance
from rim_lens.plots.cot import WORDS
from rim_lens.plots.cot_html import cot_title, shaded_cot
from rim_lens.plots.style import interval, number
from rim_lens.report.blocks import Block, Fragment, Grid, Section, Words
from rim_lens.report.wording import clearly

SHOWN_COTS = 4


def section(anchor: str, importance: CotImportance) -> Section:
    """What hiding each third does on average; CoTs with their sentences shaded."""
    summary = importance.summary
    sentences = []
    for _, row in summary[summary["effect"] == "hidden"].iterrows():
        does = "changes" if clearly(row["low"], row["high"]) else "does not clearly change"
        sentences.append(
            f"Hiding a sentence of the {row['third']} {does} the refusal score: {number(row['mean'], sign=True)} nats "
            f"{interval(row['low'], row['high'])}, n = {row['n']} CoTs."
        )
    blocks: list[Block] = [Words(importance.caption())]
    for chat in range(min(SHOWN_COTS, len(importance.scores))):
        title, caption = cot_title(importance, chat, "hidden")
        blocks.append(Fragment(title, caption, shaded_cot(importance, chat)))
    cells = [
        [
            row["third"],
            WORDS[row["effect"]],
            f"{number(row['mean'], sign=True)} {interval(row['low'], row['high'])}",
            f"{row['n']}",
        ]
        for _, row in summary.sort_values("effect", key=lambda one: one.map(EFFECTS.index), kind="stable").iterrows()
    ]
    blocks.append(
        Grid("Effects by third of the CoT", ["part of the CoT", "sentence", "mean effect (nats)", "n"], cells)
    )
    return Section(anchor, "Which sentences of the thought refusal hangs on", sentences, blocks)
