"""Attention contrasts: against plain loops, under the null, with confounders, and what is refused."""

import numpy as np
import pytest
from scipy import stats

from rim_lens.behavior.judge import Judgement
from rim_lens.chat.chat import Chat
from rim_lens.chat.segments import SEGMENTS
from rim_lens.errors import RimLensError
from rim_lens.inference_time.contrast import group_contrast, pair_contrast, rank_contrast
from rim_lens.inference_time.refusal_heads import RefusalHeads, find_refusal_heads
from rim_lens.inference_time.span_attention import SpanAttention
from rim_lens.results import Manifest

COT, OPEN, CLOSE, USER, TAG = (
    SEGMENTS.index(name) for name in ("cot", "think_open", "think_close", "user", "assistant_tag")
)


def chat(i, thinking="on", n_cot=10, n_user=12):
    segments = [USER] * n_user + [OPEN] * 2 + [COT] * (0 if thinking == "off" else n_cot) + [CLOSE] * 2
    n = len(segments)
    return Chat("", np.arange(n), np.array(segments), thinking, f"request {i}", n - 1)


def attention(chats, cot=None, span=None, n_layers=2, n_heads=3):
    """Spans with the given [prompt, layer, head] masses on the CoT and on think_open."""
    shape = (len(chats), n_layers, n_heads)
    mass = np.zeros((*shape, len(SEGMENTS)))
    mass[..., COT] = 0.0 if cot is None else cot
    mass[..., OPEN] = 0.0 if span is None else span
    mass[..., USER] = 1 - mass.sum(-1)
    counts = np.array([[(c.segment_ids == s).sum() for s in range(len(SEGMENTS))] for c in chats], dtype=float)
    with np.errstate(invalid="ignore", divide="ignore"):
        lift = mass / (counts / counts.sum(1, keepdims=True))[:, None, None]
    requests, modes = [c.request for c in chats], [c.thinking for c in chats]
    return SpanAttention(mass, lift, counts, requests, modes, "decision", manifest=Manifest.collect())


def labels(refused):
    return [Judgement("refused" if r else "complied", 1.0, "") for r in refused]


def test_group_contrast_equals_plain_loops():
    rng = np.random.default_rng(0)
    values, plus = rng.random((30, 2, 3)), rng.random(30) < 0.4
    found = group_contrast(values, plus, n_permutations=400, seed=3)
    for cell in np.ndindex(2, 3):
        a, b = values[plus][:, *cell], values[~plus][:, *cell]
        pooled = np.sqrt(((len(a) - 1) * a.var(ddof=1) + (len(b) - 1) * b.var(ddof=1)) / (len(a) + len(b) - 2))
        assert found.effect[cell] == pytest.approx((a.mean() - b.mean()) / pooled)
        assert found.auroc[cell] == pytest.approx((a[:, None] > b).mean())
        assert found.low[cell] < found.effect[cell] < found.high[cell]
        # A permutation p from other draws of its own
        null = [np.subtract(*(x[s].mean() for s in (m, ~m))) for x in [values[:, *cell]] for m in orders(plus, rng)]
        assert found.p[cell] == pytest.approx(np.mean(np.abs(null) >= abs(a.mean() - b.mean())), abs=0.08)
    assert (found.n_plus, found.n_minus) == (plus.sum(), (~plus).sum())
    np.testing.assert_allclose(found.q, stats.false_discovery_control(found.p.ravel()).reshape(2, 3))


def orders(plus, rng, n=600):
    return [rng.permutation(plus) for _ in range(n)]


def test_pair_and_rank_contrasts_agree_with_scipy():
    rng = np.random.default_rng(1)
    plus = rng.normal(0.3, 1, (25, 4))
    minus = plus - rng.normal(0.4, 1, (25, 4))
    paired = pair_contrast(plus, minus, n_permutations=3000)
    difference = plus - minus
    np.testing.assert_allclose(paired.effect, difference.mean(0) / difference.std(0, ddof=1))
    np.testing.assert_allclose(paired.p, stats.ttest_rel(plus, minus).pvalue, atol=0.04)
    outcome = rng.normal(size=25)
    ranked = rank_contrast(plus, outcome, n_permutations=3000)
    expected = [stats.spearmanr(column, outcome) for column in plus.T]
    np.testing.assert_allclose(ranked.effect, [e.statistic for e in expected])
    np.testing.assert_allclose(ranked.p, [e.pvalue for e in expected], atol=0.04)
    assert ((ranked.low < ranked.effect) & (ranked.effect < ranked.high)).all()


