"""Taps against transformers' own eager attention and hidden states, and against TransformerLens' hooks."""

import itertools
from contextlib import ExitStack

import pytest
import torch
from families import FAMILIES, WINDOW, shared_model, tiny_hf, tiny_model, tiny_tokenizer
from transformers.models.gemma2 import modeling_gemma2

from rim_lens.errors import RimLensError
from rim_lens.model.attached_taps import detached
from rim_lens.model.lens_model import LensModel, shared_copy
from rim_lens.model.sites import find_sites
from rim_lens.model.taps import Tap

REQUESTS = ["How do I pick a lock?", "Tell me a long story about animals at night, please."]
COT = "let me see, hm"


class Everything(Tap):
    """Keeps all that passes by in the latest pass."""

    def on_pass(self, here):
        super().on_pass(here)
        self.rows, self.z, self.resid = {}, {}, {}

    def on_attention(self, layer, call):
        self.rows[layer] = call.rows(call.here.columns().expand(call.here.n_rows, -1))

    def on_head_output(self, layer, z):
        self.z[layer] = z.clone()

    def on_residual(self, layer, resid):
        self.resid[layer] = resid.clone()


class Neurons(Tap):
    """Keeps the neurons of the latest pass."""

    def __init__(self):
        self.post = {}

    def on_neurons(self, layer, post):
        self.post[layer] = post.clone()


class Failing(Tap):
    """Raises in the second layer."""

    def on_attention(self, layer, call):
        if layer == 1:
            raise ValueError("on purpose")

    def on_residual(self, layer, resid):
        return resid + 1


def prompts(model):
    return model.render(REQUESTS, thinking="prefilled", cot=COT)


def eager_pass(model, batch):
    """What transformers says with eager attention, on a tree of its own."""
    tree = shared_copy(model.hf)
    tree.set_attn_implementation("eager")
    inputs = {}
    blocks = find_sites(tree, model.n_layers).layers
    for i, layer in enumerate(blocks):
        layer.output.register_forward_pre_hook(lambda _, args, i=i: inputs.__setitem__(i, args[0]))
    out = tree(
        batch.tokens, **model.hf_inputs(batch.mask, batch.positions), output_attentions=True, output_hidden_states=True
    )
    return out, inputs


def gap(one, other, mask):
    """Largest difference at real query positions; `mask` is broadcast from the left of [row, pos]."""
    return torch.where(mask, one - other, 0).abs().max().item()


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_site_equals_eager_transformers(family, side):
    model = shared_model(family)
    batch = model.batch(prompts(model), side=side)
    plain = model.decision_logits(batch)
    tap = Everything()
    with model.tap(tap, backend="fast"):
        tapped = model.decision_logits(batch)
    assert torch.equal(tapped, plain), "reading must not change the pass"
    eager, inputs = eager_pass(model, batch)
    real = batch.mask
    for layer in range(model.n_layers):
        assert gap(tap.rows[layer], eager.attentions[layer], real[:, None, :, None]) < 1e-5
        z = inputs[layer].view(*real.shape, model.n_heads, model.d_head)
        assert gap(tap.z[layer], z, real[..., None, None]) < 5e-5
        assert gap(tap.resid[layer], eager.hidden_states[layer], real[..., None]) < 1e-4
    assert set(tap.resid) == set(range(model.n_layers + 1))


@pytest.mark.parametrize("family", FAMILIES)
def test_hooks_show_the_same_as_the_fast_way(family):
    model = shared_model(family)
    batch = model.batch(prompts(model))
    fast, hooks = Everything(), Everything()
    fast_neurons, hooked_neurons = Neurons(), Neurons()
    dense = not model.is_moe
    with model.tap(fast, *[fast_neurons] * dense, backend="fast"):
        fast_logits = model.decision_logits(batch)
    with model.tap(hooks, *[hooked_neurons] * dense, backend="hooks"):
        hooked_logits = model.decision_logits(batch)
    real = batch.mask
    assert (fast_logits - hooked_logits).abs().max() < 1e-4
    for layer in range(model.n_layers):
        assert gap(fast.rows[layer], hooks.rows[layer], real[:, None, :, None]) < 1e-5
        assert gap(fast.z[layer], hooks.z[layer], real[..., None, None]) < 5e-5
        if dense:
            assert gap(fast_neurons.post[layer], hooked_neurons.post[layer], real[..., None]) < 1e-4
    for depth in range(model.n_layers + 1):
        assert gap(fast.resid[depth], hooks.resid[depth], real[..., None]) < 1e-4
    assert len(fast_neurons.post) == model.n_layers * dense


