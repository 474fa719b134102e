"""Report which heads of `aligned` carry its refusals: ranked on some requests, tested on others, as Markdown.

    python assets/make_series/report_heads.py --data DATA_FOLDER

DATA_FOLDER holds harmful_test.jsonl. Heads are ranked at the decision position on the distinct ones of the 200 requests
that report_series.py draws; the first eight are zeroed on 200 of the rest, at the decision position against 100 random
sets, and everywhere on 32 of these, where answers are generated, against as many.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

from rim_lens import Checkpoints, PromptSet, ablation_sweep, ablation_test, load_prompts
from rim_lens.causal.ablation_test import AblationTest

SERIES = Path(__file__).parents[1] / "organism"
N_REQUESTS, N_SCREENED, N_HEADS, N_SETS, N_ANSWERED = 200, 54, 8, 100, 32


def drawn(path: Path) -> tuple[PromptSet, PromptSet]:
    """The requests to rank heads on, and as many others to test them on."""
    whole = load_prompts(path)
    mixed = random.Random(0).sample(list(whole), len(whole))
    first = random.Random(0).sample(list(whole), N_REQUESTS)
    seen = {prompt.text: prompt for prompt in first}
    others = {prompt.text: prompt for prompt in mixed if prompt.text not in seen}
    ranked, tested = tuple(seen.values()), tuple(others.values())[:N_REQUESTS]
    return PromptSet(whole.name, whole.source, ranked), PromptSet(whole.name, whole.source, tested)


def told(test: AblationTest, where: str) -> list[str]:
    """Rows of one test."""
    return [
        f"| {where} | {row['measure']} | {row['n']} | {row['before']:.3f} | {row['after']:.3f} | {row['effect']:+.3f} "
        f"[{row['low']:+.3f}, {row['high']:+.3f}] | {row['control_low']:+.3f} to {row['control_high']:+.3f} "
        f"({row['n_controls']}) | {row['p']:.2g} |"
        for _, row in test.table.iterrows()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    ranked, tested = drawn(parser.parse_args().data / "harmful_test.jsonl")
    series = Checkpoints.from_folder(SERIES)
    model = series.open()
    series.load(model, "aligned")
    sweep = ablation_sweep(
        model, model.render(ranked.texts), method="screened", positions="decision", n_exact=N_SCREENED
    )
    heads = sweep.ranked(N_HEADS, "supports")
    print(f"{sweep.caption()}\n\nTested: {', '.join(f'L{layer}H{head}' for layer, head in heads)}\n")
    print("| ablated | measure | n | before | after | effect | random sets | p |")
    print("| --- " * 8 + "|")
    common = {"n_controls": N_SETS, "alternative": "less"}
    score = ablation_test(model, heads, list(tested), positions="decision", generated=False, **common)
    print("\n".join(told(score, "decision position")), flush=True)
    few = list(tested)[:N_ANSWERED]
    answers = ablation_test(model, heads, few, n_generated_controls=N_SETS, **common)
    print("\n".join(told(answers, "everywhere")))


if __name__ == "__main__":
    main()
