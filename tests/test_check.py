"""check_model.

It holds where the library is right, and names what does not hold where something is broken on purpose.
"""

import sys

import pytest
import torch
from families import tiny_hf, tiny_model, tiny_tokenizer
from typer.testing import CliRunner

from rim_lens import check_model, load_model, load_result
from rim_lens.capture import neuron_readers
from rim_lens.chat.format import ChatFormat
from rim_lens.check.plain_tree import PlainTree
from rim_lens.check.subject import REQUESTS
from rim_lens.cli import app
from rim_lens.errors import RimLensError
from rim_lens.intervene import heads
from rim_lens.model import taps_fast
from rim_lens.model.lens_model import LensModel
from rim_lens.model.load_check import checked_at_load
from rim_lens.model.softmax_rows import SoftmaxRows


def verdicts(check):
    return check.table.set_index("check")["holds"].to_dict()


def reason(check, name):
    return check.table.set_index("check").loc[name, "why"]


@pytest.mark.slow
def test_a_supported_model_holds_throughout_and_the_result_is_saved(tmp_path):
    check = check_model(tiny_model("llama"))
    assert check.holds
    assert set(check.table["holds"]) == {"holds"}
    assert (check.table["worst"] <= check.table["tolerance"]).all()
    assert (check.table["n"] > 0).all()
    assert "holds" in check.caption()
    assert load_result(check.save(tmp_path / "check")).table.equals(check.table)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "gpt_oss"])
def test_half_precision_is_no_failure_and_a_wrong_head_still_is(family, monkeypatch):
    model = tiny_model(family)
    model.hf.to(torch.bfloat16)
    check = check_model(model)
    assert check.holds, check.table[check.table["holds"] == "fails"].to_string()
    wrong_head(monkeypatch)
    assert verdicts(check_model(model))["head ablation, fast"] == "fails"


@pytest.mark.slow
def test_experts_are_compared_with_a_loop_and_their_hook_points_refused():
    check = check_model(tiny_model("gpt_oss"))
    found = verdicts(check)
    assert check.holds
    assert found["neuron moments, fast"] == found["neuron ablation, fast"] == "holds"
    assert found["neuron moments, hooks"] == found["neuron ablation, hooks"] == "refused"
    assert "not neurons" in reason(check, "neuron moments, hooks")


def test_the_loop_over_experts_refuses_experts_of_another_formula():
    model = tiny_model("mixtral")
    chat = model.render(REQUESTS[0])[0]
    PlainTree(model).layers[1].experts.register_forward_hook(lambda module, args, output: 2 * output)
    with pytest.raises(RimLensError, match="something else"):
        PlainTree(model).neurons(chat, 4)


