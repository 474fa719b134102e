"""The bundled model in transformers and in vLLM, side by side; without vLLM these tests are skipped."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # what the other tests share

pytest.importorskip("vllm", reason="vLLM is not installed here; make test-engine has its own environment")


@pytest.fixture(scope="session")
def here():
    from rim_lens import load_model

    torch.set_num_threads(2)
    return load_model("smollm2-135m-instruct")


@pytest.fixture(scope="session")
def engine():
    from rim_lens import load_model

    return load_model("smollm2-135m-instruct", engine="vllm", engine_options={"max_model_len": 1024})
