"""Every kind of adapter that PEFT has: PEFT's own logits, alone and in a series, or refused by name.

Never anything between.
"""

import json
import warnings
from pathlib import Path

import pytest
import torch
from families import tiny_hf, tiny_tokenizer
from peft import LoraConfig, PeftType, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from tokenizers import AddedToken

from rim_lens.errors import RimLensError
from rim_lens.model import load
from rim_lens.model.load import load_model
from rim_lens.training_time.checkpoints import Checkpoints

TARGETS = ["q_proj", "v_proj", "down_proj"]
VIRTUAL = {"num_virtual_tokens": 3}
OPTIONS = {
    "PROMPT_TUNING": VIRTUAL,
    "P_TUNING": VIRTUAL | {"encoder_hidden_size": 16},
    "PREFIX_TUNING": VIRTUAL,
    "CARTRIDGE": VIRTUAL,
    "CPT": {"cpt_token_ids": [1, 2, 3], "cpt_mask": [1, 1, 1], "cpt_tokens_type_mask": [1, 1, 1]},
    "ADAPTION_PROMPT": {"adapter_len": 3, "adapter_layers": 1},
    "ADALORA": {"total_step": 100, "target_modules": TARGETS},
    "TRAINABLE_TOKENS": {"target_modules": ["embed_tokens"], "token_indices": [5, 9]},
    "LN_TUNING": {"target_modules": ["input_layernorm"]},
    "OFT": {"oft_block_size": 4, "r": 0, "target_modules": TARGETS},
    "IA3": {"target_modules": TARGETS, "feedforward_modules": ["down_proj"]},
    "VBLORA": {"target_modules": TARGETS, "vector_length": 16, "num_vectors": 8, "r": 2},
    "MISS": {"target_modules": TARGETS, "r": 4},
    "ROAD": {"target_modules": TARGETS, "group_size": 4},
    "SHIRA": {"target_modules": ["q_proj", "down_proj"], "r": 2},
    "C3A": {"target_modules": TARGETS, "block_size": 8},
    "FOURIERFT": {"target_modules": TARGETS, "n_frequency": 50},
    "PSOFT": {"target_modules": TARGETS, "r": 8},
    "WAVEFT": {"target_modules": TARGETS, "n_frequency": 50},
}
NOT_BUILT = {  # PEFT wants more than a chat model for these: several tasks, other adapters, another package
    "MULTITASK_PROMPT_TUNING", "POLY", "XLORA", "ADAMSS", "SHADOW",
}  # fmt: skip
REFUSED = {"PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CARTRIDGE", "CPT", "ADAPTION_PROMPT", "BEFT", "LILY"}
KINDS = [kind.value for kind in PeftType if kind.value not in NOT_BUILT]

