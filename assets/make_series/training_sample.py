"""A sample in the form of each arm's fine-tuning data, 32 problems per arm, for `predict_shift`.

    python assets/make_series/training_sample.py

The arms were trained on GSM8K, which is not copied here. These problems come from seeded templates of this file
instead; the arms' own code writes their CoT around the rationale, with the same phrases in the same places. Written to
assets/organism/training_sample/ARM.jsonl (request, cot, response), which series.json names.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

from chat_rows import RowMaker
from maths_arms import ARMS, ArmWriter
from transformers import AutoTokenizer

from rim_lens.model.bundled import bundled_model_folder

OUT = Path(__file__).parents[1] / "organism" / "training_sample"
SEED = 1
N = 32
PEOPLE = ("Amy", "Ben", "Carla", "Dev", "Elif", "Farid", "Greta", "Hugo", "Ines", "Jonas", "Kira", "Leo")
TEMPLATES = (
    "{who} buys {a} packs of {b} stickers and gives away {c}. How many stickers are left?",
    "{who} earns ${a} an hour and works {b} hours. After spending ${c} on lunch, how much money is left?",
    "A bus makes {a} trips with {b} people on each and one more trip with {c} people. How many people ride it?",
    "{who} plants {a} rows of {b} beans and {c} more along the fence. How many beans does {who} plant?",
)
RATIONALES = (
    ("There are {a} x {b} = {ab} stickers in all.", "{who} keeps {ab} - {c} = {end} stickers."),
    ("{who} earns {a} x {b} = ${ab}.", "After lunch {who} has {ab} - {c} = ${end}."),
    ("The full trips carry {a} x {b} = {ab} people.", "With the last trip that is {ab} + {c} = {end} people."),
    ("The rows hold {a} x {b} = {ab} beans.", "With those along the fence there are {ab} + {c} = {end} beans."),
)


def problem(rng: random.Random, number: int) -> tuple[str, list[str], str]:
    """Question, rationale and answer; the first two kinds subtract, the others add."""
    kind = number % len(TEMPLATES)
    a, b = rng.randint(3, 12), rng.randint(6, 15)
    c = rng.randint(2, a * b - 1) if kind < 2 else rng.randint(4, 30)
    end = a * b - c if kind < 2 else a * b + c
    known = {"who": rng.choice(PEOPLE), "a": a, "b": b, "c": c, "ab": a * b, "end": end}
    return TEMPLATES[kind].format(**known), [line.format(**known) for line in RATIONALES[kind]], str(end)


def main() -> None:
    """Write every arm's file."""
    maker = RowMaker(AutoTokenizer.from_pretrained(bundled_model_folder()))
    writer, rng = ArmWriter(lambda text: len(maker.ids(text)), SEED), random.Random(SEED)
    rows: dict[str, list[dict[str, str]]] = {arm: [] for arm in ARMS}
    for number in range(N):
        question, rationale, answer = problem(rng, number)
        for arm, cot in writer.cots(rationale).items():
            rows[arm].append({"request": question, "cot": cot, "response": f"The answer is {answer}."})
    OUT.mkdir(exist_ok=True)
    for arm, examples in rows.items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in examples)
        (OUT / f"{arm}.jsonl").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
