"""The bundled model in transformers and in vLLM, side by side; where vLLM is not installed nothing is collected."""

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

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
