"""Data of the page's linked head views: every head's rows in the tables and its attention to the tokens of a few chats.

Attention weights are kept as unsigned 16-bit shares of 1, chat after chat, [head, token] row by row, in base64: exact
to 0.002 %, and small enough for all heads of a model.
"""

import base64
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from rim_lens.causal.ablation_test import AblationTest
from rim_lens.inference_time.interchange import InterchangeSweep
from rim_lens.inference_time.patching import PatchingSweep
from rim_lens.inference_time.refusal_heads import RefusalHeads
from rim_lens.inference_time.sweep import AblationSweep
from rim_lens.inference_time.token_attention import TokenAttention
from rim_lens.inference_time.trace import RefusalTrace
from rim_lens.plots.attention import contrast_title
from rim_lens.plots.style import interval, number
from rim_lens.plots.sweeps import DIRECTIONS, estimates, quantity
from rim_lens.report.heads import CONTRAST_COLUMNS, TRACE_COLUMNS, contrast_cells, trace_cells
from rim_lens.report.sweeps import effect_cells, effect_columns
from rim_lens.results import Result
from rim_lens.training_time.series_heads import SeriesHeads
from rim_lens.units import Head
from rim_lens.words import condition

CARRIED = 1_000_000  # attention weights on a page, 2.7 MB
WHOLE = 65535  # stands for all of a head's attention
FIRST = (
    AblationSweep,
    AblationTest,
    PatchingSweep,
    InterchangeSweep,
)  # what a head causes stands before what it goes with
Facts = dict[str, Any]


def linked_heads(results: Mapping[str, Result]) -> dict[str, Any] | None:
    """What the page's head views need; None where no result is about single heads."""
    order = sorted(results, key=lambda name: not isinstance(results[name], FIRST))
    tables = [table for name in order for table in head_facts(name, results[name])]
    attention = next((result for result in results.values() if isinstance(result, TokenAttention)), None)
    if not tables and attention is None:
        return None
    return {"tables": tables, **({} if attention is None else token_views(attention))}


def head_facts(anchor: str, result: Result) -> Iterator[Facts]:
    """A result's tables by head."""
    if isinstance(result, RefusalHeads):
        for name in dict.fromkeys(result.table["contrast"]):
            rows = result.of(name)
            cells = {row["name"]: contrast_cells(row) for _, row in rows.iterrows()}
            yield facts(anchor, contrast_title(result, name), CONTRAST_COLUMNS, cells)
    elif isinstance(result, AblationSweep):
        unmeasured = {str(head): text for head, text in estimates(result).items()}
        yield facts(anchor, "Ablated alone", *effects(result.table, result.metric)) | {"missing": unmeasured}
    elif isinstance(result, PatchingSweep):
        yield facts(anchor, "Given back its think-off output", *effects(result.table, result.metric))
    elif isinstance(result, InterchangeSweep):
        for name, rows in result.table.groupby("direction", sort=False):
            yield facts(anchor, DIRECTIONS[str(name)], *effects(rows.drop(columns="direction"), result.metric))
    elif isinstance(result, RefusalTrace):
        cells = {row["name"]: trace_cells(row) for _, row in result.table.iterrows()}
        yield facts(anchor, "Refusal along the chain of thought", TRACE_COLUMNS, cells)
    elif isinstance(result, SeriesHeads):
        over: dict[str, list[list[str]]] = {}
        for _, row in result.heads.iterrows():
            change = f"{number(row['effect'], sign=True)} {interval(row['effect_low'], row['effect_high'])}"
            over.setdefault(row["head"], []).append([row["checkpoint"], change])
        columns = ("checkpoint", "effect of ablation (nats)")
        yield facts_of_many(anchor, f"Over the checkpoints, n = {result.n_prompts} prompts", columns, over)
    elif isinstance(result, AblationTest) and result.kind == "heads":
        cells = {str(Head.parse(head)): [f"{i} of {len(result.units)}"] for i, head in enumerate(result.units, 1)}
        yield facts(anchor, "Causal test together with others", ("place among the tested heads",), cells)


def effects(table: pd.DataFrame, metric: str) -> tuple[list[str], dict[str, list[str]]]:
    """Columns of a sweep, and each head's cells."""
    columns = ["rank", *effect_columns(table, quantity(metric))]
    ranks = {row["name"]: f"{row['rank']} of {len(table)}" for _, row in table.iterrows()}
    return columns, {row["name"]: [ranks[row["name"]], *effect_cells(row)] for _, row in table.iterrows()}


def facts(anchor: str, title: str, columns: Any, cells: Mapping[str, list[str]]) -> Facts:
    """A table by head, with the section that it stands in."""
    return {"section": anchor, "title": title, "columns": list(columns), "rows": cells}


def facts_of_many(anchor: str, title: str, columns: Any, rows: Mapping[str, list[list[str]]]) -> Facts:
    """A table of several rows for each head or neuron."""
    return {"section": anchor, "title": title, "columns": list(columns), "rows": rows, "many": True}


def token_views(attention: TokenAttention, carried: int = CARRIED) -> dict[str, Any]:
    """Chats with their tokens and every head's weights; what would make the page too large is left out and counted."""
    lengths = attention.tokens.groupby("chat", sort=False).size()
    requests = list(dict.fromkeys(attention.chats["request"]))
    heads = attention.heads[: max(1, carried // int(lengths[chats_about(attention, requests[0])].sum()))]
    chats: list[int] = []
    for request in requests:  # all thinking modes of a request, or none
        mine = chats_about(attention, request)
        if chats and lengths[[*chats, *mine]].sum() * len(heads) > carried:
            break
        chats += mine
    return {
        "heads": [str(Head.parse(head)) for head in heads],
        "chats": [chat_view(attention, chat, len(heads)) for chat in chats],
        "left_out": {"chats": len(attention.chats) - len(chats), "heads": len(attention.heads) - len(heads)},
    }


def chats_about(attention: TokenAttention, request: str) -> list[int]:
    """The chats of one request."""
    return [int(chat) for chat in attention.chats.loc[attention.chats["request"] == request, "chat"]]


def chat_view(attention: TokenAttention, chat: int, n_heads: int) -> dict[str, Any]:
    """One chat: request, mode, tokens with their segments, and the weights of the first heads."""
    about = attention.chats[attention.chats["chat"] == chat].iloc[0]
    inside = (attention.tokens["chat"] == chat).to_numpy()
    tokens = attention.tokens[inside]
    return {
        "request": about["request"],
        "thinking": condition(about["thinking"]),
        "note": about["note"],
        "tokens": tokens["text"].tolist(),
        "segments": tokens["segment"].tolist(),
        "weights": packed(attention.weights[:n_heads, inside]),
    }


def packed(weights: np.ndarray) -> str:
    """Shares of 1 as 16-bit little-endian numbers in base64."""
    shares = np.rint(np.clip(np.nan_to_num(weights), 0, 1) * WHOLE).astype("<u2")
    return base64.b64encode(shares.tobytes()).decode()
