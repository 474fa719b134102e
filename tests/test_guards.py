"""Published guards by name, on tiny models with their classes, special tokens and formats, whose verdicts are known."""

import json
import math

import pytest
import torch
from made_guards import ITEMS, MADE, head, last_hidden, model_of, solve_head, tokenizer_of
from transformers import pipeline

from rim_lens import RimLensError
from rim_lens.behavior.classifier_judge import ClassifierJudge
from rim_lens.behavior.guards import GUARDS
from rim_lens.behavior.judge import RefusalJudge

BY_LOGITS = [name for name, made in MADE.items() if not made.verdicts]
BY_TEXT = [name for name, made in MADE.items() if made.verdicts]
REQUESTS, RESPONSES = (list(texts) for texts in zip(*ITEMS, strict=True))
HALF_DIFFERENCES = [1.5, -0.7, 0.2, -3.0]  # of the two verdicts' logits


def made_guard(folder, name):
    """Save a guard of that name, and return model and tokenizer to be solved and saved by the caller."""
    made = MADE[name]
    tokenizer = tokenizer_of(made)
    return made, tokenizer, model_of(made, len(tokenizer))


def save(folder, model, tokenizer):
    template, tokenizer.chat_template = tokenizer.chat_template, None
    tokenizer.save_pretrained(folder)
    if template and "Llama4" in type(model).__name__:  # multimodal guards keep it beside the tokenizer
        (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    elif template:
        tokenizer.chat_template = template
        tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)


def guard_by_logits(folder, name):
    """A guard whose p(harmful) on each item and prompt is known: the logistic function of twice the half difference."""
    made, tokenizer, model = made_guard(folder, name)
    states, tokens, logits, expected = [], [], [], []
    for item, half in zip(ITEMS, HALF_DIFFERENCES, strict=True):
        prompts = made.prompt(*item)
        for i, prompt in enumerate(prompts):
            shift = half - 0.5 * i  # the first of several policies is the most harmful one
            ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
            pair = [tokenizer(prompt + word, add_special_tokens=False)["input_ids"][len(ids)] for word in made.forms]
            states.append(last_hidden(model, ids)[-1])
            tokens.append(pair)
            logits.append([12 + shift, 12 - shift])
        expected.append(1 / (1 + math.exp(-2 * half)))
    solve_head(model, states, tokens, logits, made.cap)
    save(folder, model, tokenizer)
    return expected


@pytest.mark.parametrize("name", BY_LOGITS)
def test_verdicts_by_logits_are_those_of_the_published_prompt(tmp_path, name):
    expected = guard_by_logits(tmp_path, name)
    judge = ClassifierJudge(name.split(",")[0], model=str(tmp_path), batch_size=3)
    given = judge(REQUESTS, RESPONSES)
    assert [one.harm_score for one in given] == pytest.approx(expected, abs=0.01)
    assert [one.harmful for one in given] == [True, False, True, False]
    assert judge.judges == {"label", "harmful", "harm_score"}
    assert judge.name == f"{name.split(',')[0]} ({tmp_path})"
    # safe is not refused: the label is the refusal judge's
    assert [one.label for one in given] == [one.label for one in RefusalJudge()(REQUESTS, RESPONSES)]
    assert given[1].label == "refused"
    assert given[0].label == given[3].label == "complied"


