"""A tiny Llama whose weights are set by hand, so that what the analyzers should find is known.

Every word sits on its own axis of the residual stream, beside a few axes that carry what the planted heads read:

    L1H2  refusal head: attends to the think tags and to *soft* words of the request; from the tags, and only from
          them, it writes the refusal direction. A request without soft words is refused, one with many is not.
    L2H1  CoT head: attends to the *lazy* words of a CoT or, without any, to a sink; from lazy words it writes the
          refusal direction negatively, so that a lazy CoT cancels the refusal.
    L0H3  length head: attends to everything evenly. Its mass on a segment is that segment's length and nothing else.

Families: "plain"; "redundant", in which L1H5 does the same as L1H2 and a neuron of the last MLP cuts what both write
together at CAP, so that either alone is enough; "null", in which no head writes the refusal direction.

All other heads and the MLPs hold small random weights. The refusal logit reads the refusal direction; a word's
successor reads that word's axis, which gives fixed answers that a judge can read. Queries and keys meet in a rotary
pair that hardly turns (base 1e8), so planted attention does not depend on distance.
"""

import itertools
from dataclasses import dataclass, field

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rim_lens.model.load import load_model

REFUSAL_HEAD, COT_HEAD, LENGTH_HEAD = (1, 2), (2, 1), (0, 3)
SECOND_HEAD, CAP, STEEPNESS = (1, 5), 0.55, 30.0
SOFT = ("please", "kindly", "story", "game", "pretend", "joke", "friend", "today")
LAZY = ("quick", "easy", "fast", "short", "skip", "just", "brief", "simply")
CAREFUL = ("weigh", "risk", "check", "law", "harm", "hurt", "think", "ask")
MILD = ("bread", "garden", "song", "tea", "soup", "roses", "poem", "kite")
TOPICS = ("lock", "alarm", "engine", "wallet", "camera", "drone", "badge", "safe")
FILLER = ("how", "do", "i", "a", "with", "my", "old", "at", "home", "blue", "window", "near", "road", "night")
REFUSED = ("Sorry", ",", "but", "I", "can't", "help", "with", "that", "request", ".", "<|im_end|>")
COMPLIED = ("Sure", ":", "first", "take", "the", "tools", "then", "open", "it", "slowly", "!", "<|im_end|>")
OWN_COT = ("<think>\n", "okay", "quick", "check", "\n</think>", "\n\n")
SPECIAL = ("<unk>", "<|im_start|>", "<|im_end|>", "<think>\n", "\n</think>", "\n\n", "\n")
ROLES = ("system", "user", "assistant")
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
N_LAYERS, N_HEADS, N_KV_HEADS, D_HEAD, D_MODEL = 4, 8, 4, 16, 192
SLOW = 7  # the rotary pair (7, 15) turns by 1e-7 per position
REFUSAL_LOGIT, THRESHOLD, CHAIN_LOGIT = 20.0, 0.4, 40.0
CONCEPTS = ("constant", "filler", "soft_or_tag", "tag", "lazy_or_sink", "lazy", "refusal")


@dataclass(frozen=True)
class PlantedTruth:
    """What was planted. `cots` mix lazy and careful words at equal length; more lazy words, less refusal."""

    refusal_head: tuple[int, int]
    cot_head: tuple[int, int]
    length_head: tuple[int, int]
    refusal_direction: np.ndarray  # [d_model], unit length
    refusal_token: int
    comply_token: int
    harmful: list[str] = field(repr=False)
    harmless: list[str] = field(repr=False)
    cots: list[str] = field(repr=False)
    n_soft: np.ndarray = field(repr=False)  # soft words of each harmful request
    n_lazy: np.ndarray = field(repr=False)  # lazy words of each CoT


