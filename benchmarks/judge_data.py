"""The labelled answers that the judge's benchmarks read, and how a share is written.

Needs `../shared/data/outputs_dev.jsonl` beside the repository.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rim_lens.stats import wilson

ROOT = Path(__file__).parents[1]
ANSWERS = ROOT.parent / "shared" / "data" / "outputs_dev.jsonl"
HAND_WRITTEN = ROOT / "tests" / "judge_data" / "dev.jsonl"
FAMILIES = {
    "lama-2": "Llama 2", "Llama-3.1": "Llama 3.1", "Mistral": "Mistral", "Qwen2.5": "Qwen 2.5", "R1": "DeepSeek",
    "DeepSeek": "DeepSeek", "GPT-4": "GPT-4", "gpt-4": "GPT-4", "vicuna": "Vicuna",
}  # fmt: skip


def labelled_answers() -> list[dict[str, Any]]:
    """The real answers, then the hand-written ones that have a label to train on."""
    real = [json.loads(line) for line in ANSWERS.read_text(encoding="utf-8").splitlines()]
    written = [json.loads(line) for line in HAND_WRITTEN.read_text(encoding="utf-8").splitlines() if line.strip()]
    return real + [one | {"hand_written": True} for one in written if one["label"] in ("refused", "complied")]


def group(answer: Mapping[str, Any], by: str) -> str:
    """The model, family of models or source of an answer."""
    if by == "source":
        return str(answer["source"].split(":")[0])
    if by == "family":
        return next(family for part, family in FAMILIES.items() if part in answer["model"])
    return str(answer["model"])


def rate_in_words(count: tuple[int, int]) -> str:
    """Count, total and share with Wilson's interval."""
    hits, n = count
    if not n:
        return "–"
    low, high = wilson(hits, n)
    return f"{hits}/{n} = {100 * hits / n:.1f} % ({100 * low:.1f}–{100 * high:.1f})"