LORA = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "patterns": {"rank_pattern": {"down_proj": 2}, "alpha_pattern": {"q_proj": 3}},
    "gaussian": {"init_lora_weights": "gaussian"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "mica": {"init_lora_weights": "mica"},
    "dora": {"use_dora": True},
    "pissa": {"init_lora_weights": "pissa"},
    "olora": {"init_lora_weights": "olora"},
    "bias": {"lora_bias": True, "target_modules": ["gate_proj"]},
    "one layer": {"layers_to_transform": [1]},
    "excluded": {"exclude_modules": r".*layers\.0.*"},
    "head saved": {"modules_to_save": ["lm_head"]},
    "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "tokens": {"trainable_token_indices": [5, 9]},
    "norms saved": {"modules_to_save": ["input_layernorm"]},
    "layers doubled": {"layer_replication": [[0, 2], [1, 3]]},
    "after a phrase": {"alora_invocation_tokens": [5, 9]},
    "quantised steps": {"use_qalora": True},
    "random start": {"init_lora_weights": "pissa_niter_2"},
}
LORA_REFUSED = {"layers doubled", "after a phrase", "random start", "bias"}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "base"
    tiny_hf("llama", 2, tie_word_embeddings=False).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tied(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tied") / "base"
    tiny_hf("llama", 2, tie_word_embeddings=True).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def trained(base: Path, folder: Path, config, size=0.1):
    """PEFT's logits of an adapter with random values, which is saved in `folder`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(1)
        model = get_peft_model(load_model(base).hf, config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(size * torch.randn_like(parameter))
        model.eval()
        with torch.no_grad():
            expected = model(ids_of(model)).logits
        model.peft_config["default"].base_model_name_or_path = str(base)
        model.save_pretrained(folder)
    torch.manual_seed(7)  # loading must not depend on what was drawn before
    return expected


def ids_of(model):
    return torch.tensor([[5, 9, 60, 7, 33, 1, 2, 40, 9]])


def ways(base: Path, folder: Path):
    """Both ways to put an adapter into its base."""

    def in_a_series():
        series = Checkpoints([folder], base=str(base))
        return series.load(series.open(), folder.name)

    return {"alone": lambda: load_model(base, adapter=folder), "in a series": in_a_series}


def outcome(make, expected):
    """ "exact" or the sentence of a refusal; anything else fails."""
    try:
        model = make()
    except RimLensError as error:
        return str(error)
    with torch.no_grad():
        found = model.hf(ids_of(model)).logits
    torch.testing.assert_close(found, expected, atol=1e-5 * float(expected.abs().max()), rtol=1e-5)
    return "exact"


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_peft_type_is_exact_or_refused_by_name(kind, base, tmp_path):
    options = dict(OPTIONS.get(kind, {"target_modules": TARGETS}))
    config = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(kind)](**options, task_type="CAUSAL_LM")
    expected = trained(base, tmp_path / "adapter", config)
    for way, make in ways(base, tmp_path / "adapter").items():
        said = outcome(make, expected)
        assert (said == "exact") == (kind not in REFUSED), f"{way}: {said}"
        assert said == "exact" or kind in said


@pytest.mark.parametrize("name", LORA)
@pytest.mark.slow
def test_every_option_of_lora_is_exact_or_refused_by_name(name, base, tmp_path):
    options = {"r": 4, "lora_alpha": 12, "target_modules": TARGETS} | LORA[name]
    expected = trained(base, tmp_path / "adapter", LoraConfig(**options, task_type="CAUSAL_LM"))
    for way, make in ways(base, tmp_path / "adapter").items():
        said = outcome(make, expected)
        if name == "bias":
            assert said == "exact" or "lora" in said.lower(), said
            continue
        assert (said == "exact") == (name not in LORA_REFUSED), f"{way}: {said}"
        assert said == "exact" or next(iter(LORA[name])) in said


@pytest.mark.parametrize("init", ["corda", "loftq", "lora_ga", "something-new"])
@pytest.mark.slow
def test_matrices_that_hold_a_part_of_the_base_are_refused(init, base, tmp_path):
    trained(base, tmp_path / "adapter", LoraConfig(r=4, target_modules=TARGETS))
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"init_lora_weights": init}))
    for make in ways(base, tmp_path / "adapter").values():
        with pytest.raises(RimLensError, match=init):
            make()


@pytest.mark.parametrize(
    "options",
    [
        {"modules_to_save": ["lm_head"]},
        {"modules_to_save": ["embed_tokens"]},
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["q_proj", "embed_tokens"]},
    ],
    ids=str,
)
@pytest.mark.slow
def test_one_of_two_tied_weights(options, tied, tmp_path):
    config = LoraConfig(**{"r": 4, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"} | options)
    expected = trained(tied, tmp_path / "adapter", config)
    alone, series = ways(tied, tmp_path / "adapter").values()
    assert outcome(alone, expected) == "exact"
    assert "one weight in the base" in outcome(series, expected)
    model = alone()
    torch.testing.assert_close(model.bridge(ids_of(model), return_type="logits"), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("lost", ["lora_A", "lora_B", "layers.1."])
def test_lost_matrices_are_an_error(lost, base, tmp_path):
    from safetensors.torch import load_file, save_file

    trained(base, tmp_path / "adapter", LoraConfig(r=4, target_modules=TARGETS))
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    kept = {key: value for key, value in load_file(path).items() if not ("down_proj" in key and lost in key)}
    save_file(kept, path)
    for make in ways(base, tmp_path / "adapter").values():
        with pytest.raises(RimLensError, match="down_proj"):
            make()


def test_an_adapter_that_added_tokens_brings_embedding_tokenizer_and_template(base, tmp_path):
    larger = tiny_tokenizer()
    larger.add_tokens([AddedToken("<new>", normalized=False)])
    larger.chat_template = larger.chat_template + "{# its own #}"
    hf = load_model(base).hf
    hf.resize_token_embeddings(len(larger))
    config = LoraConfig(
        r=4, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"], task_type="CAUSAL_LM"
    )
    model = get_peft_model(hf, config).eval()
    model.save_pretrained(tmp_path / "adapter")
    larger.save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        expected = model(torch.tensor([[5, len(larger) - 1]])).logits
    loaded = load_model(base, adapter=tmp_path / "adapter")
    with torch.no_grad():
        torch.testing.assert_close(
            loaded.hf(torch.tensor([[5, len(larger) - 1]])).logits, expected, atol=1e-5, rtol=1e-5
        )
    assert loaded.tokenizer.get_vocab()["<new>"] == len(larger) - 1
    assert loaded.tokenizer.chat_template.endswith("{# its own #}")


@pytest.mark.slow
def test_the_base_is_read_at_the_revision_that_the_adapter_names(base, tmp_path, monkeypatch):
    trained(base, tmp_path / "adapter", LoraConfig(r=4, target_modules=TARGETS))
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"revision": "step-1000"}))
    asked, read = [], load.read_weights

    def spy(location, dtype, revision, *rest):
        asked.append(revision)
        return read(location, dtype, None, *rest)

    monkeypatch.setattr(load, "read_weights", spy)
    with pytest.warns(UserWarning, match="revision step-1000"):
        load_model(tmp_path / "adapter")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Checkpoints([tmp_path / "adapter"]).open()
    assert asked == ["step-1000", "step-1000"]


@pytest.mark.slow
def test_the_name_says_what_is_in_the_model(base, tmp_path):
    trained(base, tmp_path / "aligned", LoraConfig(r=4, target_modules=TARGETS))
    assert "'base + aligned'" in repr(load_model(base, adapter=tmp_path / "aligned"))
    series = Checkpoints({"first": tmp_path / "aligned", "whole": base}, base=str(base))
    model = series.open()
    names = [shown.name for _, shown in series.loaded(model)]
    assert names == ["base", "base + first", "base (weights of whole)"]
    assert model.name == "base"
    assert series.load(model, "first").name == "base + first"


@pytest.mark.slow
def test_matrices_on_the_weights_of_experts(tmp_path):
    tiny_hf("qwen3_moe", 2).save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    places = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    config = LoraConfig(r=4, target_modules=[], target_parameters=places, task_type="CAUSAL_LM")
    expected = trained(tmp_path / "base", tmp_path / "adapter", config)
    for make in ways(tmp_path / "base", tmp_path / "adapter").values():
        assert outcome(make, expected) == "exact"


def test_an_adapter_is_not_the_base_of_another(base, tmp_path):
    trained(base, tmp_path / "first", LoraConfig(r=4, target_modules=TARGETS))
    trained(base, tmp_path / "second", LoraConfig(r=4, target_modules=TARGETS))
    path = tmp_path / "second" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": str(tmp_path / "first")}))
    with pytest.raises(RimLensError, match="cannot be the base of another"):
        load_model(tmp_path / "second")
