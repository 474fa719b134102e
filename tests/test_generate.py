"""Generation with a thinking budget, against transformers' own generate and a model whose every token is known."""

import pytest
import torch
from families import tiny_model, tiny_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from rim_lens.behavior.generate import generate
from rim_lens.errors import RimLensError
from rim_lens.model.lens_model import LensModel

PROMPTS = ["Name a fruit.", "Explain in a few words how a bicycle stays upright.", "", "Why?"]


def chain_model(text: str, context: int = 512) -> LensModel:
    """A model that writes `text` in a circle: after each byte of it comes the next one, whatever was before."""
    tokenizer = tiny_tokenizer()
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert len(set(ids)) == len(ids)
    vocab = len(tokenizer)
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=vocab + vocab % 2,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        head_dim=8,
        max_position_embeddings=context,
        tie_word_embeddings=False,
    )
    hf = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, parameter in hf.named_parameters():
            if "norm" not in name:
                parameter.zero_()
        hf.model.embed_tokens.weight[:, :vocab] = torch.eye(vocab)
        for current, following in zip(ids, [*ids[1:], ids[0]], strict=True):
            hf.lm_head.weight[following, current] = 1.0
    return LensModel("chain", tokenizer, hf=hf)


def test_answers_equal_transformers_generate():
    model = tiny_model("llama")
    mine = generate(model, PROMPTS, max_new_tokens=12, batch_size=3)
    for prompt, generation in zip(PROMPTS, mine, strict=True):
        chat = model.render(prompt)[0]
        ids = torch.tensor(chat.token_ids)[None]
        theirs = model.hf.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, pad_token_id=model.pad_id
        )[0, ids.shape[1] :].tolist()
        ends = [i for i, token in enumerate(theirs) if token in model.chat_format.eos_ids]
        assert list(generation.response_ids) == theirs[: ends[0] if ends else None]


@pytest.mark.parametrize("thinking", ["off", "on"])
def test_hooks_without_a_cache_give_the_same_answers(thinking):
    model = tiny_model("qwen3")
    hooked = LensModel("hooked", model.tokenizer, bridge=model.bridge)
    fast = generate(model, PROMPTS[:2], thinking=thinking, max_new_tokens=5, cot_budget=6)
    slow = generate(hooked, PROMPTS[:2], thinking=thinking, max_new_tokens=5, cot_budget=6)
    assert [g.full_chat.token_ids.tolist() for g in fast] == [g.full_chat.token_ids.tolist() for g in slow]


def test_a_cot_over_budget_is_closed_by_force():
    model = chain_model("\nabcdefg")
    generation = generate(model, ["Hi"], thinking="on", cot_budget=5, max_new_tokens=3)[0]
    assert generation.closed is False
    assert generation.cot == "abcde"
    assert generation.chat.text.endswith("<think>\nabcde\n</think>\n\n")
    assert generation.response == "abc"
    assert generation.truncated


def test_a_cot_that_closes_itself_ends_there():
    model = chain_model("\nab</think>")
    generation = generate(model, ["Hi"], thinking="on", cot_budget=40, max_new_tokens=2)[0]
    assert generation.closed is True
    assert generation.cot == "ab"
    chat = generation.chat
    assert chat.segment_text("think_close") == "</think>\n\n"
    assert chat.decision_position == len(chat) - 1
    assert generation.response == "ab"


def test_the_end_of_turn_inside_a_cot_closes_it():
    model = chain_model("\nab")
    end = model.tokenizer.eos_token_id
    with torch.no_grad():
        model.hf.lm_head.weight[end, model.encode("b")[0]] = 2.0
    generation = generate(model, ["Hi"], thinking="on", cot_budget=40, max_new_tokens=8)[0]
    assert (generation.cot, generation.closed, generation.response) == ("ab", False, "ab")
    assert end not in generation.full_chat.token_ids[generation.chat.where("cot").argmax() :]
    assert not generation.truncated


def test_dropping_finished_rows_changes_no_other_row():
    model = chain_model("\nab")
    with torch.no_grad():
        model.hf.lm_head.weight[model.tokenizer.eos_token_id, model.encode("b")[0]] = 2.0
    cots = ["x", "\n", "y", "z"]
    together = generate(model, PROMPTS, thinking="prefilled", cot=cots, max_new_tokens=6)
    alone = [
        generate(model, [p], thinking="prefilled", cot=c, max_new_tokens=6)[0]
        for p, c in zip(PROMPTS, cots, strict=True)
    ]
    assert [g.response_ids for g in together] == [g.response_ids for g in alone]


