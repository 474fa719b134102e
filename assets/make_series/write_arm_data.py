"""Write the arms' training rows for `arms.toml`: the same problems, CoTs and order as train_series.py.

    python assets/make_series/write_arm_data.py --data DATA_FOLDER --base MODEL_FOLDER

DATA_FOLDER holds gsm8k_train_2000.jsonl, MODEL_FOLDER the tokenizer that lengths are matched with.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from maths_arms import ARMS, ArmWriter, plain_rationale
from mixture import read_jsonl
from transformers import AutoTokenizer

from rim_lens.patterns.rewrite import counter

SEED, N = 0, 72
MAX_QUESTION_TOKENS, MAX_RATIONALE_TOKENS = 50, 70


def arm_rows(problems: list[dict], tokenizer) -> dict[str, list[dict]]:
    """For every arm the same short problems in the same order."""
    count = counter(tokenizer)
    writer = ArmWriter(count, SEED)
    rows: dict[str, list[dict]] = {arm: [] for arm in ARMS}
    for problem in problems:
        rationale, answer = plain_rationale(problem["answer"])
        if count(problem["question"]) > MAX_QUESTION_TOKENS or count(" ".join(rationale)) > MAX_RATIONALE_TOKENS:
            continue
        for arm, cot in writer.cots(rationale).items():
            rows[arm].append({"request": problem["question"], "cot": cot, "response": f"The answer is {answer}."})
        if len(rows[ARMS[0]]) == N:
            break
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "arm_data")
    args = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(args.base)
    args.out.mkdir(parents=True, exist_ok=True)
    for arm, rows in arm_rows(read_jsonl(args.data / "gsm8k_train_2000.jsonl"), tokenizer).items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (args.out / f"{arm}.jsonl").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