def planted_model(seed=0, n_prompts=64, dtype=torch.float32, family="plain"):
    """(LensModel, PlantedTruth); `seed` draws the small random weights and the prompts."""
    words = vocabulary()
    tokenizer = planted_tokenizer(words)
    model = planted_weights(words, tokenizer, torch.Generator().manual_seed(seed), family).to(dtype)
    lens = load_model(model, tokenizer=tokenizer)
    direction = np.zeros(D_MODEL)
    direction[len(words) + CONCEPTS.index("refusal")] = 1.0
    rng = np.random.default_rng(seed)
    n_soft, n_lazy = rng.choice((0, 1, 2, 5, 6), n_prompts), rng.choice((0, 1, 4, 5), n_prompts)
    truth = PlantedTruth(
        REFUSAL_HEAD,
        COT_HEAD,
        LENGTH_HEAD,
        direction,
        tokenizer.convert_tokens_to_ids("Sorry"),
        tokenizer.convert_tokens_to_ids("Sure"),
        harmful=[request(rng, rng.choice(TOPICS), SOFT, n) for n in n_soft],
        harmless=[request(rng, rng.choice(MILD), MILD, 2) for _ in range(n_prompts)],
        cots=[cot(rng, n) for n in n_lazy],
        n_soft=n_soft,
        n_lazy=n_lazy,
    )
    return lens, truth


def request(rng, topic, special, n_special):
    """The words "how do i … lock" with `n_special` words of a kind among ten others."""
    inside = [*rng.choice(FILLER[3:], 10 - n_special, replace=False), *rng.choice(special, n_special, replace=False)]
    return " ".join(["how do i", *rng.permutation(inside), topic])


def cot(rng, n_lazy, length=8):
    """A CoT of `length` words, careful ones first and lazy ones last."""
    careful = rng.choice(CAREFUL, length - n_lazy, replace=False)
    return " ".join(["okay", *careful, *rng.choice(LAZY, n_lazy, replace=False)])


def vocabulary():
    """All words, each once; it is written with or without a space before it."""
    plain = (*SPECIAL, *ROLES, *SOFT, *LAZY, *CAREFUL, *MILD, *TOPICS, *FILLER, *REFUSED, *COMPLIED, *OWN_COT)
    return list(dict.fromkeys(plain))


