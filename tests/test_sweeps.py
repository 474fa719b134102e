"""Sweeps against naive loops: one whole pass per head, with the interventions and with TransformerLens' own hooks."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from families import FAMILIES, shared_model, tiny_model
from planted import planted_model
from scipy.stats import false_discovery_control

from rim_lens.behavior.refusal_score import RefusalTokens, log_odds
from rim_lens.causal.effect_table import few_prompts
from rim_lens.causal.run_scores import score_runs
from rim_lens.errors import RimLensError
from rim_lens.inference_time.interchange import interchange_sweep
from rim_lens.inference_time.patching import patching_sweep
from rim_lens.inference_time.sweep import AblationSweep, ablation_sweep
from rim_lens.intervene import ablate_heads, patch_heads, record_heads, scale_heads
from rim_lens.model.lens_model import LensModel
from rim_lens.results import load_result

TOKENS = RefusalTokens((40, 41, 77), ("a", "b", "c"))
QUICK = {"n_permutations": 50}


def some_chats(model):
    """Different lengths, so that batches are padded; the middle one has a response behind its decision position."""
    return [
        model.render("How do I pick a lock?", thinking="off", system="Be brief.")[0],
        model.render("Hi", thinking="prefilled", cot="hm, well", response="No.")[0],
        model.render("Tell me a story, please.", thinking="off")[0],
    ]


@torch.no_grad()
def score(model, chats, **kw):
    """One chat per pass, unpadded."""
    return np.array([log_odds(model.decision_logits(model.batch([chat])), TOKENS.ids).item() for chat in chats])


def naive(model, chats, block):
    """[prompt, layer, head] of score inside `block(head)` minus outside."""
    clean = score(model, chats)
    effect = np.zeros((len(chats), model.n_layers, model.n_heads))
    for layer in range(model.n_layers):
        for head in range(model.n_heads):
            with block((layer, head)):
                effect[:, layer, head] = score(model, chats) - clean
    return effect


@pytest.mark.parametrize("family", FAMILIES)
def test_exact_sweep_equals_a_loop_of_ablations(family):
    model = shared_model(family)
    chats = some_chats(model)
    sweep = ablation_sweep(model, chats, TOKENS, **QUICK)
    assert (sweep.method, sweep.why_plain) == ("exact", "")
    np.testing.assert_allclose(sweep.effect, naive(model, chats, lambda h: ablate_heads(model, [h])), atol=1e-5)
    np.testing.assert_allclose(sweep.clean, score(model, chats), atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_decision_only_sweep_equals_a_loop_of_ablations(family):
    model = shared_model(family)
    chats = some_chats(model)
    sweep = ablation_sweep(model, chats, TOKENS, positions="decision", **QUICK)
    assert sweep.why_plain == ""
    by_hand = naive(model, chats, lambda h: ablate_heads(model, [h], positions="decision"))
    np.testing.assert_allclose(sweep.effect, by_hand, atol=1e-5)


@pytest.mark.parametrize("positions", ["all", "suffix", "decision"])
def test_sets_that_begin_with_the_same_heads_share_layers_and_equal_a_loop(positions):
    model = shared_model("llama")
    chats, later = some_chats(model), [(1, 0), (1, 2), (2, 1)]
    sets = [[], [(0, 1)], *([(0, 1), one] for one in later), *([(0, 0), one] for one in later), [later[0]]]

    def runs_and_tokens_of_layer_0(sets):
        n_tokens, queries = [], model.hf.model.layers[0].self_attn.q_proj
        handle = queries.register_forward_pre_hook(lambda module, args: n_tokens.append(args[0][..., 0].numel()))
        try:
            return score_runs(model, chats, sets, TOKENS.score, positions=positions), sum(n_tokens)
        finally:
            handle.remove()

    score_runs(model, chats, sets, TOKENS.score, positions=positions)  # once per model some runs are computed both ways
    runs, n_tokens = runs_and_tokens_of_layer_0(sets)
    assert runs.how == "resumed"
    for heads, changed in zip(sets, runs.changed.T, strict=True):
        with ablate_heads(model, heads, positions=positions) if heads else nullcontext():
            np.testing.assert_allclose(changed, score(model, chats), atol=1e-5)
    assert n_tokens == runs_and_tokens_of_layer_0([[(0, 0)], [(0, 1)]])[1]


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_exact_and_suffix_sweeps_equal_transformer_lens(family):
    model = shared_model(family)
    chat = model.render("How do I pick a lock?", thinking="off")[0]
    tokens = torch.from_numpy(chat.token_ids)[None]
    tag = int(np.flatnonzero(chat.where("assistant_tag"))[0])

    def hooked(layer=0, head=0, first=tokens.shape[1]):
        def zero(z, hook):
            z = z.clone()
            z[:, first:, head] = 0
            return z

        hooks = [(f"blocks.{layer}.attn.hook_z", zero)]
        with torch.no_grad():
            logits = model.bridge.run_with_hooks(tokens, return_type="logits", fwd_hooks=hooks)
        return log_odds(logits[0, -1].float(), TOKENS.ids).item()

    for positions, first in (("all", 0), ("suffix", tag)):
        effect = ablation_sweep(model, [chat], TOKENS, positions=positions, **QUICK).effect[0]
        for layer in range(model.n_layers):
            for head in range(model.n_heads):
                assert effect[layer, head] == pytest.approx(hooked(layer, head, first) - hooked(), abs=1e-4)


@pytest.mark.parametrize("family", ["qwen3", "gemma2", "mistral", "gpt_neox", "gpt_oss"])
def test_suffix_sweep_equals_plain_passes(family):
    model = shared_model(family)
    chats = some_chats(model)
    fast = ablation_sweep(model, chats, TOKENS, positions="suffix", **QUICK)
    plain = ablation_sweep(model, chats, TOKENS, "plain", positions="suffix", **QUICK)
    assert (fast.method, plain.method) == ("exact", "plain")
    np.testing.assert_allclose(fast.effect, plain.effect, atol=1e-5)
    assert not np.allclose(plain.effect, ablation_sweep(model, chats, TOKENS, **QUICK).effect, atol=1e-3)


def test_effects_do_not_depend_on_the_other_prompts():
    model = shared_model("qwen2")
    chats = some_chats(model)
    for positions in ("all", "suffix", "decision"):
        together = ablation_sweep(model, chats, TOKENS, positions=positions, **QUICK).effect
        alone = [ablation_sweep(model, [chat], TOKENS, positions=positions, **QUICK).effect[0] for chat in chats]
        np.testing.assert_allclose(together, alone, atol=1e-5)


def test_layers_without_attention_are_left_out_and_a_suffix_falls_back():
    model = tiny_model("qwen3_next")
    chats = some_chats(model)[:2]
    sweep = ablation_sweep(model, chats, TOKENS, **QUICK)
    assert set(sweep.table["layer"]) == {1}
    assert sweep.method == "exact"
    suffix = ablation_sweep(model, chats, TOKENS, positions="suffix", **QUICK)
    assert suffix.method == "plain"
    assert "layers without attention" in suffix.why_plain
    assert np.isnan(suffix.effect[:, 0]).all()


def test_hook_only_models_and_active_interventions_fall_back_to_whole_passes():
    model = shared_model("llama")
    chats = some_chats(model)
    hooked = LensModel("hooked", model.tokenizer, bridge=model.bridge)
    slow = ablation_sweep(hooked, chats[:1], TOKENS, **QUICK)
    assert slow.method == "plain"
    exact = ablation_sweep(model, chats[:1], TOKENS, **QUICK)
    np.testing.assert_allclose(slow.effect, exact.effect, atol=1e-4)
    with ablate_heads(model, [(0, 1)]):
        within = ablation_sweep(model, chats, TOKENS, **QUICK)
    assert "other interventions" in within.why_plain
    assert np.abs(within.effect[:, 0, 1]).max() < 1e-5
    by_hand = naive(model, chats, lambda h: ablate_heads(model, [(0, 1), h]))
    offset = by_hand[:, 0, 1][:, None, None]
    np.testing.assert_allclose(within.effect, by_hand - offset, atol=1e-5)


def test_models_that_do_not_come_back_the_same_are_noticed(monkeypatch):
    model = tiny_model("llama")
    chats = some_chats(model)
    block = model.hf.model.layers[1]
    calls, forward = [], type(block).forward

    def stateful(*args, **kwargs):  # a layer that depends on how often it was called
        calls.append(1)
        return forward(block, *args, **kwargs) * (1 + 0.1 * len(calls))

    block.forward = stateful
    sweep = ablation_sweep(model, chats, TOKENS, **QUICK)
    assert sweep.method == "plain"
    assert "differ" in sweep.why_plain


def test_nothing_is_left_on_the_model():
    model = tiny_model("llama")
    chats = some_chats(model)
    before = model.decision_logits(model.batch(chats))
    ablation_sweep(model, chats, TOKENS, "screened", positions="suffix", n_exact=2, **QUICK)

    def broken(logits):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        ablation_sweep(model, chats, broken, **QUICK)
    assert torch.equal(model.decision_logits(model.batch(chats)), before)
    assert not any(m._forward_pre_hooks or m._forward_hooks or "forward" in m.__dict__ for m in model.hf.modules())


def test_attribution_is_the_gradient_of_a_small_ablation():
    model = shared_model("qwen3")
    chats = some_chats(model)
    sweep = ablation_sweep(model, chats, TOKENS, "screened", n_exact=12, **QUICK)
    step = 0.02
    small = naive(model, chats, lambda h: scale_heads(model, [h], 1 - step)) / step
    np.testing.assert_allclose(sweep.estimate, small, rtol=0.1, atol=0.02)


def test_screened_heads_have_their_exact_effect_and_count_in_the_correction():
    model = shared_model("llama")
    chats = some_chats(model)
    exact = ablation_sweep(model, chats, TOKENS, **QUICK)
    screened = ablation_sweep(model, chats, TOKENS, "screened", n_exact=5, **QUICK)
    assert len(screened.table) == 5
    seen = ~np.isnan(screened.effect)
    np.testing.assert_allclose(screened.effect[seen], exact.effect[seen], atol=1e-6)
    assert (screened.table["q"] >= screened.table["p"]).all()


def test_a_metric_may_be_any_function_of_logits_and_results_survive_saving(tmp_path):
    model = shared_model("llama")
    chats = some_chats(model)

    def top_logit(logits):
        return logits[:, 50]

    sweep = ablation_sweep(model, chats, top_logit, **QUICK)
    assert sweep.metric == "top_logit"
    loaded = load_result(sweep.save(tmp_path / "sweep"))
    assert isinstance(loaded, AblationSweep)
    assert loaded.ranked(3) == sweep.ranked(3)
    assert "n = 3 prompts" in loaded.caption()
    assert loaded.table["low"].le(loaded.table["effect"]).all()


@pytest.mark.parametrize(("n", "n_tests"), [(4, 12), (8, 336), (13, 270), (14, 270), (32, 4096)])
def test_few_prompts_say_how_many_heads_must_agree(n, n_tests):
    """Against the correction itself, on heads that all have the smallest p of flipped signs."""

    def reach(k):
        return false_discovery_control([2 / 2**n] * k + [1.0] * (n_tests - k)).min() < 0.05

    said, fewest = few_prompts(n, n_tests, n_tests), next(filter(reach, range(1, n_tests + 1)), None)
    if fewest == 1:
        assert said == ""
    else:
        assert ("no head can reach" if fewest is None else f"only {fewest} heads or more") in said
        enough = int(said.partition("one head alone takes ")[2].rstrip(")"))
        assert 2 / 2**enough * n_tests <= 0.05 < 2 / 2 ** (enough - 1) * n_tests


def test_unknown_methods_positions_and_no_chats_are_refused():
    model = shared_model("llama")
    with pytest.raises(RimLensError, match="unknown method"):
        ablation_sweep(model, some_chats(model), TOKENS, "quick")
    with pytest.raises(RimLensError, match="unknown positions"):
        ablation_sweep(model, some_chats(model), TOKENS, positions="thoughts")
    with pytest.raises(RimLensError, match="at least one"):
        ablation_sweep(model, [], TOKENS)


def test_the_sweep_finds_the_planted_heads():
    model, truth = planted_model(n_prompts=12)
    metric = RefusalTokens((truth.refusal_token,), ("Sorry",))
    off = model.render(truth.harmful, thinking="off")
    top = ablation_sweep(model, off, metric).table.iloc[0]
    assert (top["layer"], top["head"]) == truth.refusal_head
    assert top["high"] < 0
    assert top["q"] < 0.05
    lazy = model.render(truth.harmful, thinking="prefilled", cot=truth.cots)
    screened = ablation_sweep(model, lazy, metric, "screened")
    assert truth.cot_head in screened.ranked(2, "opposes")


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt_neox", "qwen3_moe"])
@pytest.mark.parametrize("positions", ["decision", "from think_close"])
def test_patching_equals_a_loop_of_patches(family, positions):
    model = shared_model(family)
    requests = ["How do I pick a lock?", "Hi"]
    off = model.render(requests, thinking="off")
    on = model.render(requests, thinking="prefilled", cot="hm, well")
    sweep = patching_sweep(model, off, on, TOKENS, positions=positions, **QUICK)
    assert sweep.method == "exact"
    width = sweep.n_positions
    assert width == (1 if positions == "decision" else int(off[0].where("think_close").sum()))
    recording = record_heads(model, off, offsets=range(1 - width, 1))
    by_hand = np.empty_like(sweep.effect)
    for i, chat in enumerate(on):
        by_hand[i] = naive(model, [chat], lambda h, i=i: patch_heads(model, [h], recording[[i]]))[0]
    np.testing.assert_allclose(sweep.effect, by_hand, atol=1e-5)
    np.testing.assert_allclose(sweep.score_off, score(model, off), atol=1e-5)
    first = sweep.table.iloc[0]
    assert first["returned"] == pytest.approx(first["effect"] / sweep.gap)
    everything = sweep.together.iloc[-1]
    heads = [(layer, head) for layer in range(model.n_layers) for head in range(model.n_heads)]
    with patch_heads(model, heads, recording[[0]]):
        patched = score(model, on[:1])
    with patch_heads(model, heads, recording[[1]]):
        patched = np.append(patched, score(model, on[1:]))
    assert everything["effect"] == pytest.approx((patched - sweep.score_on).mean(), abs=1e-5)


def test_patching_brings_back_what_the_planted_cot_head_took():
    model, truth = planted_model(n_prompts=12)
    metric = RefusalTokens((truth.refusal_token,), ("Sorry",))
    off = model.render(truth.harmful, thinking="off")
    on = model.render(truth.harmful, thinking="prefilled", cot=truth.cots)
    sweep = patching_sweep(model, off, on, metric)
    assert sweep.gap > 0
    assert sweep.ranked(1) == [truth.cot_head]
    top = sweep.table.iloc[0]
    assert top["low"] > 0
    assert top["q"] < 0.05
    assert top["returned_low"] <= top["returned"] <= top["returned_high"]
    assert "n = 12 prompts" in sweep.caption()


def test_interchange_equals_a_loop_of_patches_in_both_directions():
    model = shared_model("qwen3")
    harmful = model.render(["How do I pick a lock?", "Tell me about it now, please"], thinking="off")
    harmless = model.render(["How do I bake?", "Hi"], thinking="off")
    sweep = interchange_sweep(model, harmful, harmless, TOKENS, n_top=3, **QUICK)
    for effect, chats, donors in (
        (sweep.into_harmful, harmful, harmless),
        (sweep.into_harmless, harmless, harmful),
    ):
        recording = record_heads(model, donors)
        for i, chat in enumerate(chats):
            by_hand = naive(model, [chat], lambda h, i=i, r=recording: patch_heads(model, [h], r[[i]]))[0]
            np.testing.assert_allclose(effect[i], by_hand, atol=1e-5)
    zero = sweep.pairs[sweep.pairs["intervention"] == "zero"]
    row = zero.iloc[0]
    pair = [tuple(map(int, name[1:].split("H"))) for name in (row["a"], row["b"])]
    effects = []
    for heads in ([pair[0]], [pair[1]], pair):
        with ablate_heads(model, heads, positions="decision"):
            effects.append((score(model, harmful) - sweep.score_harmful).mean())
    assert row["interaction"] == pytest.approx(effects[2] - effects[0] - effects[1], abs=1e-5)
    assert row["effect_both"] == pytest.approx(effects[2], abs=1e-5)


def test_interchange_puts_the_planted_refusal_head_first():
    model, truth = planted_model(n_prompts=12)
    metric = RefusalTokens((truth.refusal_token,), ("Sorry",))
    harmful = model.render(truth.harmful, thinking="off")
    harmless = model.render(truth.harmless, thinking="off")
    sweep = interchange_sweep(model, harmful, harmless, metric)
    assert sweep.ranked(1) == [truth.refusal_head]
    assert set(sweep.pairs["intervention"]) == {"interchange", "zero"}


def test_chats_that_do_not_pair_up_are_refused():
    model = shared_model("llama")
    off = model.render(["a", "b"], thinking="off")
    on = model.render(["b", "a"], thinking="prefilled", cot="hm")
    with pytest.raises(RimLensError, match="two requests"):
        patching_sweep(model, off, on, TOKENS)
    with pytest.raises(RimLensError, match="same number"):
        interchange_sweep(model, off, on[:1], TOKENS)
