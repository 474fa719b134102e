"""Edits that an engine makes while it writes, against decoding here with the same heads and neurons changed.

The engine is plain (`plain_engine`).
"""

from importlib.util import find_spec

import pytest
from families import tiny_model, tiny_tokenizer
from plain_engine import PlainModel

from rim_lens import load_model
from rim_lens.behavior.generate import generate
from rim_lens.capture.activations import mean_head_outputs
from rim_lens.errors import RimLensError
from rim_lens.intervene.heads import ablate_heads, scale_heads
from rim_lens.intervene.knock_out import knock_out
from rim_lens.intervene.neurons import ablate_neurons, scale_neurons
from rim_lens.intervene.recording import record_heads

PROMPTS = ["Name a fruit.", "Why is the sky blue?", "Say hello."]
HEADS, NEURONS = [(0, 1), (1, 3), (2, 0)], [(0, 5), (1, 40), (2, 7)]


def shown(generations):
    return [(one.chat.token_ids.tolist(), one.response_ids, one.cut) for one in generations]


CHANGES = {
    "heads zeroed": lambda m, where, values: ablate_heads(m, HEADS, positions=where),
    "heads scaled": lambda m, where, values: scale_heads(m, HEADS, -2.0, positions=where),
    "heads by their means": lambda m, where, values: ablate_heads(
        m, HEADS, "mean", reference=values[0], positions=where
    ),
    "heads of another prompt": lambda m, where, values: ablate_heads(
        m, HEADS, "resample", reference=values[1], positions=where
    ),
    "neurons zeroed": lambda m, where, values: ablate_neurons(m, NEURONS, positions=where),
    "neurons scaled": lambda m, where, values: scale_neurons(m, NEURONS, 30.0, positions=where),
}


@pytest.mark.parametrize("thinking", ["off", "on"])
@pytest.mark.parametrize("where", ["all", "decision", "from_decision"])
@pytest.mark.parametrize("change", CHANGES.values(), ids=list(CHANGES))
def test_edits_stand_where_decoding_here_changes_units(change, where, thinking):
    model = tiny_model("llama")
    plain, options = PlainModel(model), {"thinking": thinking, "max_new_tokens": 4, "cot_budget": 3}
    chats = model.render(PROMPTS)
    values = mean_head_outputs(model, chats), record_heads(model, chats)
    with change(model, where, values):
        changed = shown(generate(model, PROMPTS, **options))
    with change(plain, where, values):
        assert shown(generate(plain, PROMPTS, **options)) == changed


def test_the_changes_of_this_test_change_answers():
    model = tiny_model("llama")
    values = mean_head_outputs(model, model.render(PROMPTS)), record_heads(model, model.render(PROMPTS))
    before = shown(generate(model, PROMPTS, max_new_tokens=4))
    for change in CHANGES.values():
        with change(model, "from_decision", values):
            assert shown(generate(model, PROMPTS, max_new_tokens=4)) != before


def test_rows_have_edits_of_their_own():
    model = tiny_model("llama")
    plain = PlainModel(model)
    with ablate_heads(plain, [[one] for one in HEADS]):
        mixed = shown(generate(plain, PROMPTS, max_new_tokens=4))
    for number, one in enumerate(HEADS):
        with ablate_heads(model, [one]):
            assert shown(generate(model, PROMPTS[number], max_new_tokens=4)) == mixed[number : number + 1]
    with ablate_heads(plain, [[one] for one in HEADS[:2]]), pytest.raises(RimLensError, match="given for 2 rows"):
        generate(plain, PROMPTS)


def test_what_no_edit_can_do_is_one_sentence():
    plain = PlainModel(tiny_model("llama"))
    with knock_out(plain, HEADS, "user"), pytest.raises(RimLensError, match="cannot be made while vLLM writes"):
        generate(plain, PROMPTS)
    with ablate_heads(plain, HEADS, positions="cot"), pytest.raises(RimLensError, match="positions 'cot' cannot"):
        generate(plain, PROMPTS)


def test_without_vllm_it_says_how_to_get_it(tmp_path):
    if find_spec("vllm") is not None:
        pytest.skip("vLLM is installed here")
    tiny_model("llama").hf.config.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(RimLensError, match=r"pip install 'rim-lens\[vllm\]'"):
        load_model(str(tmp_path), engine="vllm")
    with pytest.raises(RimLensError, match="takes no adapter"):
        load_model(str(tmp_path), engine="vllm", adapter="x")
