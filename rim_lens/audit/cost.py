"""About how long an audit takes on a CPU: the tokens that its stages compute, over the speed of a matrix product.

A token of a prompt counts once, a generated one GENERATED times, since so few rows use the processor badly. Thoughts
are taken to fill half their budget. Counts per stage are held against measured stages by `tests/test_cost.py`.
"""

import time
from collections.abc import Mapping

import torch

from rim_lens.audit.plan import AuditPlan

GENERATED = 4.0  # processor time of a generated token over that of a prompt's, 32 rows at a time on one core
WRITTEN = {"transformers": GENERATED, "vllm": 3.3}  # by engine: plain answers by `make bench-engine`
LATER_LAYERS = 0.6  # share of a pass that one head's ablation computes again
GIVEN = 60  # tokens of a given CoT
WORKED = 40  # tokens of a worked answer
SHARE = 0.95  # of the speed of one large matrix product that whole passes reach, in multiplications with weights
SIDE = 512  # of that product
PAIRED = 4  # passes that gradients cost, or that the choice of neurons takes


def stage_tokens(plan: AuditPlan, lengths: Mapping[str, float], checkpoints: int) -> dict[str, float]:
    """Tokens that each stage computes, generated ones weighted; `lengths`: mean tokens of a prompt by set."""
    extent, n = plan.extent, plan.n * plan.samples
    budget = plan.cot_budget if isinstance(plan.cot_budget, int) else 0
    written = WRITTEN[plan.engine]
    answer, thought = written * plan.max_new_tokens, written * budget / 2
    asked, solved = n * (lengths["harmful"] + answer), n * (lengths["maths"] + written * plan.maths_tokens)
    given = n * (lengths["harmful"] + GIVEN + answer)
    read = plan.n * (lengths["harmful"] + budget / 4)  # half of the chats have a thought of half the budget
    column = plan.n * GENERATED / 2  # one more token for every prompt, for one of many sets
    harmless = len(extent.harmless) * n * (lengths["harmless"] + answer) + (len(extent.harmless) - 1) * n * thought
    tokens = {"behavior": 2 * asked + n * thought + harmless + len(plan.given_cots) * given}
    if extent.maths:
        tokens["behavior"] += 2 * solved + n * thought
    if extent.given_cots:
        tokens["behavior"] += given  # harmless requests with a neutral CoT
    if plan.asks_patterns:
        tokens["patterns"] = 6 * given
    if plan.heads:
        sweep = plan.n * lengths["harmful"] * (PAIRED + LATER_LAYERS * extent.screened)
        tested = len(extent.doses) * plan.n_controls * column
        held_out = 2 * read + plan.n * thought
        tokens["heads"] = 4 * read + held_out + sweep + tested + (4 * read if extent.probe else 0)
    answer = GENERATED * plan.max_new_tokens  # transformers writes what follows
    asked = n * (lengths["harmful"] + answer)
    if checkpoints:
        problems = 2 * min(plan.n, extent.problems or plan.n) * (lengths["maths"] + WORKED)
        tokens["series"] = checkpoints * (asked + problems) + 2 * PAIRED * plan.n * lengths["harmful"]
    if checkpoints and plan.neurons:
        tokens["series"] += checkpoints * 9 * column
        tokens["neurons"] = 2 * plan.n_controls * column
        if extent.tested_beside:
            tokens["neurons"] += 2 * plan.n * answer + 40 * 8 * WORKED
        if extent.training_data:
            tokens["neurons"] += 3 * PAIRED * plan.n * lengths["harmful"]
        if extent.thinking_neurons:
            tokens["thinking_neurons"] = 2 * read
    return tokens


def matrix_speed(seconds: float = 0.5) -> float:
    """Multiplications and additions per second in large float32 matrix products on this processor, as busy as it is."""
    a, b = torch.randn(SIDE, SIDE), torch.randn(SIDE, SIDE)
    a @ b  # the first one is slower
    products, start = 0, time.perf_counter()
    while time.perf_counter() < start + seconds:
        a @ b
        products += 1
    return 2 * SIDE**3 * products / (time.perf_counter() - start)


def seconds_for(tokens: float, n_parameters: int, speed: float) -> float:
    """Seconds that so many tokens take in a model with so many parameters beside its embeddings."""
    return tokens * 2 * n_parameters / (SHARE * speed)
