"""Think tags and switches of other models, bad input, and how a chat is shown."""

from __future__ import annotations

import copy

import pytest
from chat_families import CLOSE, OPEN, TEMPLATES, chat_format, cut, tokenizer_of, turns
from transformers import ByT5Tokenizer

from rim_lens.chat.format import ChatFormat
from rim_lens.chat.segments import SEGMENTS
from rim_lens.chat.segments_view import segments_html, segments_text
from rim_lens.chat.tags import ThinkTags
from rim_lens.errors import RimLensError


def test_tags_of_another_model():
    tags = ThinkTags("<|begin_of_thought|>\n\n", "\n\n<|end_of_thought|>\n\n")
    chat = chat_format("smollm2", tags).render("Hi", thinking="prefilled", cot="Hm. </think>")
    assert cut(chat)[-3:] == [("think_open", tags.open), ("cot", "Hm. </think>"), ("think_close", tags.close)]
    assert tags.open_mark == "<|begin_of_thought|>"
    assert tags.close_mark == "<|end_of_thought|>"


def test_no_tags_at_all():
    format_ = chat_format("llama3", ThinkTags("", ""))
    assert SEGMENTS[format_.render("Hi").segment_ids[-1]] == "assistant_tag"
    with pytest.raises(RimLensError, match="needs an opening tag"):
        format_.render("Hi", thinking="on")


def test_switch_of_another_name_and_a_template_that_only_closes():
    template = (
        "{% for message in messages %}{{ '<|im_start|>' + message['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_end|>' + ('<think>' if thinking else '</think>') }}{% endif %}"
    )
    format_ = ChatFormat(tokenizer_of("smollm2"), chat_template=template)
    assert format_.switch == "thinking"
    assert format_.tags == ThinkTags("<think>", "</think>")
    assert cut(format_.render("Hi"))[-2:] == [("assistant_tag", "<|im_end|>"), ("think_close", "</think>")]
    assert cut(format_.render("Hi", thinking="on"))[-1] == ("think_open", "<think>")


def test_last_answer_closed_by_another_token():
    template = (
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + ':' + message['content'] }}"
        "{{ '<|endoftext|>' if loop.last and message['role'] == 'assistant' else '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant' }}{% endif %}"
    )
    format_ = ChatFormat(tokenizer_of("smollm2"), chat_template=template)
    chat = format_.render(turns("Hi", "Hello.", "Bye"))
    assert ("response", "Hello.<|im_end|>") in cut(chat)
    assert ("user", "<|im_start|>user:Bye<|im_end|>") in cut(chat)
    assert tokenizer_of("smollm2").convert_tokens_to_ids("<|endoftext|>") in format_.eos_ids


def test_switch_that_opens_the_tag_itself():
    template = (
        "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: <think>\n' }}"
        "{% if enable_thinking is false %}{{ '\n</think>\n\n' }}{% endif %}{% endif %}"
    )
    format_ = ChatFormat(tokenizer_of("smollm2"), chat_template=template)
    assert format_.tags == ThinkTags(OPEN, CLOSE)
    assert cut(format_.render("Hi"))[-2:] == [("think_open", OPEN), ("think_close", CLOSE)]
    assert cut(format_.render("Hi", thinking="on"))[-2:] == [("assistant_tag", "assistant: "), ("think_open", OPEN)]


def test_tokenizer_without_a_template():
    tokenizer = copy.deepcopy(tokenizer_of("smollm2"))
    tokenizer.chat_template = None
    with pytest.raises(RimLensError, match="has no chat template: pass chat_template="):
        ChatFormat(tokenizer).render("Hi")
    template = (TEMPLATES / "smollm2.jinja").read_text()
    given_one = ChatFormat(tokenizer, chat_template=template).render("Hi")
    assert given_one.text == chat_format("smollm2").render("Hi").text


