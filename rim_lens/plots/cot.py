"""A CoT with its sentences shaded by what each of them does to refusal, and the heads that look at few sentences."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import plotly.graph_objects as go

from rim_lens.plots import style
from rim_lens.plots.head_map import head_map
from rim_lens.units import Head

if TYPE_CHECKING:
    import pandas as pd

    from rim_lens.inference_time.cot_importance import CotImportance
    from rim_lens.inference_time.receiver_heads import ReceiverHeads

WORDS = {
    "hidden": "hidden from attention",
    "cut": "CoT cut off before it",
    "brings": "CoT with it against without it and what follows",
    "resampled": "written anew from it",
}
WIDTH = 80  # characters of a line of a sentence


def shaded_sentences(importance: CotImportance, chat: int = 0, effect: str = "hidden") -> go.Figure:
    """The sentences of one CoT from top to bottom, shaded by one effect on the refusal score."""
    rows = importance.table[importance.table["chat"] == chat].reset_index(drop=True)
    own = importance.scores.iloc[chat]
    lines = [textwrap.wrap(text, WIDTH) or [""] for text in rows["text"]]
    figure = style.blank(
        f"Refusal score when a sentence is {WORDS[effect]}"
        if effect != "brings"
        else f"Refusal score: {WORDS[effect]}",
        f"n = {len(rows)} sentences of one CoT of {len(importance.scores)}; score {style.number(own['score'])} nats; "
        f"{own['request'][:80]}",
        coloraxis=style.diverging(rows[effect].to_numpy(float), "change of the refusal score (nats)"),
        xaxis={"visible": False, "fixedrange": True, "range": [-0.5, 0.5]},
        yaxis={"tickvals": list(rows.index), "ticktext": [str(i + 1) for i in rows.index], "autorange": "reversed"}
        | {"showgrid": False, "zeroline": False},
        height=120 + 18 * sum(map(len, lines)) + 12 * len(lines),
    )
    figure.add_heatmap(
        z=rows[[effect]].to_numpy(float),
        x=[0],
        text=[["<br>".join(map(style.text, line))] for line in lines],
        customdata=[[sentence_facts(row)] for _, row in rows.iterrows()],
        texttemplate="%{text}",
        textfont={"size": 12},
        coloraxis="coloraxis",
        hovertemplate="%{customdata}<extra></extra>",
        hoverongaps=False,
        ygap=2,
    )
    return figure


def sentence_facts(row: pd.Series) -> str:
    """What changes when something is done to one sentence, as escaped HTML."""
    lines = [f"<b>sentence {row['sentence'] + 1}</b>, {row['n_tokens']} tokens"]
    lines += [f"{words}: {style.number(row[name], sign=True)} nats" for name, words in WORDS.items()]
    if row["n_other"]:
        lines.append(f"{row['n_other']} other continuations, {row['n_same']} that keep it")
    if isinstance(row.get("answer_cut"), str):
        lines.append(f"answer with the CoT cut off before it: {style.text(row['answer_cut'])}")
    return "<br>".join(lines)


def receiver_map(receivers: ReceiverHeads) -> go.Figure:
    """Kurtosis over sentences of the attention that they receive from later ones, head by head."""
    hover = [
        f"<b>{row['name']}</b><br>kurtosis {style.number(row['kurtosis'], sign=True)} "
        f"{style.interval(row['low'], row['high'])}, q = {row['q']:.2g}<br>"
        f"without control for distance {style.number(row['kurtosis_uncontrolled'], sign=True)}"
        for _, row in receivers.table.iterrows()
    ]
    return head_map(
        receivers.table,
        "kurtosis",
        hover,
        title="Heads whose attention few sentences of the thought receive",
        caption=f"n = {receivers.table['n'].iloc[0]} CoTs, {receivers.n_sentences} sentences; distance controlled for; "
        "rings: q < 0.05",
        unit="excess kurtosis over sentences",
        marked=Head.from_table(receivers.table[receivers.table["q"] < 0.05]),
    )
