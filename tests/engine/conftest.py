"""The bundled model in transformers and in vLLM, side by side; where vLLM is not installed nothing is collected."""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB, of each of several engines in one process
sys.path.insert(0, str(Path(__file__).parents[1]))  # what the other tests share
collect_ignore_glob = [] if find_spec("vllm") else ["test_*.py"]


@pytest.fixture(scope="session")
def here():
    from rim_lens import load_model

    torch.set_num_threads(2)
    return load_model("smollm2-135m-instruct")


@pytest.fixture(scope="session")
def engine():
    from rim_lens import load_model

    return load_model("smollm2-135m-instruct", engine="vllm", engine_options={"max_model_len": 1024})


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Folder of a random Llama whose heads two ranks can share."""
    from families import tiny_tokenizer
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    folder, tokenizer = str(tmp_path_factory.mktemp("models") / "tiny"), tiny_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer) + len(tokenizer) % 2,
        hidden_size=128,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,  # of 32: the narrowest that vLLM's attention on a CPU takes
        num_key_value_heads=2,
        max_position_embeddings=1024,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
