"""A model whose refusal heads were set by hand.

Every analyzer must find them, and random heads must not look like them.
"""

from functools import cache

import numpy as np
import pytest
from planted import OWN_COT, planted_model

from rim_lens.behavior.generate import generate
from rim_lens.behavior.judge import RefusalJudge
from rim_lens.behavior.refusal_score import RefusalTokens, refusal_score
from rim_lens.capture.activations import head_outputs
from rim_lens.causal.ablation_test import ablation_test as causal_test
from rim_lens.inference_time.probe import probe_refusal
from rim_lens.inference_time.refusal_heads import find_refusal_heads
from rim_lens.inference_time.span_attention import span_attention
from rim_lens.inference_time.trace import (
    READ,
    RefusalTrace,
    _falls,
    _heads,
    held_out_places,
    read_places,
    trace_refusal,
)
from rim_lens.inference_time.write_vectors import write_vectors
from rim_lens.intervene import ablate_heads, knock_out, patch_heads, record_heads


@cache
def planted(seed=0):
    return planted_model(seed, n_prompts=48)


@cache
def judged(mode, seed=0):
    """(chats, judgements of what the model really answers)."""
    model, truth = planted(seed)
    options = {"cot": truth.cots} if mode == "prefilled" else {}
    chats = model.render(truth.harmful, thinking=mode, **options)
    answers = generate(model, chats, max_new_tokens=13, progress=False)
    judge = RefusalJudge()
    return chats, judge([c.request for c in chats], [a.response for a in answers], [a.cot for a in answers])


def scores(chats):
    model, truth = planted()
    return refusal_score(model, chats, RefusalTokens((truth.refusal_token,), ("Sorry",)))


def every_head():
    return [(layer, head) for layer in range(planted()[0].n_layers) for head in range(planted()[0].n_heads)]


def refused(judgements):
    return np.array([one.label == "refused" for one in judgements])


def test_the_model_behaves_as_planted():
    model, truth = planted()
    off, on = refused(judged("off")[1]), refused(judged("prefilled")[1])
    assert 0.4 < off.mean() < 0.9
    assert 0.1 < on.mean() < off.mean()
    assert np.corrcoef(scores(judged("off")[0]), truth.n_soft)[0, 1] < -0.9
    assert np.corrcoef(scores(judged("prefilled")[0]) - scores(judged("off")[0]), truth.n_lazy)[0, 1] < -0.7
    harmless = generate(model, truth.harmless[:6], max_new_tokens=13, progress=False)
    assert not refused(RefusalJudge()(truth.harmless[:6], [a.response for a in harmless])).any()
    own = generate(model, truth.harmful[:1], thinking="on", max_new_tokens=4, cot_budget=8, progress=False)[0]
    assert (own.cot, own.closed) == (" ".join(OWN_COT[1:-2]), True)


def test_embeddings_pass_the_norm_unchanged():
    model, _ = planted()
    weight = model.hf.model.embed_tokens.weight.detach()
    np.testing.assert_allclose(model.hf.model.layers[0].input_layernorm(weight).detach(), weight, atol=1e-4)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.slow
def test_attention_contrasts_rank_the_planted_heads_first(seed):
    model, truth = planted(seed)
    (off, off_labels), (on, on_labels) = judged("off", seed), judged("prefilled", seed)
    found = find_refusal_heads(model, [*off, *on], [*off_labels, *on_labels])
    assert found.ranked("cot_divergence", 1) == [truth.cot_head]
    assert found.ranked("empty_span", 1) == [truth.refusal_head]
    assert {truth.cot_head, truth.refusal_head} <= set(found.candidates())
    assert truth.length_head not in found.candidates()
    scored = find_refusal_heads(
        model, off, outcome=refusal_score(model, off, RefusalTokens((truth.refusal_token,), ("",)))
    )
    assert scored.ranked("empty_span", 1) == [truth.refusal_head]


def test_the_length_head_attends_by_length_alone():
    model, truth = planted()
    spans = span_attention(model, judged("prefilled")[0][:8])
    lift = spans.lift[:, *truth.length_head]
    np.testing.assert_allclose(lift[np.isfinite(lift)], 1, atol=1e-3)


def test_shuffled_labels_leave_no_candidate():
    model, _ = planted()
    chats, labels = judged("prefilled")
    shuffled = [labels[i] for i in np.random.default_rng(0).permutation(len(labels))]
    assert find_refusal_heads(model, chats, shuffled).candidates() == []


@pytest.mark.parametrize("backend", ["fast", "hooks"])
def test_ablation_singles_out_the_planted_heads(backend):
    model, truth = planted()
    chats = judged("prefilled")[0][:4]
    before = scores(chats)
    effects = {}
    for head in every_head() if backend == "fast" else [*every_head()[8:24:2], truth.cot_head]:
        with ablate_heads(model, [head], backend=backend):
            effects[head] = (scores(chats) - before).mean()
    assert min(effects, key=effects.get) == truth.refusal_head
    assert max(effects, key=effects.get) == truth.cot_head
    others = [abs(e) for head, e in effects.items() if head not in (truth.refusal_head, truth.cot_head)]
    assert max(others) < 0.2 * min(-effects[truth.refusal_head], effects[truth.cot_head])


