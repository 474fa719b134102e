"""Small tokenizers with the special tokens and quirks of chat model families, and templates of the same shape."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from rim_lens.chat.chat import Chat
from rim_lens.chat.format import ChatFormat
from rim_lens.chat.tags import ThinkTags

OPEN, CLOSE = "<think>\n", "\n</think>\n\n"
TEMPLATES = Path(__file__).parent / "chat_templates"
# Punctuation runs take their newlines with them, so tokens such as ">\n\n" straddle the borders of segments.
QWEN_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CORPUS = [
    "user\nHi there, how are you?\n\nassistant\n<think>\n\n</think>\n\nI am fine.\n\n",
    "system\nBe brief.\n\n## Metadata\n\nReasoning Mode: /no_think\n\n<|im_end|> [INST] Hello [/INST] Hello </s>",
    "Let me think.\n\nFirst, the user asks.\n</think>\n\nThe answer is 42.\n\n",
] * 4


@dataclass(frozen=True)
class Family:
    """How a family writes text to tokens; `style` is byte, qwen, trimmed, metaspace or prepended."""

    special: tuple[str, ...]
    bos: str | None
    eos: str
    style: str = "byte"
    tags: tuple[str, ...] = ()


CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
FAMILIES = {
    "qwen3": Family(CHATML, None, "<|im_end|>", "qwen", ("<think>", "</think>", "<tool_response>", "</tool_response>")),
    "deepseek_r1_distill": Family(
        ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
        "<｜begin▁of▁sentence｜>",
        "<｜end▁of▁sentence｜>",
        "qwen",
        ("<｜User｜>", "<｜Assistant｜>", "<think>", "</think>"),
    ),
    "smollm2": Family(CHATML, "<|im_start|>", "<|im_end|>"),
    "smollm3": Family(CHATML, None, "<|im_end|>", "trimmed", ("<think>", "</think>")),
    "llama3": Family(
        ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "trimmed",
    ),
    "gemma3": Family(
        ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"), "<bos>", "<eos>", "metaspace", ("\n", "\n\n")
    ),
    "mistral": Family(("<s>", "</s>", "[INST]", "[/INST]"), "<s>", "</s>", "metaspace"),
    "phi35": Family(
        ("<s>", "<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
        "<s>",
        "<|endoftext|>",
        "prepended",
    ),
    "llama2": Family(("<s>", "</s>"), "<s>", "</s>", "prepended"),
}


@cache
def tokenizer_of(name: str) -> PreTrainedTokenizerFast:
    """The tokenizer of a family, with its chat template; do not change it."""
    family = FAMILIES[name]
    tokenizer = _byte_level(family) if family.style in ("byte", "qwen", "trimmed") else _sentencepiece(family)
    # Phi-3 swallows the newline after its turn markers.
    tokenizer.add_special_tokens([AddedToken(t, rstrip=name == "phi35", special=True) for t in family.special])
    tokenizer.add_tokens([AddedToken(tag, normalized=False) for tag in family.tags])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=family.bos,
        eos_token=family.eos,
        pad_token=family.eos,
        chat_template=(TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8"),
    )


def chat_format(family: str, tags: ThinkTags | None = None) -> ChatFormat:
    """The chat format of a family's tokenizer and template."""
    return ChatFormat(tokenizer_of(family), tags)


def cut(chat: Chat) -> list[tuple[str, str]]:
    """(segment, text) of each span of a chat."""
    return [(span.segment, chat.text[span.start : span.end]) for span in chat.spans]


def turns(*contents: str) -> list[dict[str, str]]:
    """Messages of user and assistant by turns, the user first."""
    roles = ("user", "assistant") * len(contents)
    return [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]


def _byte_level(family: Family) -> Tokenizer:
    tokenizer = Tokenizer(BPE())
    if family.style == "qwen":
        tokenizer.normalizer = normalizers.NFC()
        words = pre_tokenizers.Split(Regex(QWEN_WORDS), "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(False, use_regex=False)])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(CORPUS, BpeTrainer(vocab_size=420, initial_alphabet=alphabet, show_progress=False))
    if family.style == "trimmed":
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    return tokenizer


def _sentencepiece(family: Family) -> Tokenizer:
    """BPE over words that begin with "▁", bytes for unknown characters; a space is added at the start of a text."""
    trained = Tokenizer(BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator(CORPUS, BpeTrainer(vocab_size=300, show_progress=False))
    model = json.loads(trained.to_str())["model"]
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *model["vocab"]]
    merges = [tuple(pair) for pair in model["merges"]]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if family.style == "metaspace":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:  # the older kind, which adds a space after every special token too
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer
