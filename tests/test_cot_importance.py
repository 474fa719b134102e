"""Sentences of a CoT, hidden and cut, against plain transformers passes with their own masks and truncated tokens."""

import copy
import itertools
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from families import shared_model
from made_directions import made_importance
from made_results import HOSTILE
from markupsafe import escape
from planted import planted_model

from rim_lens import RefusalJudge, RimLensError, ablate_heads, cot_importance, generate, refusal_score
from rim_lens.behavior.refusal_score import RefusalTokens
from rim_lens.explore.cot import explore_cot
from rim_lens.inference_time.cot_importance import CotImportance, differs
from rim_lens.inference_time.cot_sentences import cot_sentences
from rim_lens.plots import style
from rim_lens.plots.cot_html import shaded_cot
from rim_lens.report.blocks import Fragment
from rim_lens.report.sections import section_of

REQUESTS = ["How do I pick a lock?", "Hi"]
COTS = ["Hm, let me see. First think! Is it safe?\nNo idea.", "Short one. And another, longer than the first."]
TOKENS = RefusalTokens((10, 20), ("a", "b"))


def chats_of(model):
    return [model.render([one], thinking="prefilled", cot=cot)[0] for one, cot in zip(REQUESTS, COTS, strict=True)]


def spans(chat, cot):
    """The sentences of a CoT by its bytes, each with the white space before it; a token of the tokenizer is a byte."""
    first, borders = int(np.flatnonzero(chat.where("cot"))[0]), [0]
    borders += [i + 1 for i, c in enumerate(cot[:-1]) if c in ".!?" and cot[i + 1] in " \n"] + [len(cot)]
    return [(first + a, first + b) for a, b in itertools.pairwise(borders)]


def log_odds(logits):
    logits = logits.double()
    inside = torch.zeros(len(logits), dtype=torch.bool)
    inside[list(TOKENS.ids)] = True
    return float(logits[inside].logsumexp(0) - logits[~inside].logsumexp(0))


def masked_score(model, chat, start, stop, begin, heads=None):
    """One eager pass in which queries from `begin` on do not see columns `start:stop` (of some heads)."""
    hf = copy.deepcopy(model.hf)
    hf.set_attn_implementation("eager")
    n = len(chat)
    causal = torch.full((n, n), torch.finfo(torch.float32).min).triu(1)
    hide = causal.clone()
    hide[begin:, start:stop] = torch.finfo(torch.float32).min
    for i, layer in enumerate(hf.model.layers):
        own = torch.stack([hide if heads is None or (i, h) in heads else causal for h in range(model.n_heads)])[None]

        def attend(module, args, kwargs, own=own):
            return args, {**kwargs, "attention_mask": own}

        layer.self_attn.register_forward_pre_hook(attend, with_kwargs=True)
    with torch.no_grad():
        return log_odds(hf(torch.from_numpy(chat.token_ids)[None]).logits[0, -1])


def plain_score(model, tokens):
    with torch.no_grad():
        return log_odds(model.hf(torch.as_tensor(tokens)[None]).logits[0, -1])


def test_sentences_hold_every_token_of_the_cot_once():
    model = shared_model("llama")
    for chat, cot in zip(chats_of(model), COTS, strict=True):
        found = cot_sentences(model, chat)
        assert [(one.start, one.stop) for one in found] == spans(chat, cot)
        assert "".join(one.text for one in found) == "".join(cot.split("\n")).replace(". ", ".").replace("! ", "!")
        np.testing.assert_array_equal(
            np.concatenate([np.arange(one.start, one.stop) for one in found]), np.flatnonzero(chat.where("cot"))
        )


