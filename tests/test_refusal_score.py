"""The refusal score against closed forms and plain loops."""

import numpy as np
import pytest
import torch
from families import tiny_model

from rim_lens.behavior.generate import generate
from rim_lens.behavior.judge import Judgement
from rim_lens.behavior.refusal_score import (
    RefusalTokens,
    fit_refusal_tokens,
    log_odds,
    refusal_score,
    refusal_tokens,
    sequence_refusal_score,
)
from rim_lens.errors import RimLensError


def test_log_odds_is_log_p_minus_log_one_minus_p():
    logits = torch.randn(5, 11)
    p = logits.double().softmax(-1)[:, [2, 7]].sum(-1)
    assert torch.allclose(log_odds(logits, [2, 7]), p.log() - (1 - p).log(), atol=1e-12)


def test_log_odds_survives_extreme_logits_and_has_a_gradient():
    logits = torch.tensor([[200.0, 0.0, 0.0]], requires_grad=True)
    score = log_odds(logits, [0])
    assert score.item() == pytest.approx(200 - np.log(2), abs=1e-9)
    score.sum().backward()
    assert logits.grad is not None
    assert logits.grad[0, 0] == pytest.approx(1.0)


def test_score_of_padded_batches_equals_single_passes():
    model = tiny_model("llama")
    chats = model.render(["a", "a much longer request than the other one", "b c"])
    tokens = refusal_tokens(model)
    together = refusal_score(model, chats, tokens)
    for chat, score in zip(chats, together, strict=True):
        logits = model.hf(torch.tensor(chat.token_ids)[None]).logits[0, chat.decision_position]
        p = logits.double().softmax(-1)[list(tokens.ids)].sum()
        assert score == pytest.approx((p.log() - (1 - p).log()).item(), abs=1e-4)


def test_the_score_is_read_before_the_response():
    model = tiny_model("llama")
    bare = model.render(["Name a colour."])
    answered = model.render(["Name a colour."], response="Blue, I would say.")
    assert refusal_score(model, answered) == pytest.approx(refusal_score(model, bare), abs=1e-4)


def test_sequence_score_equals_a_plain_loop():
    model = tiny_model("qwen3")
    chats = model.render(["a", "longer request"])
    refusals, compliances = ["No, never", "I can't"], ["Sure"]
    fast = sequence_refusal_score(model, chats, refusals=refusals, compliances=compliances, batch_size=2)

    def per_token(chat, opening):
        ids = [*chat.token_ids.tolist(), *model.encode(opening)]
        log_p = model.hf(torch.tensor(ids)[None]).logits[0].double().log_softmax(-1)
        start = len(chat)
        return np.mean([log_p[i - 1, ids[i]].item() for i in range(start, len(ids))])

    for chat, score in zip(chats, fast, strict=True):
        up = np.logaddexp.reduce([per_token(chat, text) for text in refusals])
        down = np.logaddexp.reduce([per_token(chat, text) for text in compliances])
        assert score == pytest.approx(up - down, abs=1e-4)


def test_fitted_tokens_open_refusals_and_their_auroc_is_out_of_sample():
    model = tiny_model("llama")
    generations = generate(model, [f"question number {i}" for i in range(60)], max_new_tokens=1)
    first = [g.response_ids[0] if g.response_ids else -1 for g in generations]
    common = max(set(first), key=first.count)
    judgements = [Judgement("refused" if token == common else "complied", 1.0, "") for token in first]
    tokens = fit_refusal_tokens(model, generations, judgements)
    assert tokens.ids == (common,)
    assert tokens.auroc > 0.9
    refused = sum(token == common for token in first)
    assert tokens.n_refused == refused - refused // 2


def test_too_few_refusals_are_an_error_that_says_so():
    model = tiny_model("llama")
    generations = generate(model, ["a", "b", "c"], max_new_tokens=1)
    with pytest.raises(RimLensError, match="Only 0 refused answers"):
        fit_refusal_tokens(model, generations, [Judgement("complied", 1.0, "")] * 3)


def test_refusal_tokens_print_what_they_are():
    text = str(RefusalTokens((1,), ("I",), 0.9, 10, 12))
    assert "AUROC 0.900" in text
    assert "refused 10" in text
