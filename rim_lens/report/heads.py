"""Sections on inference time.

Where heads look, which go with refusal, what changing them does, where refusal can be read.
"""

import pandas as pd

from rim_lens.causal.ablation_test import AblationTest
from rim_lens.inference_time.contrast import rank_contrast
from rim_lens.inference_time.probe import RefusalProbe
from rim_lens.inference_time.refusal_heads import RefusalHeads
from rim_lens.inference_time.span_attention import SpanAttention
from rim_lens.inference_time.token_attention import TokenAttention
from rim_lens.inference_time.trace import RefusalTrace
from rim_lens.plots.attention import CONTRASTS, attention_contrast, by_outcome, contrast_title, segment_map
from rim_lens.plots.probe import cliff_heads, probe_map, trace_curve
from rim_lens.plots.set_effects import dose_curve, has_curve, in_nats, sentence, set_effects
from rim_lens.plots.style import interval, number, percent
from rim_lens.report import directions
from rim_lens.report.blocks import Block, Drawing, Folded, Grid, Section, Token, Tokens, Words, excerpt
from rim_lens.report.effects import effect_grid, effect_sentence
from rim_lens.report.wording import counted
from rim_lens.units import AnyHead, Head
from rim_lens.words import condition

SHOWN_HEADS = 20
SHOWN_SEGMENTS = ("cot", "think_open", "think_close")
SHOWN_VIEWS, SHOWN_CHATS = 4, 2  # of the token views that stand on the page by themselves
CONTRAST_COLUMNS = ("candidate", "shift of attention", "effect (mass)", "AUROC", "p (mass)", "q (mass)", "q (lift)")
TRACE_COLUMNS = ("fall (sd)", "share of the fall", "q")


def contrast_section(anchor: str, heads: RefusalHeads) -> Section:
    """Attention contrasts between refused and complied answers."""
    names = list(dict.fromkeys(heads.table["contrast"]))
    blocks: list[Block] = [
        Words(
            "Each cell is one attention head: how much more it looks at a span from the decision position in one "
            "kind of answer than in the other. A ringed head is a candidate: its attention goes with refusal. Only "
            "the causal test says whether it makes the model refuse."
        )
    ]
    for name in names:
        blocks += [Drawing(attention_contrast(heads, name)), contrast_grid(heads, name)]
    blocks += [Words(f"Not tested: {CONTRASTS.get(name, name)}. {why}") for name, why in heads.not_tested.items()]
    scored = any(by_outcome(heads, name) for name in names)
    title = f"Heads whose attention goes with {'the refusal score' if scored else 'refusal'}"
    sentences = [
        contrast_sentence(heads, name) for name in names if name != "empty_span_change"
    ]  # it makes no candidates
    sentences += held_out_sentences(heads)
    return Section(anchor, title, sentences, blocks)


def contrast_sentence(heads: RefusalHeads, name: str) -> str:
    """How many candidates a contrast has, of how many heads and chats, and the head that moves most."""
    rows = heads.of(name)  # type: ignore[arg-type]
    first = rows.iloc[0]
    if by_outcome(heads, name):
        n, largest = f"{first['n_plus']} chats", f"first {first['name']}, ρ = {number(first['mass_effect'], sign=True)}"
    else:
        n = f"{first['n_plus']} {first['plus']}, {first['n_minus']} {first['minus']}"
        largest = f"largest shift {first['name']}, {number(100 * first['shift'], sign=True)} points of attention"
    return (
        f"{contrast_title(heads, name)}: {counted(int(rows['candidate'].sum()), 'candidate', 'candidates')} of "
        f"{len(rows)} heads ({n}); {largest}."
    )