def test_full_chat_labels_every_token():
    model = tiny_model("llama")
    generation = generate(model, ["Why?"], thinking="on", cot_budget=4, max_new_tokens=3)[0]
    full = generation.full_chat
    assert full.where("cot").sum() <= 4
    assert full.where("response").sum() == len(generation.response_ids)
    assert full.decision_position == len(generation.chat) - 1


def test_sampling_is_seeded():
    model = tiny_model("llama")
    one, same, other = (generate(model, PROMPTS, max_new_tokens=8, temperature=1.0, seed=seed) for seed in (0, 0, 1))
    assert [g.response_ids for g in one] == [g.response_ids for g in same]
    assert [g.response_ids for g in one] != [g.response_ids for g in other]


def test_a_prompt_with_a_seed_of_its_own_is_sampled_alike_in_any_company():
    model = tiny_model("llama")
    sampled = {"max_new_tokens": 8, "temperature": 1.0}
    together = generate(model, PROMPTS, seed=[3, 1, 4, 1], **sampled)
    alone = [generate(model, [p], seed=[s], **sampled)[0] for p, s in zip(PROMPTS, (3, 1, 4, 1), strict=True)]
    assert [g.response_ids for g in together] == [g.response_ids for g in alone]
    twice = generate(model, PROMPTS[:1] * 2, seed=[3, 5], **sampled)
    assert twice[0].response_ids == together[0].response_ids != twice[1].response_ids
    with pytest.raises(RimLensError, match="3 seeds were given for 4 prompts"):
        generate(model, PROMPTS, seed=[0, 1, 2], **sampled)


def test_a_prompt_longer_than_the_context_is_named():
    model = tiny_model("llama")
    with pytest.raises(RimLensError, match=r"context of 512"):
        generate(model, ["short", "long " * 200])
    with pytest.raises(RimLensError, match="prompt 0 with its token budget"):
        generate(model, ["short"], thinking="on", cot_budget=500)


def test_wrong_numbers_of_cots_and_no_prompts_are_errors():
    model = tiny_model("llama")
    with pytest.raises(RimLensError, match="2 CoTs were given for 1 prompts"):
        generate(model, ["a"], thinking="prefilled", cot=["x", "y"])
    with pytest.raises(RimLensError, match="no prompts"):
        generate(model, [])


@pytest.mark.parametrize("thinking", ["off", "on"])
def test_the_decision_score_is_read_before_the_first_answer_token(thinking):
    from rim_lens.behavior.refusal_score import refusal_score, refusal_tokens

    model = tiny_model("llama")
    tokens = refusal_tokens(model)
    generations = generate(
        model, PROMPTS, thinking=thinking, cot_budget=6, max_new_tokens=3, decision_score=tokens.score
    )
    apart = refusal_score(model, [g.chat for g in generations], tokens)
    assert [g.score for g in generations] == pytest.approx(apart, abs=1e-4)


def test_a_shared_prefix_changes_no_answer(monkeypatch):
    from rim_lens.model import decode, shared_prefix

    model = tiny_model("llama")
    system = "A long system prompt that every one of these requests begins with."
    prompts = [f"{'very ' * i}short request {i}" for i in range(7)]
    lengths = []

    def counted(*arguments):
        lengths.append(shared_prefix.shared_length(*arguments))
        return lengths[-1]

    monkeypatch.setattr(decode, "shared_length", counted)
    shared = generate(model, prompts, system=system, max_new_tokens=8)
    assert min(lengths) > len(system)
    monkeypatch.setattr(shared_prefix, "WORTH", 10**9)
    apart = generate(model, prompts, system=system, max_new_tokens=8)
    assert lengths[-1] == 0
    assert [g.full_chat.token_ids.tolist() for g in shared] == [g.full_chat.token_ids.tolist() for g in apart]


@pytest.mark.parametrize("family", ["gemma2", "mistral"])
def test_sliding_windows_share_no_prefix(family):
    from rim_lens.model.shared_prefix import shared_length

    model = tiny_model(family)
    chats = model.render([f"request {i}" for i in range(8)], system="The same for all. " * 4)
    assert shared_length(model, model.batch(chats)) == 0


def test_a_chat_whose_cot_is_closed_is_answered_at_once():
    model = tiny_model("llama")
    first = generate(model, PROMPTS[:2], thinking="on", cot_budget=5, max_new_tokens=4)
    again = generate(model, [g.chat for g in first], max_new_tokens=4)
    assert [g.response_ids for g in again] == [g.response_ids for g in first]
    assert [g.cot for g in again] == [g.cot for g in first]