def test_effect_intervals_cover_the_true_effect():
    rng, covered = np.random.default_rng(2), 0
    for seed in range(20):
        values = rng.normal(size=(60, 20))
        plus = np.arange(60) < 30
        values[plus] += 0.8
        found = group_contrast(values, plus, n_permutations=1, seed=seed)
        covered += ((found.low <= 0.8) & (found.high >= 0.8)).sum()
    assert 0.89 <= covered / 400 <= 0.99


def test_p_values_are_uniform_under_the_null_and_nothing_is_found():
    rng = np.random.default_rng(3)
    p, any_found = [], 0
    for seed in range(16):
        chats = [chat(i) for i in range(40)]
        found = find_refusal_heads(
            None,
            chats,
            labels(rng.random(40) < 0.5),
            attention=attention(chats, cot=rng.random((40, 3, 4)) * 0.9, n_layers=3, n_heads=4),
            n_permutations=300,
            seed=seed,
        )
        p += list(found.table["mass_p"])
        any_found += bool(found.candidates())
    assert stats.kstest(p, "uniform").pvalue > 0.01
    assert any_found <= 4  # 5 % of 16 expected, one correction per table


@pytest.mark.parametrize("sign", [1, -1])
def test_a_head_that_follows_refusal_is_ranked_first_with_its_sign(sign):
    rng = np.random.default_rng(4)
    refused = np.arange(60) % 3 == 0
    cot = rng.normal(0.4, 0.05, (60, 2, 3)).clip(0, 1)
    cot[:, 1, 2] += sign * 0.2 * ~refused
    cot[:, 0, 1] = 0.001 + 0.0005 * ~refused  # hardly looks at the CoT, with perfect regularity
    chats = [chat(i) for i in range(60)]
    found = find_refusal_heads(None, chats, labels(refused), attention=attention(chats, cot))
    first = found.of("cot_divergence").iloc[0]
    assert (first["name"], bool(first["candidate"]), np.sign(first["shift"])) == ("L1H2", True, sign)
    assert (first["plus"], first["n_plus"], first["minus"], first["n_minus"]) == ("complied", 40, "refused", 20)
    assert ((1, 2) in found.ranked("cot_divergence")) == (sign > 0)
    assert first["mass_plus"] - first["mass_minus"] == pytest.approx(
        cot[~refused, 1, 2].mean() - cot[refused, 1, 2].mean()
    )


def test_length_alone_makes_no_candidate():
    rng = np.random.default_rng(5)
    refused = np.arange(60) % 2 == 0
    lengths = np.where(refused, rng.integers(5, 15, 60), rng.integers(12, 30, 60))
    chats = [chat(i, n_cot=int(n)) for i, n in enumerate(lengths)]
    share = (lengths / (lengths + 16))[:, None, None] * np.ones((60, 2, 3))
    even = find_refusal_heads(None, chats, labels(refused), attention=attention(chats, share))
    rows = even.of("cot_divergence")
    assert (rows["mass_q"] < 0.05).all()
    assert not rows["candidate"].any()
    full = find_refusal_heads(None, chats, labels(refused), attention=attention(chats, np.full((60, 2, 3), 0.9)))
    rows = full.of("cot_divergence")
    assert (rows["lift_q"] < 0.05).all()
    assert not rows["candidate"].any()


def test_empty_span_uses_both_tags_and_change_pairs_the_modes():
    rng = np.random.default_rng(6)
    refused = np.arange(40) % 2 == 0
    off, on = [chat(i, "off") for i in range(40)], [chat(i, "prefilled") for i in range(40)]
    span = np.concatenate([rng.normal(0.3, 0.03, (40, 2, 3)), rng.normal(0.2, 0.03, (40, 2, 3))])
    span[:40, 1, 1] += 0.2 * refused
    order = rng.permutation(40)  # pairs are found by request, not by place
    chats = off + [on[i] for i in order]
    spans = attention(chats, span=span)
    spans.mass[..., CLOSE] = 0.1
    found = find_refusal_heads(None, chats, labels(np.concatenate([refused, refused[order]])), attention=spans)
    first = found.of("empty_span").iloc[0]
    assert (first["name"], first["plus"]) == ("L1H1", "refused")
    assert first["mass_minus"] == pytest.approx(span[:40][~refused, 1, 1].mean() + 0.1)
    change = found.of("empty_span_change").set_index("name").loc["L0H0"]
    assert (change["plus"], change["minus"], change["n_plus"]) == ("off", "on", 40)
    difference = span[:40, 0, 0][order] - span[40:, 0, 0]
    assert change["mass_effect"] == pytest.approx(difference.mean() / difference.std(ddof=1))
    assert not found.of("empty_span_change")["candidate"].any()


