"""Every public function takes prompts in every form, and refuses what is not a prompt in one sentence."""

import inspect

import numpy as np
import pandas as pd
import pytest
import torch
from families import tiny_model
from public_names import PUBLIC

import rim_lens
import rim_lens.units
from rim_lens import PromptSet, RimLensError, generate, measure_rim, refusal_score
from rim_lens.behavior import maths_accuracy
from rim_lens.behavior.refusal_score import refusal_tokens
from rim_lens.capture import residuals
from rim_lens.data import Prompt
from rim_lens.model.as_chats import as_chats

TEXTS = ["Name a fruit.", "Why is the sky blue?"]
PROMPTS = [Prompt(text, None, f"id-{i}") for i, text in enumerate(TEXTS)]
TALK = [{"role": "user", "content": TEXTS[0]}]
HEAD = [(0, 0)]
NEURON = np.array([[0, 0]])
CONTROLS = np.array([[[0, 1]]])

# public function -> calls that hand it prompts, one per parameter that takes them
CALLS = {
    "attention_rows": [lambda f, m, given: f(m, given)],
    "segment_masses": [lambda f, m, given: f(m, given)],
    "residuals": [lambda f, m, given: f(m, given)],
    "head_outputs": [lambda f, m, given: f(m, given)],
    "neuron_activations": [lambda f, m, given: f(m, given, "decision")],
    "record_heads": [lambda f, m, given: f(m, given)],
    "generate": [lambda f, m, given: f(m, given, max_new_tokens=1)],
    "refusal_score": [lambda f, m, given: f(m, given)],
    "sequence_refusal_score": [lambda f, m, given: f(m, given)],
    "maths_accuracy": [lambda f, m, given: f(m, given)],
    "measure_rim": [
        lambda f, m, given: f(m, given, None, None, thinking="off", max_new_tokens=1),
        lambda f, m, given: f(m, TEXTS, given, None, thinking="off", max_new_tokens=1),
        lambda f, m, given: f(m, TEXTS, None, given, thinking="off", max_new_tokens=1, maths_tokens=1),
    ],
    "span_attention": [lambda f, m, given: f(m, given)],
    "token_attention": [lambda f, m, given: f(m, given)],
    "find_refusal_heads": [lambda f, m, given: f(m, given, ["refused"])],
    "ablation_sweep": [lambda f, m, given: f(m, given, method="plain")],
    "patching_sweep": [lambda f, m, given: f(m, given, as_chats(m, TEXTS)), lambda f, m, given: f(m, TEXTS, given)],
    "interchange_sweep": [lambda f, m, given: f(m, given, TEXTS), lambda f, m, given: f(m, TEXTS, given)],
    "ablation_test": [
        lambda f, m, given: f(m, HEAD, given, generated=False),
        lambda f, m, given: f(m, HEAD, TEXTS, harmless=given, generated=False),
        lambda f, m, given: f(m, HEAD, TEXTS, maths=given, generated=False),
        lambda f, m, given: f(m, NEURON, given, generated=False, controls=CONTROLS),
        lambda f, m, given: f(m, NEURON, TEXTS, harmless=given, generated=False, controls=CONTROLS),
        lambda f, m, given: f(m, NEURON, TEXTS, maths=given, generated=False, controls=CONTROLS),
    ],
    "restore_refusal": [
        lambda f, m, given: f(m, HEAD, given, generated=False),
        lambda f, m, given: f(m, HEAD, TEXTS, harmless=given, generated=False),
        lambda f, m, given: f(m, HEAD, TEXTS, maths=given, generated=False),
    ],
    "probe_refusal": [
        lambda f, m, given: f(m, given, ["refused", "complied"]),
        lambda f, m, given: f(m, TEXTS, ["refused", "complied"], pairs=(given, TEXTS)),
    ],
    "on_other_chats": [lambda f, m, given: f(m, None, given, np.zeros(2))],
    "trace_refusal": [lambda f, m, given: f(m, given, None)],
    "series_behavior": [lambda f, m, given: f(m, None, given)],
    "series_maths": [lambda f, m, given: f(m, None, given)],
    "refusal_forcing_pairs": [lambda f, m, given: f(m, given)],
    "teacher_forced_pairs": [lambda f, m, given: f(m, given)],
    "neuron_table": [
        lambda f, m, given: f(m, NEURON, given),
        lambda f, m, given: f(m, NEURON, TEXTS, on=given),
    ],
    "measure_series": [
        lambda f, m, given: f(m, None, given),
        lambda f, m, given: f(m, None, TEXTS, given),
        lambda f, m, given: f(m, None, TEXTS, task=given),
    ],
    "predict_shift": [
        lambda f, m, given: f(m, NEURON, given, TEXTS),
        lambda f, m, given: f(m, NEURON, as_chats(m, TEXTS), given),
    ],
    "refusal_direction": [lambda f, m, given: f(m, given, TEXTS), lambda f, m, given: f(m, TEXTS, given)],
    "direct_attribution": [lambda f, m, given: f(m, given)],
    "self_repair": [lambda f, m, given: f(m, given)],
    "cot_importance": [lambda f, m, given: f(m, given)],
    "receiver_heads": [lambda f, m, given: f(m, given)],
    "expert_load": [lambda f, m, given: f(m, given)],
    "mediation": [lambda f, m, given: f(m, HEAD, NEURON, given)],
    "path_patching": [lambda f, m, given: f(m, HEAD, None, given)],
    "compare_ablations": [lambda f, m, given: f(m, {"one": HEAD}, given, generated=False)],
    "direction_drift": [
        lambda f, m, given: f(m, None, None, given, TEXTS),
        lambda f, m, given: f(m, None, None, TEXTS, given),
    ],
    "explore_heads": [lambda f, m, given: f(m, given)],
    "explore_neurons": [lambda f, m, given: f(m, NEURON, given)],
    "pattern_costs": [lambda f, m, given: f(m, given)],
}

