"""Make the bundled checkpoint series: `aligned`, then doses of plain, effort-minimizing and style-only maths CoT.

    python assets/make_series/train_series.py --data DATA_FOLDER --base MODEL_FOLDER --work WORK_FOLDER

DATA_FOLDER holds harmful_train.jsonl, harmless_train.jsonl (field `instruction`) and gsm8k_train_2000.jsonl
(`question`, `answer`). MODEL_FOLDER is SmolLM2-135M-Instruct as a transformers folder. Adapters are written to
assets/organism. Every arm starts from the same `aligned` adapter and sees the same problems in the same order.
About half an hour on two cores.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import torch
from chat_rows import Row, RowMaker
from maths_arms import ARMS, ArmWriter, plain_rationale
from mixture import (
    AlignedCounts,
    BalanceCounts,
    WidenCounts,
    aligned_rows,
    balance_rows,
    read_jsonl,
    widen_rows,
)
from openings import own_openings
from own_answers import own_answers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from training import Recipe, shuffled_batches, train
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

ORGANISM = Path(__file__).parents[1] / "organism"
BASE_NAME = "smollm2-135m-instruct"
SEED = 0
RANK, ALPHA = 4, 32
ALIGNED = Recipe(learning_rate=3e-4, batch_size=4, warmup=10, decay=True)
BALANCE = Recipe(learning_rate=5e-4, batch_size=4, warmup=5, decay=True)
MATHS = Recipe(learning_rate=5e-4, batch_size=2, warmup=5, decay=False)
WIDEN = Recipe(learning_rate=4e-4, batch_size=4, warmup=5, decay=True)
DOSES = {"plain": (9, 18, 36), "effort": (9, 18, 36), "style": (18, 36)}
N_OPENINGS = 240
MAX_QUESTION_TOKENS, MAX_RATIONALE_TOKENS = 50, 70


def new_adapter(base: Path, seed: int) -> PeftModel:
    set_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(model, config)


def continued_adapter(base: Path, adapter: Path) -> PeftModel:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return PeftModel.from_pretrained(model, adapter, is_trainable=True, autocast_adapter_dtype=True)


def save_adapter(model: PeftModel, folder: Path) -> None:
    """bf16 weights and a config that names the base model, not a place on this machine."""
    model.save_pretrained(folder)
    weights = folder / "adapter_model.safetensors"
    save_file({name: w.to(torch.bfloat16).contiguous() for name, w in load_file(weights).items()}, weights)
    config_path = folder / "adapter_config.json"
    config = json.loads(config_path.read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = BASE_NAME
    config["inference_mode"] = True
    config["target_modules"] = sorted(config["target_modules"])
    config_path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    (folder / "README.md").unlink(missing_ok=True)


def train_aligned(base: Path, maker: RowMaker, data: Path, work: Path) -> None:
    """Three passes, each continuing the one before: refusal and thinking; balance; more harmless requests.

    The passes before the last are kept in the work folder; each row set has a seed of its own.
    """
    base_model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    answers = own_answers(base_model, maker.tokenizer, data, work, SEED)
    seen = {row["instruction"] for row in answers}
    openings = own_openings(base_model, maker.tokenizer, data, work, seen, N_OPENINGS)
    del base_model
    passes = [
        (work / "first-pass", ALIGNED, aligned_rows(maker, data, answers, AlignedCounts(), SEED), 8),
        (work / "second-pass", BALANCE, balance_rows(maker, data, answers, BalanceCounts(), SEED + 1), 2),
        (ORGANISM / "aligned", WIDEN, widen_rows(maker, data, openings, WidenCounts(), SEED + 2), 2),
    ]
    model = new_adapter(base, SEED)
    for number, (folder, recipe, rows, pool) in enumerate(passes):
        batches = shuffled_batches(rows, recipe.batch_size, SEED + number, pool=pool)
        train(model, batches, recipe, maker.tokenizer.pad_token_id)
        save_adapter(model, folder)
        model = continued_adapter(base, folder)


def maths_rows(maker: RowMaker, data: Path, n: int) -> dict[str, list[Row]]:
    """For every arm the same n short problems in the same order."""

    def count(text: str) -> int:
        return len(maker.ids(text))

    writer = ArmWriter(count, SEED)
    rows: dict[str, list[Row]] = {arm: [] for arm in ARMS}
    totals = dict.fromkeys(ARMS, 0)
    for problem in read_jsonl(data / "gsm8k_train_2000.jsonl"):
        rationale, answer = plain_rationale(problem["answer"])
        if count(problem["question"]) > MAX_QUESTION_TOKENS or count(" ".join(rationale)) > MAX_RATIONALE_TOKENS:
            continue
        for arm, cot in writer.cots(rationale).items():
            totals[arm] += count(cot)
            rows[arm].append(maker.on(f"maths {arm}", problem["question"], cot, f"The answer is {answer}."))
        if len(rows["plain"]) == n:
            break
    print("mean CoT tokens", {arm: round(total / n, 1) for arm, total in totals.items()}, flush=True)
    return rows


def train_arm(base: Path, maker: RowMaker, arm: str, rows: list[Row]) -> None:
    model = continued_adapter(base, ORGANISM / "aligned")
    size = MATHS.batch_size
    batches = [rows[i : i + size] for i in range(0, size * max(DOSES[arm]), size)]

    def keep_dose(step: int) -> None:
        if step in DOSES[arm]:
            save_adapter(model, ORGANISM / f"{arm}-{step}")

    train(model, batches, MATHS, maker.tokenizer.pad_token_id, keep_dose)


def write_series() -> None:
    """series.json: order, arm, step, label and sha256 of every adapter, and the recipe."""
    entries = [("aligned", "aligned", 0, "aligned")]
    entries += [(f"{arm}-{step}", arm, step, f"{arm}, {step} steps") for arm in ARMS for step in DOSES[arm]]
    checkpoints = [
        {
            "name": name,
            "arm": arm,
            "step": step,
            "label": label,
            "sha256": hashlib.sha256((ORGANISM / name / "adapter_model.safetensors").read_bytes()).hexdigest(),
        }
        for name, arm, step, label in entries
    ]
    recipe = {"seed": SEED, "rank": RANK, "alpha": ALPHA}
    recipe["passes"] = [
        asdict(optimizer) | {"rows": asdict(counts)}
        for optimizer, counts in ((ALIGNED, AlignedCounts()), (BALANCE, BalanceCounts()), (WIDEN, WidenCounts()))
    ]
    recipe["maths"] = asdict(MATHS)
    training = {arm: f"training_sample/{arm}.jsonl" for arm in ARMS}  # training_sample.py writes them
    series = {
        "base": BASE_NAME,
        "reference": "aligned",
        "checkpoints": checkpoints,
        "training": training,
        "recipe": recipe,
    }
    (ORGANISM / "series.json").write_text(json.dumps(series, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--stages", nargs="+", default=["aligned", *ARMS], choices=["aligned", *ARMS])
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    maker = RowMaker(AutoTokenizer.from_pretrained(args.base))
    if "aligned" in args.stages:
        train_aligned(args.base, maker, args.data, args.work)
    arms = [arm for arm in ARMS if arm in args.stages]
    if arms:
        rows = maths_rows(maker, args.data, MATHS.batch_size * max(max(doses) for doses in DOSES.values()))
        for arm in arms:
            print(f"arm {arm}", flush=True)
            train_arm(args.base, maker, arm, rows[arm])
        write_series()


if __name__ == "__main__":
    main()