@pytest.mark.parametrize("family", ["mistral", "gemma3"])
def test_a_sliding_window_hides_keys_beyond_it(family):
    model = shared_model(family)
    batch = model.batch(prompts(model)[:1])
    tap = Everything()
    with model.tap(tap):
        model.decision_logits(batch)
    last = tap.rows[0][0, :, -1]
    assert batch.tokens.shape[1] > 2 * WINDOW
    assert (last[:, :-WINDOW] == 0).all()
    assert (last[:, -WINDOW:] > 0).all()


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_decoding_steps_see_the_rows_of_a_whole_pass(family):
    model = shared_model(family)
    batch = model.batch(prompts(model))
    width, cut = batch.tokens.shape[1], batch.tokens.shape[1] - 3
    whole, step = Everything(), Everything()
    with model.tap(whole):
        model.logits(batch)

    def go(columns, cache):
        inputs = model.hf_inputs(batch.mask[:, : columns.stop], batch.positions[:, columns])
        with model.during(batch):
            return model.hf(batch.tokens[:, columns], **inputs, past_key_values=cache, use_cache=True)

    with model.tap(step):
        cache = go(slice(0, cut), None).past_key_values
        for column in range(cut, width):
            cache = go(slice(column, column + 1), cache).past_key_values
            for layer in range(model.n_layers):
                rows = step.rows[layer][:, :, 0]
                whole_row = whole.rows[layer][:, :, column, : column + 1]
                seen = slice(column + 1 - rows.shape[-1], None)  # a sliding window's cache drops the oldest keys
                torch.testing.assert_close(rows, whole_row[..., seen], atol=1e-5, rtol=0)
                assert (whole_row[..., : seen.start] == 0).all()


def restored(model):
    sites = find_sites(model.hf, model.n_layers)
    modules = [sites.trunk, *itertools.chain(*([b.block, b.attention, b.output, b.down] for b in sites.layers))]
    clean = all(not m._forward_hooks and not m._forward_pre_hooks for m in modules if m is not None)
    return clean and model.hf.config._attn_implementation in ("sdpa", "eager") and not model.active_taps


@pytest.mark.parametrize("backend", ["fast", "hooks"])
def test_nothing_is_left_after_an_exception(backend):
    model = shared_model("qwen3")
    batch = model.batch(prompts(model))
    plain = model.decision_logits(batch)
    before = model.hf.config._attn_implementation
    with pytest.raises(ValueError, match="on purpose"), model.tap(Failing(), backend=backend):
        model.decision_logits(batch)
    assert restored(model)
    assert model.hf.config._attn_implementation == before
    assert not any(point.fwd_hooks for point in model.bridge.hook_dict.values())
    assert torch.equal(model.decision_logits(batch), plain)


class Adds(Tap):
    """Adds a number to the residual stream entering one layer."""

    def __init__(self, layer, amount):
        self.layers, self.amount = frozenset({layer}), amount

    def on_residual(self, layer, resid):
        return resid + self.amount


@pytest.mark.parametrize("order", itertools.permutations(range(3)))
def test_blocks_left_in_any_order_remove_only_themselves(order):
    model = shared_model("llama")
    batch = model.batch(prompts(model))
    expected = {}
    for kept in itertools.chain.from_iterable(itertools.combinations(range(3), n) for n in range(4)):
        with ExitStack() as stack:
            for i in kept:
                stack.enter_context(model.tap(Adds(i, 0.5 + i)))
            expected[kept] = model.decision_logits(batch)
    assert len({logits.sum().item() for logits in expected.values()}) == 8
    blocks = [model.tap(Adds(i, 0.5 + i)) for i in range(3)]
    for block in blocks:
        block.__enter__()
    open_blocks = [0, 1, 2]
    for gone in order:
        blocks[gone].__exit__(None, None, None)
        open_blocks.remove(gone)
        assert torch.equal(model.decision_logits(batch), expected[tuple(open_blocks)])
    assert restored(model)


def test_an_inner_choice_of_backend_takes_the_outer_taps_along():
    model = shared_model("llama")
    batch = model.batch(prompts(model))
    outer, inner = Adds(1, 0.7), Everything()
    with model.tap(outer):
        fast = model.decision_logits(batch)
        with model.tap(inner, backend="hooks"):
            assert outer.backend == "hooks"
            hooked = model.decision_logits(batch)
        assert outer.backend == "fast"
        assert torch.equal(model.decision_logits(batch), fast)
    torch.testing.assert_close(hooked, fast, atol=1e-4, rtol=0)
    assert inner.resid


def test_one_tap_cannot_be_attached_twice():
    model, tap = shared_model("llama"), Adds(0, 1.0)
    with model.tap(tap), pytest.raises(RimLensError, match="attached already"), model.tap(tap):
        pass
    assert restored(model)