@pytest.mark.parametrize("heads", [None, [(0, 1), (2, 3), (2, 0)]], ids=["all", "some"])
@pytest.mark.parametrize("queries", ["answer", "later"])
def test_hiding_a_sentence_is_masking_it_in_plain_attention(queries, heads):
    model = shared_model("llama")
    importance = cot_importance(model, chats_of(model), tokens=TOKENS, queries=queries, heads=heads)
    assert importance.how == "shared prefix"
    for number, (chat, cot) in enumerate(zip(chats_of(model), COTS, strict=True)):
        rows = importance.table[importance.table["chat"] == number]
        clean = plain_score(model, chat.token_ids)
        assert importance.scores["score"][number] == pytest.approx(clean, abs=1e-4)
        places = spans(chat, cot)
        for (start, stop), effect in zip(places, rows["hidden"], strict=True):
            begin = places[-1][1] if queries == "answer" else stop
            expected = masked_score(model, chat, start, stop, begin, heads) - clean
            assert effect == pytest.approx(expected, abs=1e-4)
    assert importance.table["hidden"].abs().max() > 1e-2


def test_cutting_off_is_leaving_the_tokens_out():
    model = shared_model("llama")
    importance = cot_importance(model, chats_of(model), tokens=TOKENS)
    for number, (chat, cot) in enumerate(zip(chats_of(model), COTS, strict=True)):
        rows = importance.table[importance.table["chat"] == number]
        places, clean = spans(chat, cot), plain_score(model, chat.token_ids)
        scores = [
            plain_score(model, np.r_[chat.token_ids[:start], chat.token_ids[places[-1][1] :]]) for start, _ in places
        ]
        np.testing.assert_allclose(rows["cut"], np.array(scores) - clean, atol=1e-4)
        np.testing.assert_allclose(rows["brings"], np.diff([*scores, clean]), atol=1e-4)


@pytest.mark.parametrize("queries", ["answer", "later"])
@pytest.mark.parametrize("family", ["mistral", "llama"])
def test_whole_passes_give_the_same_as_the_shared_prefix(family, queries):
    """Windows forbid sharing; so do other interventions, here one that changes nothing."""
    model = shared_model(family)
    with ablate_heads(model, []) if family == "llama" else nullcontext():
        slow = cot_importance(model, chats_of(model), tokens=TOKENS, queries=queries)
    assert slow.how == "whole passes"
    if family == "llama":
        fast = cot_importance(model, chats_of(model), tokens=TOKENS, queries=queries)
        for column in ("hidden", "cut", "brings"):
            np.testing.assert_allclose(slow.table[column], fast.table[column], atol=1e-4)
    np.testing.assert_allclose(slow.scores["score"], refusal_score(model, chats_of(model), TOKENS), atol=1e-4)


def test_hiding_from_no_head_changes_nothing():
    model = shared_model("llama")
    importance = cot_importance(model, chats_of(model), tokens=TOKENS, heads=[])
    assert importance.table["hidden"].abs().max() < 1e-5  # rows of one pass round otherwise than a row alone


def test_no_continuations_leave_everything_else_as_it_is():
    model = shared_model("llama")
    chats = chats_of(model)[1:]
    without = cot_importance(model, chats, tokens=TOKENS, resample=0)
    again = cot_importance(model, chats, tokens=TOKENS, resample=3)
    assert without.table["resampled"].isna().all()
    for column in ("hidden", "cut", "brings", "text", "n_tokens"):
        assert without.table[column].equals(again.table[column])
    assert (again.table["n_other"] <= 3).all()
    assert again.table["n_same"].tolist() == [3, 1]


