"""What the templates of model families become: text, segments and tokens in the three thinking modes."""

from __future__ import annotations

import pytest
from chat_families import CLOSE, FAMILIES, OPEN, chat_format, cut, tokenizer_of, turns

from rim_lens.chat.format import ChatFormat
from rim_lens.chat.segments import SEGMENTS
from rim_lens.chat.tags import ThinkTags

SMOLLM3_SYSTEM = (
    "<|im_start|>system\n## Metadata\n\nReasoning Mode: {}\n\n## Custom Instructions\n\nBe brief.\n\n<|im_end|>\n"
)
LLAMA3_SYSTEM = (
    "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nToday Date: 26 Jul 2024\n\nBe brief.<|eot_id|>"
)

# What stands before the think part for the request "Hi" under the system prompt "Be brief.", thinking off.
ONE_TURN = {
    "qwen3": [
        ("system", "<|im_start|>system\nBe brief.<|im_end|>\n"),
        ("user", "<|im_start|>user\nHi<|im_end|>\n"),
        ("assistant_tag", "<|im_start|>assistant\n"),
    ],
    "deepseek_r1_distill": [
        ("system", "<｜begin▁of▁sentence｜>Be brief."),
        ("user", "<｜User｜>Hi"),
        ("assistant_tag", "<｜Assistant｜>"),
    ],
    "smollm2": [
        ("system", "<|im_start|>system\nBe brief.<|im_end|>\n"),
        ("user", "<|im_start|>user\nHi<|im_end|>\n"),
        ("assistant_tag", "<|im_start|>assistant\n"),
    ],
    "smollm3": [
        ("system", SMOLLM3_SYSTEM.format("/no_think")),
        ("user", "<|im_start|>user\nHi<|im_end|>\n"),
        ("assistant_tag", "<|im_start|>assistant\n"),
    ],
    "llama3": [
        ("system", LLAMA3_SYSTEM),
        ("user", "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"),
        ("assistant_tag", "<|start_header_id|>assistant<|end_header_id|>\n\n"),
    ],
    "gemma3": [
        ("system", "<bos><start_of_turn>user\nBe brief.\n\n"),
        ("user", "Hi<end_of_turn>\n"),
        ("assistant_tag", "<start_of_turn>model\n"),
    ],
    "mistral": [("system", "<s>[INST] Be brief.\n\n"), ("user", "Hi"), ("assistant_tag", "[/INST]")],
    "phi35": [
        ("system", "<|system|>\nBe brief.<|end|>\n"),
        ("user", "<|user|>\nHi<|end|>\n"),
        ("assistant_tag", "<|assistant|>\n"),
    ],
    "llama2": [
        ("system", "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n"),
        ("user", "Hi"),
        ("assistant_tag", " [/INST]"),
    ],
}

# The same for user "Hi", assistant "Hello.", user "Bye" without a system prompt.
CHATML_TURNS = [
    ("user", "<|im_start|>user\nHi<|im_end|>\n"),
    ("assistant_tag", "<|im_start|>assistant\n"),
    ("response", "Hello.<|im_end|>\n"),
    ("user", "<|im_start|>user\nBye<|im_end|>\n"),
    ("assistant_tag", "<|im_start|>assistant\n"),
]
MANY_TURNS = {
    "qwen3": CHATML_TURNS,
    "deepseek_r1_distill": [
        ("system", "<｜begin▁of▁sentence｜>"),
        ("user", "<｜User｜>Hi"),
        ("assistant_tag", "<｜Assistant｜>"),
        ("response", "Hello.<｜end▁of▁sentence｜>"),
        ("user", "<｜User｜>Bye"),
        ("assistant_tag", "<｜Assistant｜>"),
    ],
    "smollm2": [("system", "<|im_start|>system\nYou are a small test model.<|im_end|>\n"), *CHATML_TURNS],
    "smollm3": [
        ("system", SMOLLM3_SYSTEM.format("/no_think").replace("Be brief.", "You are a small test model.")),
        *CHATML_TURNS[:2],
        ("response", "<think>\n\n</think>\n\nHello.<|im_end|>\n"),
        *CHATML_TURNS[3:],
    ],
    "llama3": [
        ("system", LLAMA3_SYSTEM.replace("Be brief.", "")),
        ("user", "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"),
        ("assistant_tag", "<|start_header_id|>assistant<|end_header_id|>\n\n"),
        ("response", "Hello.<|eot_id|>"),
        ("user", "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|>"),
        ("assistant_tag", "<|start_header_id|>assistant<|end_header_id|>\n\n"),
    ],
    "gemma3": [
        ("system", "<bos>"),
        ("user", "<start_of_turn>user\nHi<end_of_turn>\n"),
        ("assistant_tag", "<start_of_turn>model\n"),
        ("response", "Hello.<end_of_turn>\n"),
        ("user", "<start_of_turn>user\nBye<end_of_turn>\n"),
        ("assistant_tag", "<start_of_turn>model\n"),
    ],
    "mistral": [
        ("system", "<s>"),
        ("user", "[INST] Hi"),
        ("assistant_tag", "[/INST] "),
        ("response", "Hello.</s>"),
        ("user", "[INST] Bye"),
        ("assistant_tag", "[/INST]"),
    ],
    "phi35": [
        ("user", "<|user|>\nHi<|end|>\n"),
        ("assistant_tag", "<|assistant|>\n"),
        ("response", "Hello.<|end|>\n"),
        ("user", "<|user|>\nBye<|end|>\n"),
        ("assistant_tag", "<|assistant|>\n"),
    ],
    "llama2": [
        ("system", "<s>"),
        ("user", "[INST] Hi"),
        ("assistant_tag", " [/INST] "),
        ("response", "Hello. </s>"),
        ("system", "<s>"),
        ("user", "[INST] Bye"),
        ("assistant_tag", " [/INST]"),
    ],
}
END_OF_TURN = {
    "qwen3": ["<|im_end|>"],
    "deepseek_r1_distill": ["<｜end▁of▁sentence｜>"],
    "smollm2": ["<|im_end|>"],
    "smollm3": ["<|im_end|>"],
    "llama3": ["<|end_of_text|>", "<|eot_id|>"],
    "gemma3": ["<eos>", "<end_of_turn>"],
    "mistral": ["</s>"],
    "phi35": ["<|endoftext|>", "<|end|>"],
    "llama2": ["</s>"],
}

