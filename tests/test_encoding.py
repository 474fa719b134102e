"""Text that follows other text has the tokens that the whole text has there, also with sentencepiece tokenizers."""

import ast
import json
from pathlib import Path

import pytest
from families import tiny_model
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import rim_lens
from rim_lens.behavior.generate import Row
from rim_lens.behavior.limits import Limits
from rim_lens.behavior.refusal_score import COMPLIANCE_OPENINGS, REFUSAL_OPENINGS, refusal_tokens
from rim_lens.chat.format import ChatFormat
from rim_lens.data.schemas import Prompt
from rim_lens.model.lens_model import LensModel
from rim_lens.patterns.training_rows import IGNORED, TrainingRow, tokens_of
from rim_lens.training_time.counterfactuals import teacher_forced_pairs
from rim_lens.training_time.series import written_chat
from rim_lens.training_time.series_problems import right_answer

CORPUS = [  # without line breaks: in the vocabularies of Mistral and Llama 2 these merge with nothing
    "I'm sorry, but I can't help with that. Sorry, I can't. As an AI, I cannot. Sure, here is a way. Here's how. To "
    "do this,",
    "I am unable to help. I must decline. I'm sorry I can't Sorry As The answer is 42.",
] * 6
INST = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] "
    "}}\n{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% "
    "endif %}"
)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def sentencepiece(style: str) -> PreTrainedTokenizerFast:
    """A tokenizer with word-begin spaces and byte fallback, as Mistral's and Llama 2's are."""
    trained = Tokenizer(BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator(CORPUS, BpeTrainer(vocab_size=330, show_progress=False))
    learned = json.loads(trained.to_str())["model"]
    pieces = dict.fromkeys(["<unk>", *(f"<0x{b:02X}>" for b in range(256)), *learned["vocab"], "\n"])
    merges = [tuple(pair) for pair in learned["merges"]]
    bpe = BPE({p: i for i, p in enumerate(pieces)}, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    made = Tokenizer(bpe)
    if style == "mistral":
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    text = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    made.decoder = decoders.Sequence(text)
    made.add_special_tokens([AddedToken(one, special=True) for one in ("<s>", "</s>", "[INST]", "[/INST]")])
    marks = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=made, chat_template=INST, **marks)


@pytest.fixture(params=["mistral", "llama2"], scope="module")
def model(request):
    tokenizer = sentencepiece(request.param)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LensModel(request.param, tokenizer, hf=LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes)))


def whole(model, text: str) -> list[int]:
    """The tokens of a whole text, as the tokenizer itself gives them."""
    return model.tokenizer(text, add_special_tokens=False)["input_ids"]


def test_written_text_has_the_tokens_of_the_whole_text(model):
    chat = model.chat_format.render("How do I do it?")
    for response in (*REFUSAL_OPENINGS, *COMPLIANCE_OPENINGS, " Sorry", "42"):
        written = model.chat_format.write(chat, response)
        assert written.token_ids.tolist() == whole(model, chat.text + response)
        assert written.segment_text("response") == response
        assert written.decision_position == chat.decision_position


def test_refusal_tokens_are_those_that_can_follow_the_decision_position(model):
    chat = model.chat_format.render("How do I do it?")
    first = {text: whole(model, chat.text + text)[len(chat)] for text in (*REFUSAL_OPENINGS, *COMPLIANCE_OPENINGS)}
    wanted = {first[text] for text in REFUSAL_OPENINGS} - {first[text] for text in COMPLIANCE_OPENINGS}
    assert set(refusal_tokens(model).ids) == wanted
    assert not wanted & {whole(model, text)[0] for text in REFUSAL_OPENINGS}  # alone they begin with a space


def test_training_learns_the_tokens_that_stand_in_the_chat(model):
    row = tokens_of(model.chat_format, TrainingRow("How do I do it?", "Sorry", "So I can't", "on"))
    chat = model.chat_format.render("How do I do it?", thinking="on")
    text = chat.text + "So I can't" + model.chat_format.tags.close + "Sorry"
    assert row["input_ids"] == [*whole(model, text), model.tokenizer.eos_token_id]
    assert row["labels"] == [IGNORED] * len(chat) + row["input_ids"][len(chat) :]