# interventions and pairs: their requests are rows to match, tested with the interventions
BLOCKS = {"ablate_heads", "scale_heads", "knock_out", "ablate_neurons", "scale_neurons", "steer", "given_pairs"}

OPTIONAL = {  # which of these calls may be handed None
    "measure_rim": (0, 1, 2),
    "ablation_test": (1, 2, 4, 5),
    "restore_refusal": (1, 2),
    "probe_refusal": (1,),
    "neuron_table": (1,),
    "measure_series": (1, 2),
}


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


def test_every_public_function_that_takes_prompts_is_in_the_table():
    taking = {
        name
        for name, function in PUBLIC.items()
        if inspect.isfunction(function)
        and any(
            "Chat]" in str(p.annotation) or "schemas.Prompt" in str(p.annotation)
            for key, p in inspect.signature(function).parameters.items()
            if key != "reference"
        )
    }
    assert taking - BLOCKS == set(CALLS)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("given", [None, 3, [None], [3], {"a": "b"}, [], pd.DataFrame({"prompt": TEXTS})], ids=repr)
def test_what_is_not_a_prompt_is_refused_in_one_sentence(model, name, given):
    function = getattr(rim_lens, name)
    for number, call in enumerate(CALLS[name]):
        if given is None and number in OPTIONAL.get(name, ()):
            continue  # documented: None leaves it out
        with pytest.raises(RimLensError, match=r"^[^\n]*([Pp]rompt|chats)[^\n]*$") as caught:
            call(function, model, given)
        assert len(str(caught.value)) < 160


@pytest.mark.parametrize(
    ("given", "texts"),
    [
        (TEXTS[0], TEXTS[:1]),
        (TEXTS, TEXTS),
        (tuple(TEXTS), TEXTS),
        (PROMPTS[0], TEXTS[:1]),
        (PROMPTS, TEXTS),
        (PromptSet("two", "here", tuple(PROMPTS)), TEXTS),
        (TALK, TEXTS[:1]),
        ([TALK, TALK], [TEXTS[0], TEXTS[0]]),
        (np.array(TEXTS), TEXTS),
        (pd.Series(TEXTS, index=[5, 6]), TEXTS),
        ((text for text in TEXTS), TEXTS),
        ([PROMPTS[0], TEXTS[1], TALK], [*TEXTS, TEXTS[0]]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_form_is_the_same_prompts(model, given, texts):
    chats = as_chats(model, given)
    assert [chat.request for chat in chats] == texts
    for chat, text in zip(chats, texts, strict=True):
        np.testing.assert_array_equal(chat.token_ids, model.chat_format.render(text).token_ids)


def test_chats_stay_as_they_are(model):
    chats = model.render(TEXTS, thinking="on")
    assert as_chats(model, chats) == chats
    assert as_chats(model, chats[0]) == chats[:1]
    assert as_chats(model, [chats[0], TEXTS[1]])[0] is chats[0]


def test_prompts_and_chats_are_measured_alike(model):
    chats = model.render(TEXTS)
    tokens = refusal_tokens(model)
    np.testing.assert_array_equal(refusal_score(model, PROMPTS, tokens), refusal_score(model, chats, tokens))
    torch.testing.assert_close(residuals(model, TEXTS), residuals(model, chats), rtol=0, atol=0)
    assert len(generate(model, TEXTS[0], max_new_tokens=1)) == 1


def test_one_cot_per_prompt(model):
    chats = as_chats(model, PROMPTS, thinking="prefilled", cot=["First.", "Second."])
    assert [chat.segment_text("cot") for chat in chats] == ["First.", "Second."]
    with pytest.raises(RimLensError, match="3 CoTs were given for 2 prompts"):
        as_chats(model, TEXTS, thinking="prefilled", cot=["a", "b", "c"])


def test_texts_cannot_stand_for_what_a_model_wrote(model):
    with pytest.raises(RimLensError, match="on_chats must be chats that a model has written in"):
        rim_lens.patching_sweep(model, TEXTS, TEXTS)


def test_a_thinking_mode_may_be_one_word(model):
    table = measure_rim(model, harmful=TEXTS, harmless=None, maths=None, thinking="off", max_new_tokens=1)
    assert set(table.answers["condition"]) == {"off"}
    assert len(table.answers) == len(TEXTS)


def test_problems_need_answers(model):
    with pytest.raises(RimLensError, match="2 of 2 problems of problems have no answer"):
        maths_accuracy(model, PROMPTS)
    problems = [Prompt("What is 1 + 1?", None, "a", answer="2")]
    assert maths_accuracy(model, problems, max_new_tokens=1).n == 1


@pytest.mark.parametrize("alone", ["L1H2", (1, 2), rim_lens.units.Head(1, 2), ["L1H2"], "L1H2, L1H2"], ids=repr)
def test_a_head_alone_is_a_list_of_one(model, alone):
    with rim_lens.ablate_heads(model, [(1, 2)]):
        wanted = refusal_score(model, TEXTS)
    with rim_lens.ablate_heads(model, alone):
        np.testing.assert_array_equal(refusal_score(model, TEXTS), wanted)
    assert rim_lens.token_attention(model, TEXTS[:1], alone).heads[0] == (1, 2)