def reads_images():
    """A tiny Gemma 3 whose vision tower has as many layers as its text model."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    torch.manual_seed(0)
    text = {
        "vocab_size": 259, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "head_dim": 8,
        "num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": 24, "query_pre_attn_scalar": 8,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "max_position_embeddings": 512,
    }  # fmt: skip
    vision = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2,
              "image_size": 28, "patch_size": 14}  # fmt: skip
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    return load_model(Gemma3ForConditionalGeneration(config).eval(), tokenizer=tiny_tokenizer())


def test_wrapping_a_model_that_reads_images_installs_nothing(monkeypatch):
    run = []
    monkeypatch.setattr("subprocess.check_call", lambda command, *rest, **options: run.append(command))
    monkeypatch.setitem(sys.modules, "torchvision", None)
    model = reads_images()
    with model.tap(backend="hooks"):
        (logits,) = (model.decision_logits(batch) for _, batch in model.batches(model.render("Hello"), 1))
    (fast,) = (model.decision_logits(batch) for _, batch in model.batches(model.render("Hello"), 1))
    torch.testing.assert_close(logits, fast, atol=1e-4, rtol=1e-4)
    assert model.bridge is not None
    assert run == []


@pytest.mark.slow
def test_layers_of_a_vision_tower_are_not_taken_for_the_text_models():
    check = check_model(reads_images())
    assert check.holds, check.table[check.table["holds"] == "fails"].to_string()
    assert (check.table["holds"] == "holds").sum() > 10


def test_a_model_without_chat_template_is_checked_on_plain_text():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    check = check_model(LensModel("bare", tokenizer, hf=tiny_hf("llama")))
    found = verdicts(check)
    refused = {name for name, verdict in found.items() if verdict == "refused"}
    assert refused == {"segments", "generation", "generation without a head"}  # no template says where a turn ends
    assert all("no chat template" in reason(check, name) for name in refused)
    assert check.holds


# ---- each of these breaks one thing on purpose; the check must name it
# ------------------------------------------------


def wrong_head(monkeypatch):
    original = heads.chosen_heads
    monkeypatch.setattr(
        heads, "chosen_heads", lambda model, given: original(model, [(layer, (head + 1) % 4) for layer, head in given])
    )


def half_moments(monkeypatch):
    original = neuron_readers.moments_of
    monkeypatch.setattr(neuron_readers, "moments_of", lambda values, *rest: original(values / 2, *rest))


def sharper_rows(monkeypatch):
    original = SoftmaxRows._softmax
    monkeypatch.setattr(SoftmaxRows, "_softmax", lambda self, query, *rest: original(self, query * 1.02, *rest))
    monkeypatch.setattr(SoftmaxRows, "check", lambda self, value, out: None)


def lost_newlines(monkeypatch):
    monkeypatch.setattr(ChatFormat, "decode", lambda self, ids: self.tokenizer.decode(ids).replace("\n", " "))


def shifted_positions(monkeypatch):
    original = LensModel.hf_inputs
    monkeypatch.setattr(LensModel, "hf_inputs", lambda self, mask, positions: original(self, mask, positions * 2))


def forgotten_hook(monkeypatch):
    monkeypatch.setattr(taps_fast, "keep", lambda undo, handle: None)


BROKEN = {
    wrong_head: {"head ablation, fast", "head ablation, hooks", "generation without a head"},
    half_moments: {"neuron moments, fast", "neuron moments, hooks"},
    sharper_rows: {"attention rows, fast"},
    lost_newlines: {"segments"},
    shifted_positions: {"logits, padded batch", "logits while read, fast", "head ablation, fast", "head sweep"},
    forgotten_hook: {"nothing left"},
}


@pytest.mark.parametrize("breaking", BROKEN, ids=lambda one: one.__name__)
@pytest.mark.slow
def test_what_is_broken_is_named(breaking, monkeypatch):
    model = tiny_model("llama")
    breaking(monkeypatch)
    check = check_model(model)
    assert not check.holds
    failing = {name for name, verdict in verdicts(check).items() if verdict == "fails"}
    assert failing >= BROKEN[breaking]
    if breaking is not forgotten_hook and breaking is not shifted_positions:
        assert failing == BROKEN[breaking]


# ---- at load
# ----------------------------------------------------------------------------------------------------------


def test_loading_a_model_as_expected_says_nothing(recwarn):
    for family in ("llama", "mixtral", "gemma2"):
        load_model(tiny_hf(family), tokenizer=tiny_tokenizer())
    load_model(tiny_model("llama").bridge, tokenizer=tiny_tokenizer())
    assert not [one for one in recwarn if issubclass(one.category, UserWarning)]


def test_loading_refuses_damaged_weights_and_another_models_tokenizer():
    damaged = tiny_hf("llama")
    damaged.model.layers[1].mlp.down_proj.weight[0, 0] = torch.nan
    with pytest.raises(RimLensError, match="computes NaN"):
        load_model(damaged, tokenizer=tiny_tokenizer())
    with pytest.raises(RimLensError, match="belongs to another model"):
        load_model(tiny_hf("llama", vocab_size=64), tokenizer=tiny_tokenizer())


def test_loading_warns_of_what_is_not_as_the_config_says():
    hf = tiny_hf("llama")
    hf.config.intermediate_size = 64
    with pytest.warns(UserWarning, match=r"neurons of layer 0 have shape \[48\] where the config says \[64\]"):
        load_model(hf, tokenizer=tiny_tokenizer())


def test_loading_warns_of_attention_that_cannot_be_read(monkeypatch):
    def refuse(self, value, out):
        self._refuse("computes something else than softmax(q·k)")

    monkeypatch.setattr(SoftmaxRows, "check", refuse)
    with pytest.warns(UserWarning, match="something else than softmax"):
        checked_at_load(tiny_model("qwen2"))


# ---- from the shell
# ---------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path):
    tiny_hf("llama").save_pretrained(tmp_path / "tiny")
    tiny_tokenizer().save_pretrained(tmp_path / "tiny")
    return str(tmp_path / "tiny")


@pytest.mark.slow
def test_the_command_prints_the_table_and_fails_where_something_does_not_hold(saved, monkeypatch):
    done = CliRunner().invoke(app, ["check", saved], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    assert "attention rows, fast" in done.output
    assert "16 holds" in done.output
    half_moments(monkeypatch)
    done = CliRunner().invoke(app, ["check", saved], env={"COLUMNS": "200"})
    assert done.exit_code == 1
    assert "2 fails" in done.output