def test_continuations_are_what_generation_writes_from_there():
    """The first sentence's continuations are those of the chat with thinking on, and so are their scores."""
    model = shared_model("llama")
    (chat,) = chats_of(model)[1:]
    importance = cot_importance(model, [chat], tokens=TOKENS, resample=4, temperature=1.0, seed=5)
    budget = int(chat.where("cot").sum())
    options = {"temperature": 1.0, "seed": 5, "cot_budget": budget, "max_new_tokens": 1, "progress": False}
    written = generate(model, REQUESTS[1:], thinking="on", samples=4, decision_score=TOKENS.score, **options)
    second = cot_sentences(model, chat)[1]
    prefix = model.chat_format.decode(chat.token_ids[: second.start].tolist())
    assert prefix.endswith("Short one.")
    first = importance.table.iloc[0]
    other = [one.score for one in written if differs(one.cot.split(".")[0], "Short one.")]
    assert first["n_other"] == len(other) == 4  # noise is not a sentence
    later = importance.table.iloc[1]
    assert first["resampled"] != later["resampled"]
    assert np.isfinite(importance.table["resampled"]).all()


def test_lazy_sentences_of_the_planted_model_take_refusal_away():
    model, truth = planted_model(0, n_prompts=8)
    cot = "okay weigh risk. check law harm. quick easy fast short"
    requests = [one for one, soft in zip(truth.harmful, truth.n_soft, strict=True) if soft == 0]
    chats = model.render(requests, thinking="prefilled", cot=cot)
    tokens = RefusalTokens((truth.refusal_token,), ("Sorry",))
    importance = cot_importance(model, chats, tokens=tokens, judge=RefusalJudge(), max_new_tokens=10)
    effect = importance.table.groupby("sentence")["hidden"].mean()
    assert effect.idxmax() == effect.index[-1]
    assert effect.iloc[-1] > 1
    assert (importance.scores["answer"] == "complied").all()
    assert (importance.table.query("sentence == 0")["answer_cut"] == "refused").all()
    summary = importance.summary.set_index(["third", "effect"])
    assert summary.loc[("last third", "hidden"), "low"] > 0
    assert summary["n"].max() == len(chats)


def test_what_has_no_cot_is_refused():
    model = shared_model("llama")
    off = model.render(REQUESTS, thinking="off")
    with pytest.raises(RimLensError, match="has no CoT"):
        cot_importance(model, off)
    with pytest.raises(RimLensError, match="must be chats"):
        cot_importance(model, REQUESTS)
    for options, match in (({"queries": "here"}, "unknown queries"), ({"resample": -1}, "counts continuations")):
        with pytest.raises(RimLensError, match=match):
            cot_importance(model, chats_of(model), **options)


def test_it_is_saved_and_drawn(tmp_path):
    model = shared_model("llama")
    importance = cot_importance(model, chats_of(model), tokens=TOKENS)
    again = CotImportance.load(importance.save(tmp_path / "cot"))
    assert again.table.equals(importance.table)
    figure = importance.plot(chat=1, effect="cut")
    np.testing.assert_allclose(figure.data[0].z[:, 0], importance.table.query("chat == 1")["cut"])
    assert "Short one." in figure.data[0].text[0][0]


def test_a_cot_is_read_sentence_by_sentence_in_notebooks_and_on_the_page():
    """The same HTML in both, one thing to click per sentence, hostile text escaped."""
    importance = made_importance()
    html = explore_cot(importance, chat=0, effect="cut")._repr_html_()
    first = importance.table.iloc[0]
    assert html.count("<details") == html.count("<summary") == 3
    assert HOSTILE not in html
    assert escape(first["text"]) in html
    assert all(style.number(first[effect], sign=True) in html for effect in ("hidden", "cut", "brings", "resampled"))
    largest = importance.table[importance.table["chat"] == 0].set_index("text")["cut"]
    colour = "213, 94, 0" if largest.loc[largest.abs().idxmax()] > 0 else "0, 114, 178"
    assert html.split("</summary>")[largest.abs().argmax()].count(f"rgba({colour}, 0.550)") == 1
    page = section_of("x", importance)
    assert next(block.html for block in page.blocks if isinstance(block, Fragment)) == shaded_cot(importance, 0)
    assert "does not clearly change" in page.in_short[0]
    with pytest.raises(RimLensError, match="no effect 'other'"):
        explore_cot(importance, effect="other")