families = pytest.mark.parametrize("family", FAMILIES)


def templated_ids(family: str, messages: list[dict[str, str]], **switch: bool) -> list[int]:
    tokenizer = tokenizer_of(family)
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, **switch)["input_ids"]


@families
def test_off_is_an_empty_think_span(family):
    chat = chat_format(family).render("Hi", system="Be brief.")
    assert cut(chat) == [*ONE_TURN[family], ("think_open", OPEN), ("think_close", CLOSE)]
    assert not chat.where("cot").any()
    assert not chat.where("response").any()
    assert chat.decision_position == len(chat) - 1


@families
def test_on_ends_with_the_opening_tag(family):
    chat = chat_format(family).render("Hi", system="Be brief.", thinking="on")
    expected = [(segment, text.replace("/no_think", "/think")) for segment, text in ONE_TURN[family]]
    assert cut(chat) == [*expected, ("think_open", OPEN)]
    assert SEGMENTS[chat.segment_ids[chat.decision_position]] == "think_open"


@families
def test_prefilled_holds_the_cot(family):
    format_ = chat_format(family)
    chat = format_.render("Hi", system="Be brief.", thinking="prefilled", cot="It is easy.")
    expected = [(segment, text.replace("/no_think", "/think")) for segment, text in ONE_TURN[family]]
    assert cut(chat) == [*expected, ("think_open", OPEN), ("cot", "It is easy."), ("think_close", CLOSE)]
    empty = format_.render("Hi", thinking="prefilled", cot="")
    off = format_.render("Hi")
    assert cut(empty)[-2:] == cut(off)[-2:]
    if format_.switch is None:
        assert empty.token_ids.tolist() == off.token_ids.tolist()


@families
def test_turns_of_a_longer_chat(family):
    chat = chat_format(family).render(turns("Hi", "Hello.", "Bye"))
    assert cut(chat) == [*MANY_TURNS[family], ("think_open", OPEN), ("think_close", CLOSE)]
    assert chat.request == "Bye"


@families
def test_empty_user_message(family):
    chat = chat_format(family).render("", system="Be brief.")
    full = [(segment, text.replace("Hi", "") if segment == "user" else text) for segment, text in ONE_TURN[family]]
    assert cut(chat)[:-2] == [piece for piece in full if piece[1]]


@families
def test_tokens_are_those_of_the_template(family):
    messages = [{"role": "system", "content": "Be brief."}, *turns("Hi </think> there", "Hello.\n", "  Bye <|im_end|>")]
    bare = chat_format(family, ThinkTags("", "")).render(messages)
    switch = {"enable_thinking": False} if family in ("qwen3", "smollm3") else {}
    assert bare.token_ids.tolist() == templated_ids(family, messages, **switch)


def test_tokens_are_those_of_the_template_where_it_writes_the_think_part():
    for family, thinking, switch in [
        ("qwen3", "off", {"enable_thinking": False}),
        ("smollm3", "off", {"enable_thinking": False}),
        ("deepseek_r1_distill", "on", {}),
    ]:
        chat = chat_format(family).render(turns("Hi", "Hello.", "Bye"), thinking=thinking)
        assert chat.token_ids.tolist() == templated_ids(family, turns("Hi", "Hello.", "Bye"), **switch)


@families
def test_end_of_turn_ids(family):
    tokenizer = tokenizer_of(family)
    expected = tokenizer.convert_tokens_to_ids(END_OF_TURN[family])
    assert set(chat_format(family).eos_ids) == set(expected)
    assert set(ChatFormat(tokenizer, generation_eos=[3, 5]).eos_ids) == {3, 5, *expected}
    assert set(ChatFormat(tokenizer, generation_eos=4).eos_ids) == {4, *expected}


@families
def test_tag_ids_spell_the_tags(family):
    format_ = chat_format(family)
    before = format_.render("Hi", thinking="on").token_ids.tolist()
    for ids, tag in ((format_.open_ids, OPEN), (format_.close_ids, CLOSE)):
        assert format_.decode([*before, *ids]) == format_.decode(before) + tag