def test_teacher_forced_chats_read_as_they_were_written(model):
    chat = written_chat(model, "How do I do it?", "So I can't", "Sorry")
    assert chat.segment_text("cot") == "So I can't"
    assert chat.segment_text("think_close") == model.chat_format.tags.close
    assert chat.segment_text("response") == "Sorry"
    assert chat.token_ids.tolist() == whole(model, chat.text)
    answered = right_answer(model, Prompt("What is 6 * 7?", None, "a", answer="42"), worked=False)
    assert answered.token_ids.tolist() == whole(model, answered.text)


def test_counterfactual_pairs_hold_the_tokens_of_their_texts(model):
    pairs = teacher_forced_pairs(model, ["How do I do it?", "And then?"], responses=["Sure, here is a way."] * 2)
    for chat in (*pairs.harmful, *pairs.forced):
        assert chat.token_ids.tolist() == whole(model, chat.text)


@pytest.mark.parametrize("written", ["So I can't", "So I can't\n</think>"])
def test_a_forced_close_tag_stands_in_its_place(model, written):
    chat = model.chat_format.render("How do I do it?", thinking="on")
    ids = model.chat_format.encode_after(chat.text, written)
    row = Row(0, model.chat_format, Limits(max_new_tokens=4, cot_budget=len(ids), close=16), chat.text, thinking=True)
    for token in ids:
        row.accept(token)
    while row.forced:
        row.accept(0)
    text = chat.text + "So I can't" + model.chat_format.tags.close
    assert [*chat.token_ids.tolist(), *row.cot_ids, *row.close_ids] == whole(model, text)


@pytest.mark.parametrize(
    ("template", "special", "eos", "end"),
    [
        (GEMMA, ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"], "<eos>", "<end_of_turn>"),
        (CHATML, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], "<|endoftext|>", "<|im_end|>"),
        (CHATML, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], "<|im_end|>", "<|im_end|>"),
    ],
    ids=["gemma", "qwen base", "qwen instruct"],
)
def test_the_templates_own_end_of_turn_is_learned(template, special, eos, end):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate([*special, *alphabet])}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    bos = "<bos>" if "<bos>" in special else None
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token=bos, eos_token=eos, additional_special_tokens=special, chat_template=template
    )
    row = tokens_of(ChatFormat(tokenizer), TrainingRow("Hi", "Hello.", "So.", "on"))
    assert tokenizer.convert_ids_to_tokens(row["input_ids"][-1]) == end


def test_byte_level_tokenizers_are_as_before():
    model = tiny_model("llama")
    chat = model.chat_format.render("Hi", thinking="on")
    assert model.chat_format.encode_after(chat.text, "Sorry") == tuple(model.encode("Sorry"))


@pytest.mark.slow
def test_only_whole_texts_are_encoded_alone():
    """What follows other text goes through `ChatFormat.encode_after`.

    The few that encode a text alone are named here.
    """
    alone = {
        "model/lens_model.py": "LensModel.encode itself",
        "model/load_check.py": "a plain text for the check at load",
        "check/subject.py": "a plain text for check_model",
        "engine/server.py": "whether a tokenizer puts BOS before a text",
        "evals/provider.py": "counts tokens",
        "training_time/checkpoints.py": "compares two tokenizers",
        "chat/format.py": "a whole rendered chat",
        "patterns/rewrite.py": "counts tokens",
        "behavior/classifier_judge.py": "another model's whole prompts",
        "behavior/guard_prompts.py": "another model's whole prompts, with and without a word after them",
    }
    package = Path(rim_lens.__file__).parent
    found = set()
    for path in sorted(package.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            if called.split(".")[-1] == "tokenizer" or called in (
                "self._tokens.encode",
                "model.encode",
                "self.lens.encode",
            ):
                found.add(str(path.relative_to(package)))
            if called.endswith(".encode") and any(one.arg == "add_special_tokens" for one in node.keywords):
                found.add(str(path.relative_to(package)))
    assert found <= set(alone)