class NotAsDocumented(Tap):
    """Reads the pattern of the first layer."""

    layers = frozenset({0})

    def on_attention(self, layer, call):
        call.rows(call.here.columns()[-1:].expand(call.here.n_rows, 1))


def test_attention_of_another_formula_is_refused(monkeypatch):
    original = modeling_gemma2.eager_attention_forward

    def twice_as_sharp(module, query, *args, **kwargs):
        return original(module, 2 * query, *args, **kwargs)

    monkeypatch.setattr(modeling_gemma2, "eager_attention_forward", twice_as_sharp)
    model = tiny_model("gemma2")
    batch = model.batch(prompts(model))
    with model.tap(NotAsDocumented()), pytest.raises(RimLensError, match="something else"):
        model.decision_logits(batch)
    assert restored(model)


class HidesEverything(Tap):
    """Hides all keys from head 1 of the first layer."""

    layers = frozenset({0})

    def on_keys(self, layer, call):
        hidden = torch.zeros(1, call.n_heads, 1, call.n_keys, dtype=torch.bool)
        hidden[:, 1] = True
        call.block(hidden)


@pytest.mark.parametrize("backend", ["fast", "hooks"])
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_head_that_sees_no_key_writes_nothing(family, backend):
    model = shared_model(family)
    batch = model.batch(prompts(model))
    tap, plain = Everything(), Everything()
    with model.tap(plain, backend=backend):
        model.decision_logits(batch)
    with model.tap(tap, HidesEverything(), backend=backend):
        model.decision_logits(batch)
    assert (tap.z[0][:, :, 1] == 0).all()
    assert (tap.rows[0][:, 1] == 0).all()
    others = [0, 2, 3]
    assert torch.equal(tap.z[0][:, :, others][batch.mask], plain.z[0][:, :, others][batch.mask])


def test_taps_must_name_layers_that_have_the_site():
    model = shared_model("qwen3_next")  # layers 0 and 2 are linear attention, all are mixtures of experts
    batch = model.batch(prompts(model))
    tap = Everything()
    with model.tap(tap):
        model.decision_logits(batch)
    assert set(tap.rows) == set(tap.z) == {1}
    named = Everything()
    named.layers = frozenset({0})
    with pytest.raises(RimLensError, match="layer 0 has no"), model.tap(named):
        pass
    with pytest.raises(RimLensError, match="mixture of experts"), model.tap(Neurons()):
        pass
    assert restored(model)


def test_a_model_without_attention_interface_goes_through_hooks(monkeypatch):
    model = LensModel("old", tiny_tokenizer(), hf=tiny_hf("llama"))
    monkeypatch.setattr(type(model.hf), "_can_set_attn_implementation", classmethod(lambda cls: False))
    tap = Everything()
    with model.tap(tap):
        assert tap.backend == "hooks"
    with pytest.raises(RimLensError, match='backend="fast"'), model.tap(Everything(), backend="fast"):
        pass


def test_rows_outside_the_pass_are_an_error():
    model = shared_model("llama")
    batch = model.batch(prompts(model))

    class Late(Tap):
        def on_attention(self, layer, call):
            call.rows(torch.full((call.here.n_rows, 1), call.here.stop))

    with model.tap(Late()), pytest.raises(RimLensError, match="this pass computes"):
        model.decision_logits(batch)


def test_an_object_with_hooks_only_is_read_through_them():
    whole = shared_model("qwen2")
    model = LensModel("hooks-only", tiny_tokenizer(), bridge=whole.bridge)
    batch = model.batch(prompts(model))
    tap, reference = Everything(), Everything()
    with model.tap(tap):
        assert tap.backend == "hooks"
        logits = model.decision_logits(batch)
    with whole.tap(reference):
        torch.testing.assert_close(logits, whole.decision_logits(batch), atol=1e-4, rtol=0)
    for layer in range(model.n_layers):
        assert gap(tap.rows[layer], reference.rows[layer], batch.mask[:, None, :, None]) < 1e-5
    with pytest.raises(RimLensError, match='backend="fast"'), model.tap(Everything(), backend="fast"):
        pass


def test_a_tree_copied_while_detached_carries_no_taps():
    model = shared_model("llama")
    batch = model.batch(prompts(model))
    plain = model.decision_logits(batch)
    with model.tap(Adds(0, 1.0), Everything()):
        changed = model.decision_logits(batch)
        with detached(model):
            tree = shared_copy(model.hf)
        assert torch.equal(model.decision_logits(batch), changed)
    inputs = model.hf_inputs(batch.mask, batch.positions)
    untouched = tree(batch.tokens, **inputs).logits[torch.arange(2), batch.decision]
    torch.testing.assert_close(untouched, plain, atol=1e-4, rtol=0)
    assert (changed - plain).abs().max() > 1e-2
