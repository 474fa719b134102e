"""The trained part of the refusal judge: a linear score of an answer's features.

    s = b + Σ_i w_i x_i + Σ_j f_j         refused when s > 0; x: `refusal_features`, f: its fixed weights

Trained by `python -m benchmarks.judge` on real answers with labels; the weights are plain arrays beside this file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from rim_lens.behavior.refusal_features import FIXED

FILE = Path(__file__).with_name("refusal_weights.safetensors")
SMALLEST = 0.004  # weights below it are not stored


@dataclass(frozen=True)
class Weights:
    """Weight of each feature, and the constant."""

    of: Mapping[str, float]
    constant: float

    def score(self, features: Mapping[str, float]) -> float:
        """Above zero for a refusal."""
        return self.constant + sum(
            value * self.of.get(name, 0.0) + FIXED.get(name, 0.0) for name, value in features.items()
        )

    def save(self, path: Path = FILE) -> None:
        """Write the names as UTF-8 with line ends, the weights as float16, the constant as float32."""
        kept = sorted(name for name, weight in self.of.items() if abs(weight) >= SMALLEST)
        arrays: dict[str, np.ndarray] = {
            "names": np.frombuffer("\n".join(kept).encode(), dtype=np.uint8),
            "weights": np.array([self.of[name] for name in kept], dtype=np.float16),
            "constant": np.array([self.constant], dtype=np.float32),
        }
        save_file(arrays, path)


@lru_cache(maxsize=1)
def shipped_weights() -> Weights:
    """The weights that come with the package."""
    arrays = load_file(FILE)
    names = arrays["names"].tobytes().decode().split("\n")
    return Weights(
        dict(zip(names, arrays["weights"].astype(float).tolist(), strict=True)), float(arrays["constant"][0])
    )
