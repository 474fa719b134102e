"""A tiny Llama that refuses about half of the built-in harmful requests in words, for code that is run as printed.

Its layers are random. The language head is set so that "Sorry" and "Sure" win at the decision position, according to a
direction along which the requests differ, and each opens an answer of seven fixed pieces.
"""

import itertools
from functools import lru_cache

import torch
from families import SPECIAL, tiny_hf, with_chat_template
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from rim_lens import load_prompts
from rim_lens.model.lens_model import LensModel

N_LAYERS, N_HEADS, WIDTH = 15, 5, 60  # heads L12H3 and L14H2 of the printed code are there
REFUSED = ("Sorry", ", but I can't help with that request.", " It is not safe.", " Ask a lawyer.")
REFUSED += (" Call for help.", " Take care.", " Good day.")
COMPLIED = ("Sure", ": mix the flour with water.", " Knead the dough.", " Let it rise.")
COMPLIED += (" Heat the oven.", " Bake the bread.", " Let it cool.")
LOUD = 30.0


@lru_cache
def refuser_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE over the built-in requests, with the pieces of the answers as tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=1000, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    texts = [*load_prompts("harmful").texts, *load_prompts("harmless").texts, *load_prompts("maths").texts]
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(part, normalized=False) for part in (*REFUSED, *COMPLIED)])
    return with_chat_template(tokenizer)


def refuser_hf():
    """The transformers model."""
    tokenizer = refuser_tokenizer()
    hf = tiny_hf(
        "llama",
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=N_HEADS,
        num_key_value_heads=N_HEADS,
        max_position_embeddings=8192,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    refused, complied = (tokenizer.convert_tokens_to_ids(list(parts)) for parts in (REFUSED, COMPLIED))
    ends = tokenizer.eos_token_id
    steps = [*itertools.pairwise([*refused, ends]), *itertools.pairwise([*complied, ends])]
    with torch.no_grad():
        embed, head = hf.model.embed_tokens.weight, hf.lm_head.weight
        own = range(len(steps))  # an axis for each piece and its successor, which no layer writes to
        for layer in hf.model.layers:
            layer.self_attn.o_proj.weight[own] = 0
            layer.mlp.down_proj.weight[own] = 0
        embed[:, own] = 0
        head.mul_(0.02)
        for axis, (piece, successor) in enumerate(steps):
            embed[piece, axis] = LOUD
            head[successor, axis] = LOUD
        direction = dividing_direction(hf, tokenizer)
        head[refused[0]], head[complied[0]] = direction, -direction
    return hf


def dividing_direction(hf, tokenizer):
    """Along which the requests' last states differ most, at right angles to their mean."""
    lens = LensModel("refuser", tokenizer, hf=hf)
    chats = lens.render(load_prompts("harmful").texts, thinking="off")
    states = torch.stack([hf.model(torch.from_numpy(chat.token_ids)[None]).last_hidden_state[0, -1] for chat in chats])
    middle = states.mean(0)
    _, _, rows = torch.linalg.svd(states - middle, full_matrices=False)
    first = rows[0] - (rows[0] @ middle) / (middle @ middle) * middle
    return 3.0 * first / (states @ first).std()


def save_refuser(folder):
    """The model as a folder that `load_model` takes."""
    refuser_hf().save_pretrained(folder)
    refuser_tokenizer().save_pretrained(folder)
    return folder