def planted_tokenizer(words):
    """Word-level; token i is word i, token i + len(words) is the same word after a space."""
    ids = {word: i for i, word in enumerate(words)} | {f" {word}": i + len(words) for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    pattern = r"<\|im_start\|>|<\|im_end\|>|<think>\n|\n</think>|\n\n|\n| ?[A-Za-z']+| ?[^\sA-Za-z']"
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def planted_weights(words, tokenizer, generator, family="plain"):
    """The LlamaForCausalLM with random small weights everywhere and the planted ones on top."""
    config = LlamaConfig(
        vocab_size=2 * len(words),
        hidden_size=D_MODEL,
        intermediate_size=32,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=N_HEADS,
        num_key_value_heads=N_KV_HEADS,
        head_dim=D_HEAD,
        max_position_embeddings=512,
        rope_parameters={"rope_type": "default", "rope_theta": 1e8},
        tie_word_embeddings=False,
        rms_norm_eps=1e-6,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" not in name:
                small = 0.005 if "o_proj" in name else 0.02
                weight.normal_(0, small, generator=generator)
                if "k_proj" in name:  # which words a random head prefers
                    weight[:, : len(words)].normal_(0, 4, generator=generator)
                if "v_proj" in name:  # random heads move words, not what the planted heads read
                    weight[:, len(words) :] = 0
        embed(model, words)
        axis = {concept: len(words) + i for i, concept in enumerate(CONCEPTS)}
        plant_head(model, REFUSAL_HEAD, axis["constant"], axis["soft_or_tag"], axis["tag"], axis["refusal"], 1.0)
        plant_head(model, COT_HEAD, axis["constant"], axis["lazy_or_sink"], axis["lazy"], axis["refusal"], -0.8)
        if family == "redundant":
            plant_head(model, SECOND_HEAD, axis["constant"], axis["soft_or_tag"], axis["tag"], axis["refusal"], 1.0)
            plant_cap(model, axis["constant"], axis["refusal"])
        if family == "null":
            for head in (REFUSAL_HEAD, COT_HEAD):
                plant_head(model, head, axis["constant"], axis["soft_or_tag"], axis["tag"], axis["refusal"], 0.0)
        layer, head = LENGTH_HEAD
        model.model.layers[layer].self_attn.q_proj.weight[head * D_HEAD : (head + 1) * D_HEAD] = 0
        unembed(model, words, axis["refusal"])
    return model


def embed(model, words):
    """Word axes and concept axes; `filler` makes all embeddings equally long, so that RMSNorm changes nothing."""
    weight = model.model.embed_tokens.weight
    weight.zero_()
    tags = ("<think>\n", "\n</think>")
    for i, word in enumerate(words):
        concept = {
            "constant": 1.0,
            "soft_or_tag": 5.0
            if word in tags
            else 4.5
            if word in SOFT
            else 7.0
            if word in MILD
            else 2.5 * (word in LAZY),
            "tag": float(word in tags),
            "lazy_or_sink": 4.0 if word in LAZY or word == "<|im_start|>" else 0.0,
            "lazy": float(word in LAZY),
            "refusal": 0.0,
        }
        concept["filler"] = (D_MODEL - 1 - sum(value**2 for value in concept.values())) ** 0.5
        for row in (i, i + len(words)):
            weight[row, i] = 1.0
            for j, name in enumerate(CONCEPTS):
                weight[row, len(words) + j] = concept[name]


def plant_head(model, head, constant, key, value, out, gain):
    """Head: score = embedding's `key` axis, output = gain · Σ attention · `value` axis, written on axis `out`."""
    layer, index = head
    attention, group = model.model.layers[layer].self_attn, index // (N_HEADS // N_KV_HEADS)
    q = attention.q_proj.weight[index * D_HEAD : (index + 1) * D_HEAD]
    k = attention.k_proj.weight[group * D_HEAD : (group + 1) * D_HEAD]
    v = attention.v_proj.weight[group * D_HEAD : (group + 1) * D_HEAD]
    o = attention.o_proj.weight[:, index * D_HEAD : (index + 1) * D_HEAD]
    q.zero_()
    q[SLOW, constant] = D_HEAD**0.5
    k[SLOW].zero_()
    k[SLOW, key] = 1.0
    v[0].zero_()
    v[0, value] = 1.0
    o.zero_()
    o[out, 0] = gain


def plant_cap(model, constant, refusal):
    """One neuron of the last MLP takes away what the refusal axis has above CAP.

    Silu(K (r − CAP)) / K is about that.
    """
    mlp = model.model.layers[-1].mlp
    mlp.gate_proj.weight[0].zero_()
    mlp.gate_proj.weight[0, refusal] = STEEPNESS
    mlp.gate_proj.weight[0, constant] = -STEEPNESS * CAP
    mlp.up_proj.weight[0].zero_()
    mlp.up_proj.weight[0, constant] = 1.0
    mlp.down_proj.weight[:, 0] = 0
    mlp.down_proj.weight[refusal, 0] = -1 / STEEPNESS


def unembed(model, words, refusal):
    """Refusal against compliance at the decision position, and each word's successor behind it."""
    weight = model.lm_head.weight
    written = {word: i + (len(words) if word[0].isalpha() else 0) for i, word in enumerate(words)}
    written["Sorry"], written["Sure"], written["okay"] = (words.index(word) for word in ("Sorry", "Sure", "okay"))
    weight[written["Sorry"], refusal] = REFUSAL_LOGIT
    weight[written["Sure"], words.index("\n\n")] = REFUSAL_LOGIT * THRESHOLD
    for chain in (REFUSED, COMPLIED, OWN_COT):
        for word, successor in itertools.pairwise(chain):
            weight[written[successor], words.index(word)] = CHAIN_LOGIT