def held_out_sentences(heads: RefusalHeads) -> list[str]:
    """What the first heads' attention does on requests that did not choose them."""
    if heads.held_out is None:
        return []
    sentences = []
    for name, rows in heads.held_out.groupby("contrast", sort=False):
        start = f"{contrast_title(heads, str(name))}, on {len(rows)} chats of other requests: "
        if len(rows) < 4 or rows["attention"].nunique() == 1 or rows["outcome"].nunique() == 1:
            sentences.append(f"{start}too few, or all alike.")
            continue
        tested = rank_contrast(rows[["attention"]].to_numpy(), rows["outcome"].to_numpy())
        rho, low, high, p = (float(part[0]) for part in (tested.effect, tested.low, tested.high, tested.p))
        many = counted(int(rows["heads"].iloc[0]), "head", "heads")
        sentences.append(
            f"{start}ρ = {number(rho, sign=True)} {interval(low, high)} with the attention of the first {many}, "
            f"p = {p:.2g}; positive is as the paper expects."
        )
    return sentences


def contrast_grid(heads: RefusalHeads, name: str) -> Grid:
    """The first heads of a contrast."""
    rows = heads.of(name)  # type: ignore[arg-type]
    cells = [[row["name"], *contrast_cells(row)] for _, row in rows.head(SHOWN_HEADS).iterrows()]
    title = f"{contrast_title(heads, name)}: the first heads"
    return Grid(title, ("head", *CONTRAST_COLUMNS), cells, f"{len(cells)} of {len(rows)} heads.")


def contrast_cells(row: pd.Series) -> list[str]:
    """One head of a contrast under CONTRAST_COLUMNS."""
    return [
        "yes" if row["candidate"] else "no",
        f"{100 * row['shift']:+.1f} points".replace("-", "−"),
        f"{number(row['mass_effect'], sign=True)} {interval(row['mass_low'], row['mass_high'])}",
        number(row["mass_auroc"]),
        f"{row['mass_p']:.2g}",
        f"{row['mass_q']:.2g}",
        f"{row['lift_q']:.2g}",
    ]


def span_section(anchor: str, spans: SpanAttention) -> Section:
    """Mean attention to the think span and the CoT."""
    table = spans.to_dataframe()
    present = [name for name in SHOWN_SEGMENTS if (table.loc[table["segment"] == name, "n"] > 0).any()]
    modes = ", ".join(f"{spans.thinking.count(mode)} {mode}" for mode in dict.fromkeys(spans.thinking))
    words = Words(
        f"Mean share of each head's attention on a segment, over {len(spans.thinking)} chats (thinking: {modes})."
    )
    return Section(anchor, "Where heads look", [], [words, *(Drawing(segment_map(spans, name)) for name in present)])


def token_section(anchor: str, attention: TokenAttention) -> Section:
    """Chats token by token: the first heads here, every other one by selecting it in a map."""
    first = attention.heads[:SHOWN_VIEWS]
    whole = (
        f" Any of the {len(attention.heads)} heads can be chosen in a head map, by a click or with the arrow keys "
        "and Enter."
        if len(attention.heads) > len(first)
        else ""
    )
    blocks: list[Block] = [
        Words(
            "Stronger colour is more attention from the decision position, relative to the most attended token of "
            f"the chat. Underlines mark segments: the request grey, the think tags orange, the CoT blue.{whole}"
        )
    ]
    for number_of_view, (_, chat) in enumerate(shown_chats(attention).iterrows()):
        note = f", answer {chat['note']}" if chat["note"] else ""
        views = [token_block(attention, int(chat["chat"]), head) for head in first]
        title = f"{sentence(condition(chat['thinking']))}{note}: {excerpt(chat['request'], 80)}"
        blocks.append(Folded(title, views, open=number_of_view == 0))
    return Section(anchor, "What heads look at, word by word", [], blocks)


def shown_chats(attention: TokenAttention) -> pd.DataFrame:
    """The first request's chats, in every thinking mode it has."""
    chats = attention.chats
    return chats[chats["request"] == chats["request"].iloc[0]].head(SHOWN_CHATS)


def token_block(attention: TokenAttention, chat: int, head: AnyHead) -> Tokens:
    """One chat under one head."""
    rows = attention.of(chat, head)
    top = float(rows["weight"].max()) or 1.0
    tokens = [
        Token(text.replace("\n", "↵"), segment, weight / top, f"{100 * weight:.2f} % of attention")
        for text, segment, weight in zip(rows["text"], rows["segment"], rows["weight"], strict=True)
    ]
    most = rows.loc[rows["weight"].idxmax()]
    caption = (
        f"n = {len(rows)} tokens; most attention: {100 * most['weight']:.1f} % on one token of the segment "
        f"{most['segment']}."
    )
    return Tokens(str(Head.parse(head)), caption, tokens)


def test_section(anchor: str, test: AblationTest) -> Section:
    """Causal test of heads: dose curve, rates beside controls, all effects; of a direction without a curve."""
    if test.kind == "direction":
        return directions.test_section(anchor, test)
    changes = list(dict.fromkeys(test.table["change"]))
    names = ", ".join(str(Head.parse(head)) for head in test.units)
    returns = "recovered" in test.table
    title = "Bringing refusal back with these heads" if returns else "What changing these heads does to refusal"
    blocks: list[Block] = [
        Words(
            f"Heads in order: {names}. Each dose is judged against random sets with as many heads in each layer "
            f"({test.alternative if test.alternative == 'two-sided' else 'one-sided'} test)."
        ),
        Drawing(dose_curve(test) if has_curve(test) else set_effects(test, nats=True)),
    ]
    if not test.table["measure"].map(in_nats).all():
        blocks += [Drawing(set_effects(test, change)) for change in changes]
    blocks.append(effect_grid(test.table, ["change", "k"]))
    largest = test.table[test.table["k"] == test.table["k"].max()]
    first = largest[largest["measure"] == test.table["measure"].iloc[0]]
    sentences = [effect_sentence(row, f"{sentence(row['change'])} of {row['k']} heads") for _, row in first.iterrows()]
    return Section(anchor, title, sentences, blocks)


def probe_section(anchor: str, probe: RefusalProbe) -> Section:
    """Where refusal can be read."""
    kinds = list(dict.fromkeys(probe.table["kind"]))
    s = probe.selected
    can = "can be read" if s["low"] > 0.5 else "cannot be told from chance"
    text = (
        f"Whether the model will refuse {can} from its residual stream before it answers: AUROC {s['auroc']:.2f} "
        f"[{s['low']:.2f}, {s['high']:.2f}] at the decision position, n = {int(s['n'])} (0.5 is chance)."
    )
    words = Words(
        "Each cell: how well one direction of the residual stream, fitted on other prompts, separates refused from "
        f"complied answers, at one layer and one template token. {probe.caption()}"
    )
    return Section(
        anchor, "Where refusal can be read", [text], [words, *(Drawing(probe_map(probe, kind)) for kind in kinds)]
    )


def trace_section(anchor: str, trace: RefusalTrace) -> Section:
    """The refusal direction along the CoT."""
    cells = [[row["name"], *trace_cells(row)] for _, row in trace.table.head(SHOWN_HEADS).iterrows()]
    grid = Grid("Heads that write the fall", ("head", *TRACE_COLUMNS), cells)
    text = (
        f"Along the chain of thought the intent to refuse falls by {trace.fall:.2f} standard deviations at its "
        f"steepest place, against {trace.control_falls.mean():.2f} on directions fitted to permuted labels (p = "
        f"{trace.p:.2g}, n = {len(trace.chats)} CoTs)."
    )
    blocks: list[Block] = [Words(trace.caption()), Drawing(trace_curve(trace)), Drawing(cliff_heads(trace)), grid]
    return Section(anchor, "Refusal along the chain of thought", [text], blocks)


def trace_cells(row: pd.Series) -> list[str]:
    """One head's part in the fall under TRACE_COLUMNS."""
    return [
        f"{number(row['fall'], sign=True)} {interval(row['low'], row['high'])}",
        percent(row["share"], sign=True),
        f"{row['q']:.2g}",
    ]