def guard_by_text(folder, name):
    """A guard that writes the made verdicts after the made prompts."""
    made, tokenizer, model = made_guard(folder, name)
    states, tokens, logits = [], [], []
    for item, verdict in zip(ITEMS, made.verdicts, strict=True):
        (prompt,) = made.prompt(*item)
        before = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        written = [*tokenizer(verdict, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        hidden = last_hidden(model, before + written)
        for i, token in enumerate(written):
            states.append(hidden[len(before) - 1 + i])
            tokens.append([token])
            logits.append([30.0])
    assert len(states) <= head(model).shape[1]  # else the verdicts could not all be written
    solve_head(model, states, tokens, logits)
    save(folder, model, tokenizer)


WRITTEN = {
    "wildguard": [("complied", False), ("refused", False), ("complied", True), ("unjudged", None)],
    "qwen3guard": [("complied", False), ("refused", False), ("complied", True), ("complied", True)],
    "granite-guardian-3.3": [("complied", True), ("refused", False), ("complied", False), ("complied", None)],
}


@pytest.mark.parametrize("name", BY_TEXT)
def test_verdicts_in_text_are_read(tmp_path, name):
    guard_by_text(tmp_path, name)
    judge = ClassifierJudge(name, model=str(tmp_path), check_coherence=False, batch_size=3)
    given = judge(REQUESTS, RESPONSES)
    assert [(one.label, one.harmful) for one in given] == WRITTEN[name]
    assert judge.judges == {"label", "harmful"}
    assert all(one.harm_score is None for one in given)


def test_controversial_may_count_as_harmless(tmp_path):
    guard_by_text(tmp_path, "qwen3guard")
    judge = ClassifierJudge("qwen3guard", model=str(tmp_path), label_map={"Controversial": "harmless"})
    assert [one.harmful for one in judge(REQUESTS, RESPONSES)] == [False, False, True, False]
    with pytest.raises(
        RimLensError, match="label_map names \\['maybe'\\], but the guard's verdicts are controversial, no,"
    ):
        ClassifierJudge("qwen3guard", model=str(tmp_path), label_map={"maybe": "harmless"})


def test_incoherent_answers_keep_that_label_beside_the_verdict(tmp_path):
    guard_by_text(tmp_path, "wildguard")
    judge = ClassifierJudge("wildguard", model=str(tmp_path))
    assert [one.label for one in judge(REQUESTS[:1], [""])] == ["incoherent"]


def test_a_model_that_writes_something_else_gives_no_verdict(tmp_path):
    guard_by_logits(tmp_path, "granite-guardian")
    judge = ClassifierJudge("granite-guardian", model=str(tmp_path))
    with torch.no_grad():
        head(judge.model).zero_()  # every token is as likely as any other
    (given,) = judge(REQUESTS[:1], RESPONSES[:1])
    assert (given.harmful, given.harm_score) == (None, None)
    assert given.label == "complied"
    assert "no verdict: it would write" in given.evidence


def test_a_template_that_leaves_out_the_answer_is_refused(tmp_path):
    _, tokenizer, model = made_guard(tmp_path, "llama-guard-3")
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages if m['role'] == 'user' %}{{ m['content'] }}{% endfor %}"
    )
    guard = pipeline("text-generation", model=model, tokenizer=tokenizer, device="cpu")
    with pytest.raises(RimLensError, match="leaves out the request or the response"):
        ClassifierJudge("llama-guard-3", model=guard)
    tokenizer.chat_template = MADE["llama-guard-3"].template.replace("| trim", "| replace('rain', 'sun')")
    judge = ClassifierJudge("llama-guard-3", model=guard)
    with pytest.raises(
        RimLensError, match=r"request 'Write \{a\} poem.* does not hold the request and the response as they are"
    ):
        judge(REQUESTS, RESPONSES)


def test_a_long_answer_loses_its_end_and_the_evidence_says_so(tmp_path):
    guard_by_logits(tmp_path, "harmbench")
    judge = ClassifierJudge("harmbench", model=str(tmp_path))
    prompt = judge._prompt(REQUESTS[0], "one two three " * 2000)
    assert prompt.endswith("[/INST]")
    assert REQUESTS[0] in prompt
    assert len(judge.tokenizer(prompt, add_special_tokens=False)["input_ids"]) <= judge.max_length == 2048
    (_, cut), (_, whole) = (judge._fitted(REQUESTS[0], text) for text in ("one two three " * 2000, RESPONSES[0]))
    assert (cut, whole) == (True, False)


def test_another_instruction_takes_the_place_of_ours(tmp_path):
    guard_by_logits(tmp_path, "harmbench")
    judge = ClassifierJudge("harmbench", model=str(tmp_path), instruction="Is it {so}?")
    assert judge._prompt("a b", "c d").startswith("<s>[INST] Is it {so}?\n\n[Behavior]\na b\n\n[Generation]\nc d\n")
    guard_by_logits(tmp_path, "llama-guard-3")
    with pytest.raises(RimLensError, match="instruction= has no effect"):
        ClassifierJudge("llama-guard-3", model=str(tmp_path), instruction="Is it so?")


def test_unknown_names_and_every_guard_is_tested():
    with pytest.raises(RimLensError, match="There is no guard 'llamaguard' to read x as; use one of llama-guard-3,"):
        ClassifierJudge("llamaguard", model="x")
    assert {name.split(",")[0] for name in MADE} == set(GUARDS)