def test_tokenizer_without_offsets():
    slow = ByT5Tokenizer()
    slow.chat_template = (TEMPLATES / "smollm2.jinja").read_text()
    with pytest.raises(RimLensError, match="ByT5Tokenizer gives no character offsets"):
        ChatFormat(slow).render("Hi")


@pytest.mark.parametrize(
    ("request_", "options", "message"),
    [
        ("Hi", {"thinking": "maybe"}, "unknown thinking mode 'maybe'"),
        ("Hi", {"thinking": "prefilled"}, "needs a CoT"),
        ("Hi", {"thinking": "on", "cot": "So."}, "takes no CoT"),
        ("Hi", {"cot": ""}, "takes no CoT"),
        ([], {}, "last message must be the user's"),
        (turns("Hi", "Hello."), {}, "last message must be the user's"),
        ([{"role": "system", "content": "S"}, *turns("Hi")], {"system": "T"}, "already begin with a system prompt"),
        ([*turns("Hi"), {"role": "system", "content": "S"}, *turns("Hi")], {}, "must be the first message"),
        ([{"role": "robot", "content": "Hi"}], {}, "got role 'robot'"),
        ([{"role": "user", "content": None}], {}, "content of type NoneType"),
        ([{"role": "user", "content": ["Hi"]}], {}, "content of type list"),
        ("a\ud800b", {}, "lone surrogate"),
    ],
)
def test_bad_requests(request_, options, message):
    with pytest.raises(RimLensError, match=message):
        chat_format("qwen3").render(request_, **options)


def test_named_templates_without_a_default():
    tokenizer = copy.deepcopy(tokenizer_of("smollm2"))
    tokenizer.chat_template = {"rag": tokenizer.chat_template, "tool_use": "{{ messages }}"}
    with pytest.raises(RimLensError, match="no chat template is the tokenizer's default"):
        ChatFormat(tokenizer).render("Hi")
    assert ChatFormat(tokenizer, chat_template="rag").render("Hi").text == chat_format("smollm2").render("Hi").text


def test_roles_that_the_template_refuses():
    with pytest.raises(RimLensError, match=r"refuses these messages .*alternate.*: check the order"):
        chat_format("mistral").render([*turns("Hi"), *turns("Hi again")])


def test_consecutive_turns_of_one_role():
    chat = chat_format("smollm2").render(
        [*turns("a"), *turns("b", "c"), {"role": "assistant", "content": "d"}, *turns("e")]
    )
    assert chat.segment_text("response") == "c<|im_end|>\nd<|im_end|>\n"
    assert chat.segment_text("user") == "".join(f"<|im_start|>user\n{x}<|im_end|>\n" for x in "abe")


def test_views_show_every_character_in_its_colour():
    chat = chat_format("qwen3").render("a < b & c\n[bold]?", response="Yes.")
    text = segments_text(chat)
    assert text.plain.replace("⏎", "").endswith(chat.text)
    assert f"thinking off, decision position {chat.decision_position}" in text.plain
    html = segments_html(chat)
    assert chat._repr_html_() == html
    assert "a &lt; b &amp; c⏎\n[bold]?" in html
    assert 'title="response"' in html
    assert f"response {chat.where('response').sum()} " in text.plain


@pytest.mark.real_model
def test_smollm2_tokenizer():
    from rim_lens.model.load import load_chat_format

    tokenizer = load_chat_format("smollm2-135m-instruct").tokenizer
    messages = turns("Hi <|im_end|> </think>", "Hello.", "Bye")
    bare = ChatFormat(tokenizer, ThinkTags("", "")).render(messages)
    expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True)
    assert bare.token_ids.tolist() == expected["input_ids"]
    chat = ChatFormat(tokenizer).render("Hi <|im_end|> </think>", thinking="prefilled", cot="So.")
    assert chat.segment_text("user") == "<|im_start|>user\nHi <|im_end|> </think><|im_end|>\n"
    assert tokenizer.decode(chat.token_ids[chat.where("cot")]) == "So."
