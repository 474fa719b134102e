"""Checkpoints.

What is in the model after a swap is what loading the checkpoint by itself gives, and it can be taken out.
"""

import hashlib
import json
import shutil

import numpy as np
import pytest
import torch
from families import tiny_hf, tiny_tokenizer
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from rim_lens.errors import RimLensError
from rim_lens.model.load import load_model
from rim_lens.training_time.checkpoints import Checkpoints

TARGETS = {"llama": ["q_proj", "down_proj"], "gpt2": ["c_attn", "c_proj"]}


def save_adapter(folder, base, seed, family="llama", **options):
    """A LoRA adapter with random matrices on the model saved in `base`."""
    torch.manual_seed(seed)
    config = LoraConfig(
        **{"r": 4, "lora_alpha": 12, "target_modules": TARGETS[family], "task_type": "CAUSAL_LM", **options}
    )
    model = load_model(base).hf
    model.name_or_path = str(base)
    adapted = get_peft_model(model, config)
    for name, value in adapted.named_parameters():
        if "lora_" in name:
            value.data.normal_(0, 0.3)
    adapted.save_pretrained(folder)
    return folder


def save_model(folder, family="llama", seed=0, **overrides):
    tiny_hf(family, seed, **overrides).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base, two adapters and a full checkpoint."""
    root = tmp_path_factory.mktemp("checkpoints")
    base = save_model(root / "base")
    save_adapter(root / "step-2", base, 1)
    save_adapter(root / "step-10", base, 2, target_modules=["q_proj", "up_proj"], use_rslora=True)
    save_model(root / "full", seed=3)
    return root


def parameters(model):
    return {name: value.clone() for name, value in model.hf.named_parameters()}


def assert_equal(model, expected, atol=0.0):
    for name, value in model.hf.named_parameters():
        torch.testing.assert_close(
            value, expected[name], atol=atol, rtol=0, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_every_checkpoint_equals_loading_it_alone(folder):
    series = Checkpoints([folder / "step-2", folder / "full", folder / "step-10"], base=str(folder / "base"))
    assert series.names == ["base", "step-2", "full", "step-10"]
    assert series.reference.name == "base"
    model = series.open()
    before = parameters(model)
    storage = {name: value.data_ptr() for name, value in model.hf.named_parameters()}
    alone = {
        "base": load_model(folder / "base"),
        "step-2": load_model(folder / "base", adapter=folder / "step-2"),
        "full": load_model(folder / "full"),
        "step-10": load_model(folder / "base", adapter=folder / "step-10"),
    }
    for checkpoint, shown in series.loaded(model):
        assert shown is model
        assert_equal(model, parameters(alone[checkpoint.name]), atol=1e-6)
        assert model.fingerprint == alone[checkpoint.name].fingerprint or checkpoint.name.startswith("step")
        assert storage == {name: value.data_ptr() for name, value in model.hf.named_parameters()}
    assert_equal(model, before)


def test_the_bridge_shows_the_checkpoint(folder):
    model = load_model(folder / "base")
    batch = model.batch(model.render(["hello"]))
    series = Checkpoints([folder / "step-2"])
    model.bridge  # noqa: B018 - booted before the swap
    for checkpoint, _ in series.loaded(model):
        if checkpoint.name == "step-2":
            expected = model.decision_logits(batch)
            seen = model.bridge(batch.tokens, attention_mask=batch.mask.long())[:, -1]
            torch.testing.assert_close(seen, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("leave", ["break", "raise"])
def test_the_model_is_restored_when_the_loop_is_left(folder, leave):
    series = Checkpoints([folder / "step-2", folder / "full"], base=str(folder / "base"))
    model = series.open()
    before = parameters(model)
    try:
        for number, _ in enumerate(series.loaded(model)):
            if number == 1 and leave == "break":
                break
            if number == 1:
                raise KeyError
    except KeyError:
        pass
    assert_equal(model, before)


def test_the_loop_returns_to_the_checkpoint_loaded_before(folder):
    series = Checkpoints([folder / "step-2", folder / "step-10"], reference="step-2")
    model = series.load(load_model(folder / "base"), series.reference)
    before = parameters(model)
    assert [checkpoint.name for checkpoint, _ in series.loaded(model)] == ["step-2", "step-10"]
    assert_equal(model, before)


def test_conv1d_patterns_and_saved_modules(tmp_path):
    base = save_model(tmp_path / "base", "gpt2", tie_word_embeddings=False)
    options = {"alpha_pattern": {"mlp.c_proj": 3}, "rank_pattern": {"mlp.c_proj": 2}, "fan_in_fan_out": True}
    save_adapter(tmp_path / "lora", base, 5, "gpt2", **options, modules_to_save=["lm_head"])
    weights = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    weights["base_model.model.lm_head.weight"] += 1
    save_file(weights, tmp_path / "lora" / "adapter_model.safetensors")
    model = load_model(base)
    Checkpoints([tmp_path / "lora"]).load(model, "lora")
    assert_equal(model, parameters(load_model(base, adapter=tmp_path / "lora")), atol=1e-6)


def test_adapters_are_not_added_on_top_of_a_merged_one(folder):
    model = load_model(folder / "base", adapter=folder / "step-2")
    with pytest.raises(RimLensError, match="would be added on top"):
        Checkpoints([folder / "step-10"], base=str(folder / "base")).load(model, "step-10")
    Checkpoints([folder / "full"]).load(model, "full")  # whole weights replace what was merged
    assert_equal(model, parameters(load_model(folder / "full")))


def test_a_mixture_of_experts_is_swapped_whole(tmp_path):
    save_model(tmp_path / "a", "qwen3_moe", seed=0)
    save_model(tmp_path / "b", "qwen3_moe", seed=1)
    model = load_model(tmp_path / "a")
    before = parameters(model)
    for checkpoint, _ in Checkpoints([tmp_path / "b"]).loaded(model):
        if checkpoint.name == "b":
            assert_equal(model, parameters(load_model(tmp_path / "b")))
    assert_equal(model, before)


def test_distance_is_the_relative_norm_of_the_difference(folder):
    series = Checkpoints([folder / "step-2", folder / "full", folder / "step-10"], base=str(folder / "base"))
    model = series.open()
    flat = {
        checkpoint.name: torch.cat([value.flatten() for value in parameters(model).values()]).double()
        for checkpoint, _ in series.loaded(model)
    }
    for checkpoint, _ in series.loaded(model):
        for other in ("base", "step-2", "full"):
            expected = (flat[checkpoint.name] - flat[other]).norm() / flat[other].norm()
            assert series.distance(model, other) == pytest.approx(float(expected), abs=1e-6)


def test_a_folder_with_series_json(folder, tmp_path):
    for name in ("step-2", "step-10"):
        shutil.copytree(folder / name, tmp_path / name)
    sums = {
        n: hashlib.sha256((tmp_path / n / "adapter_model.safetensors").read_bytes()).hexdigest()
        for n in ("step-2", "step-10")
    }
    entries = [
        {"name": n, "arm": "plain", "step": s, "label": f"plain, {s}", "sha256": sums[n]}
        for n, s in (("step-2", 2), ("step-10", 10))
    ]
    document = {"base": str(folder / "base"), "reference": "step-2", "checkpoints": entries}
    (tmp_path / "series.json").write_text(json.dumps(document))
    series = Checkpoints.from_folder(tmp_path)
    assert (series.names, series.reference.name, series["step-10"].step) == (["step-2", "step-10"], "step-2", 10)
    assert str(series[1]) == "plain, 10"
    series.open()
    (tmp_path / "short.json").write_text(json.dumps(document | {"checkpoints": entries[:1]}))
    assert Checkpoints.from_folder(tmp_path / "short.json").names == ["step-2"]
    path = tmp_path / "step-10" / "adapter_model.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(bytes(raw))
    with pytest.raises(RimLensError, match="changed or damaged"):
        Checkpoints.from_folder(tmp_path).open()


def test_a_folder_without_series_json_is_read_in_the_order_of_steps(folder):
    series = Checkpoints.from_folder(folder)
    assert series.names == ["base", "full", "step-2", "step-10"]
    assert series["step-10"].step == 10


def test_mismatches_are_errors_before_any_work(folder, tmp_path):
    narrow = save_model(tmp_path / "narrow", hidden_size=16)
    other_words = tmp_path / "words"
    shutil.copytree(folder / "full", other_words)
    tokenizer = json.loads((other_words / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["!"], vocabulary["#"] = vocabulary["#"], vocabulary["!"]
    (other_words / "tokenizer.json").write_text(json.dumps(tokenizer))
    broken = tmp_path / "broken"
    shutil.copytree(folder / "step-2", broken)
    (broken / "adapter_model.safetensors").write_bytes(b"no weights")
    save_adapter(tmp_path / "corda", folder / "base", 4)
    settings = json.loads((tmp_path / "corda" / "adapter_config.json").read_text())
    (tmp_path / "corda" / "adapter_config.json").write_text(json.dumps(settings | {"init_lora_weights": "corda"}))
    model = load_model(folder / "base")
    before = parameters(model)
    for bad, message in (
        (narrow, "does not fit the model"),
        (other_words, "another tokenizer"),
        (broken, "cannot be read"),
        (tmp_path / "corda", "takes a part out of the base weights"),
        (tmp_path / "absent", "check the path"),
    ):
        shown = []
        with pytest.raises(RimLensError, match=message):
            shown.extend(Checkpoints([folder / "step-2", bad]).loaded(model))
        assert shown == []
        assert_equal(model, before)
    other = load_model(save_model(tmp_path / "other", "gpt2"))
    with pytest.raises(RimLensError, match="another base model"):
        Checkpoints([folder / "step-2"]).check(other)


def test_names_and_reference_are_explicit(folder):
    with pytest.raises(RimLensError, match="Two checkpoints are named"):
        Checkpoints([folder / "full", str(folder / "full")])
    with pytest.raises(RimLensError, match="none of the checkpoints"):
        Checkpoints([folder / "full"], reference="step-3")
    series = Checkpoints({"first": folder / "full", "second": "org/model@v2"}, reference="first")
    assert (series["second"].source, series["second"].revision) == ("org/model", "v2")
    assert series.only(["first"]).names == ["first"]
    with pytest.raises(RimLensError, match="no checkpoint 'third'"):
        series["third"]


def test_a_failed_swap_leaves_the_base(folder, monkeypatch):
    series = Checkpoints([folder / "step-2"], base=str(folder / "base"))
    model = series.open()
    before = parameters(model)
    stored = series.weights(model, series["step-2"])
    wanted = stored.names[-1]
    value = type(stored).value
    monkeypatch.setattr(
        type(stored), "value", lambda self, name, base: 1 / 0 if name == wanted else value(self, name, base)
    )
    with pytest.raises(ZeroDivisionError):
        series.load(model, "step-2")
    assert_equal(model, before)
    assert np.isfinite(series.distance(model))


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("rope_parameters.rope_theta", {"rope_parameters": {"rope_type": "default", "rope_theta": 300000.0}}),
        ("rope_parameters", {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}}),
        ("rms_norm_eps", {"rms_norm_eps": 0.5}),
        ("num_attention_heads", {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 4}),
        ("hidden_act", {"hidden_act": "gelu"}),
        ("tie_word_embeddings", {"tie_word_embeddings": True}),
    ],
)
def test_a_checkpoint_of_another_config_is_refused_by_the_field(folder, tmp_path, name, changed):
    other = save_model(tmp_path / "other", seed=3, **changed)
    with pytest.raises(RimLensError, match=name):
        Checkpoints([other], base=str(folder / "base")).open()


def test_fields_without_effect_do_not_keep_a_checkpoint_out(folder, tmp_path):
    other = save_model(tmp_path / "other", seed=3, attention_dropout=0.5, max_position_embeddings=1024, use_cache=False)
    series = Checkpoints([other], base=str(folder / "base"))
    assert_equal(series.load(series.open(), "other"), parameters(load_model(other)))


def test_a_file_beside_the_weights_is_not_read(folder, tmp_path):
    other = save_model(tmp_path / "other", seed=3)
    save_file({k: v + 1 for k, v in load_file(other / "model.safetensors").items()}, other / "optimizer.safetensors")
    series = Checkpoints([other], base=str(folder / "base"))
    assert_equal(series.load(series.open(), "other"), parameters(load_model(other)))


def test_a_head_stored_apart_from_the_embedding_it_is_tied_to(tmp_path):
    base = save_model(tmp_path / "base", tie_word_embeddings=True)
    other = save_model(tmp_path / "other", seed=3, tie_word_embeddings=True)
    tensors = load_file(other / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RimLensError, match=r"lm_head\.weight apart from model\.embed_tokens"):
        Checkpoints([other], base=str(base)).open()


def test_buffers_that_are_stored_are_swapped_too(tmp_path):
    made = {}
    for seed, name in ((0, "a"), (1, "b")):
        hf = tiny_hf("deepseek_v3", seed)
        biases = [value for key, value in hf.named_buffers() if key.endswith("e_score_correction_bias")]
        assert biases
        for bias in biases:
            bias.copy_(torch.randn(bias.shape, generator=torch.Generator().manual_seed(seed)))
        hf.save_pretrained(tmp_path / name)
        tiny_tokenizer().save_pretrained(tmp_path / name)
        made[name] = load_model(tmp_path / name)
    series = Checkpoints([tmp_path / "b"], base=str(tmp_path / "a"))
    model = series.open()
    for checkpoint, _ in series.loaded(model):
        alone = made["b" if checkpoint.name == "b" else "a"]
        assert model.fingerprint == alone.fingerprint
        ids = torch.arange(3, 40)[None]
        torch.testing.assert_close(model.hf(ids).logits, alone.hf(ids).logits, atol=0, rtol=0)


def test_another_chat_template_is_said(folder, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(folder / "full", other)
    (other / "chat_template.jinja").write_text((other / "chat_template.jinja").read_text() + "{# its own #}")
    with pytest.warns(UserWarning, match="another chat template"):
        Checkpoints([other], base=str(folder / "base")).open()