def test_patching_think_off_outputs_brings_refusal_back_through_the_planted_heads_only():
    model, truth = planted()
    off, on = judged("off")[0][:8], judged("prefilled")[0][:8]
    recording, before = record_heads(model, off), scores(on)
    indices = next(iter(model.batches(on, 8)))[0]
    effects = {}
    for head in every_head():
        with patch_heads(model, [head], recording[indices]):
            effects[head] = (scores([on[i] for i in indices]) - before[indices]).mean()
    ranked = sorted(effects, key=effects.get, reverse=True)
    assert set(ranked[:2]) == {truth.cot_head, truth.refusal_head}
    assert effects[ranked[2]] < 0.2 * effects[ranked[1]]


def test_hiding_the_cot_from_the_planted_head_brings_refusal_back():
    model, truth = planted()
    off, on = judged("off")[0], judged("prefilled")[0]
    with knock_out(model, [truth.cot_head, truth.refusal_head], "cot"):
        both = scores(on)
    with knock_out(model, [(0, 1), (1, 5), (3, 0)], "cot"):
        random = scores(on)
    np.testing.assert_allclose(both, scores(off), atol=0.6)
    assert abs(random - scores(on)).max() < 1 < (both - scores(on)).mean()


def test_the_causal_test_tells_planted_from_random_sets():
    model, truth = planted()
    options = {"tokens": RefusalTokens((truth.refusal_token,), ("",)), "generated": False, "n_controls": 40}
    planted_set = causal_test(model, [truth.refusal_head], judged("off")[0][:12], **options)
    row = planted_set.table.iloc[0]
    assert row["high"] < row["control_low"]
    assert row["p"] == pytest.approx(2 / 8)  # the seven other heads of its layer
    random_set = causal_test(model, [(1, 6), (2, 5)], judged("off")[0][:12], **options)
    assert random_set.table.iloc[0]["p"] > 0.1 or abs(random_set.table.iloc[0]["effect"]) < 0.1 * abs(row["effect"])


@cache
def traced():
    model, _ = planted()
    probe = probe_refusal(model, *judged("off"), n_permutations=20)
    return probe, trace_refusal(model, judged("prefilled")[0], probe, judged=judged("prefilled")[1], window=2)


def test_the_cliff_is_where_the_lazy_words_begin_and_the_cot_head_writes_it():
    _, truth = planted()
    _, trace = traced()
    assert tuple(trace.table.iloc[0][["layer", "head"]]) == truth.cot_head
    assert trace.table.iloc[0]["share"] > 0.4
    assert trace.table.iloc[0]["q"] < 0.05
    named = {(int(row.layer), int(row.head)): row.fall for row in trace.table.itertuples()}
    others = [abs(fall) for head, fall in named.items() if head not in (truth.cot_head, truth.refusal_head)]
    assert max(others) < 0.1 * named[truth.cot_head]
    # Lazy words stand last: "okay", 8 − n careful ones, n lazy ones.
    clear = (truth.n_lazy >= 2) & (truth.n_lazy <= 5)
    onset = (9 - truth.n_lazy) / 9
    assert np.abs(trace.chats["cliff"].to_numpy() - onset)[clear].mean() < 0.2
    assert (trace.fall, trace.p) > (trace.control_falls.max() * 0.9, 0)
    assert trace.curve["mean"].iloc[-1] < trace.curve["mean"].iloc[0] - 1


def test_readings_are_what_the_heads_write_up_to_the_mlps():
    """Independent sum: embedding + every head's output through W_O, projected; MLPs are random and tiny here."""
    model, _ = planted()
    probe, trace = traced()
    one = judged("prefilled")[0][3]
    z = head_outputs(model, [one], READ)[0]
    u = write_vectors(model, probe.chosen.vector, probe.layer)
    embedded = (
        model.hf.model.embed_tokens.weight.detach()[one.token_ids[read_places(one)]].numpy() @ probe.chosen.vector
    )
    total = embedded + np.einsum("lphd,lhd->p", z[: probe.layer].numpy(), u.numpy())
    reading = trace.tokens.query("chat == 3")["reading"].to_numpy() * probe.chosen.spread + probe.chosen.middle
    np.testing.assert_allclose(total, reading, atol=0.05 * np.ptp(reading) + 0.05)


def test_write_vectors_are_the_same_through_the_bridge():
    model, truth = planted()
    direct = write_vectors(model, truth.refusal_direction)
    for layer in range(model.n_layers):
        weight = model.bridge.blocks[layer].attn.W_O.detach().numpy()
        np.testing.assert_allclose(direct[layer], weight @ truth.refusal_direction, atol=1e-6)


def test_the_trace_survives_saving(tmp_path):
    trace = traced()[1]
    again = RefusalTrace.load(trace.save(tmp_path / "trace"))
    assert again.table.equals(trace.table)
    assert "n = 48 CoTs" in again.caption()


def test_heads_of_pure_noise_are_not_found_at_the_cliff_of_their_sum():
    rng = np.random.default_rng(3)
    written = [rng.normal(size=(40, 6, 9)) for _ in range(32)]
    falls = [_falls(one.sum((1, 2))[:, None], 4)[:, 0] for one in written]
    own = _heads(written, [int(one.argmax()) + 4 for one in falls], 4, 1.0, 0)
    other = _heads(written, held_out_places(falls, 4, 0), 4, 1.0, 0)
    assert (own["p"] < 0.05).mean() > 0.2
    assert (other["p"] < 0.05).mean() < 0.15
    assert (other["q"] < 0.05).sum() == 0