def test_attention_that_moves_from_the_assistant_tag_to_the_empty_span():
    """L0H1 moves from tag to span where it refuses; L1H0 takes to the span as much, from the request."""
    rng = np.random.default_rng(3)
    refused = np.arange(40) % 2 == 0
    chats = []
    for i in range(40):
        segments = np.array([USER] * 12 + [TAG] * 3 + [OPEN] * 2 + [CLOSE] * 2)
        chats.append(Chat("", np.arange(19), segments, "off", f"request {i}", 18))
    span = rng.normal(0.2, 0.01, (40, 2, 3))
    span[:, 0, 1] += 0.1 * refused
    span[:, 1, 0] += 0.1 * refused
    spans = attention(chats, span=span)
    tag = rng.normal(0.3, 0.01, (40, 2, 3))
    tag[:, 0, 1] -= 0.1 * refused
    spans.mass[..., USER] -= tag
    spans.mass[..., TAG] = tag
    spans.lift[..., TAG] = tag * 19 / 3
    found = find_refusal_heads(None, chats, labels(refused), attention=spans)
    first, second = found.of("tag_to_span").iloc[0], found.of("tag_to_span").iloc[1]
    assert (first["name"], second["name"]) == ("L0H1", "L1H0")
    moved = (span - tag)[:, 0, 1]
    assert first["shift"] == pytest.approx(moved[refused].mean() - moved[~refused].mean())
    assert first["shift"] == pytest.approx(2 * second["shift"], abs=0.02)
    assert first["candidate"]


def test_incoherent_answers_are_left_out_and_counted():
    refused = np.arange(30) % 2 == 0
    chats = [chat(i) for i in range(36)]
    judged = [one.label for one in labels(refused)] + ["incoherent"] * 6
    found = find_refusal_heads(
        None, chats, judged, attention=attention(chats, np.random.default_rng(7).random((36, 2, 3)))
    )
    assert found.left_out == 6
    assert tuple(found.table.iloc[0][["n_plus", "n_minus"]]) == (15, 15)
    assert "6 incoherent" in found.caption()


def test_small_groups_say_what_to_do_and_an_outcome_does_it():
    rng = np.random.default_rng(8)
    chats = [chat(i) for i in range(40)]
    cot = rng.random((40, 2, 3)) * 0.9
    spans = attention(chats, cot)
    with pytest.raises(RimLensError, match=r"3 refused and 37 complied.*outcome=refusal_score"):
        find_refusal_heads(None, chats, labels(np.arange(40) < 3), attention=spans)
    score = -cot[:, 1, 0] + rng.normal(0, 0.1, 40)
    found = find_refusal_heads(None, chats, outcome=score, attention=spans)
    first = found.of("cot_divergence").iloc[0]
    assert (first["name"], first["plus"]) == ("L1H0", "more complied")
    assert first["mass_effect"] == pytest.approx(stats.spearmanr(cot[:, 1, 0], -score).statistic)


def test_contrasts_that_cannot_be_tested_are_named():
    rng = np.random.default_rng(9)
    chats = [chat(i) for i in range(20)]
    spans = attention(chats, rng.random((20, 2, 3)))
    judged = labels(np.arange(20) % 2 == 0)
    found = find_refusal_heads(None, chats, judged, attention=spans)
    assert set(found.not_tested) == {"empty_span", "tag_to_span", "empty_span_change"}
    with pytest.raises(RimLensError, match="thinking off"):
        found.of("empty_span")
    with pytest.raises(RimLensError, match="thinking off"):
        find_refusal_heads(None, chats, judged, attention=spans, contrasts=["empty_span"])
    twice = [*chats, chats[0]]
    more = attention(twice, rng.random((21, 2, 3)))
    with pytest.raises(RimLensError, match="occurs 2 times"):
        find_refusal_heads(None, twice, [*judged, judged[0]], attention=more, contrasts=["cot_divergence"])
    with pytest.raises(RimLensError, match=r"either judged= .* or outcome="):
        find_refusal_heads(None, chats, attention=spans)
    with pytest.raises(RimLensError, match="20 chats but 19 judgements"):
        find_refusal_heads(None, chats, judged[1:], attention=spans)
    with pytest.raises(RimLensError, match="Unknown label 'harmful'"):
        find_refusal_heads(None, chats, ["harmful"] * 20, attention=spans)


def test_the_result_survives_saving(tmp_path):
    chats = [chat(i) for i in range(20)]
    spans = attention(chats, np.random.default_rng(10).random((20, 2, 3)))
    found = find_refusal_heads(None, chats, labels(np.arange(20) % 2 == 0), attention=spans, n_permutations=100)
    again = RefusalHeads.load(found.save(tmp_path / "heads"))
    assert again.table.equals(found.table)
    assert again.not_tested == found.not_tested
