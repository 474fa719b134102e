"""The inference-time stage: which heads' attention goes with refusal, which carry it, and where it can be read.

Heads are ranked on the prompts of the behaviour stage and tested on others, so that the test is not an echo of the
choice.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from rim_lens.audit.attempt import attempt
from rim_lens.audit.stage import Context
from rim_lens.behavior.conditions import chats_of
from rim_lens.behavior.generate import Generation, generate
from rim_lens.behavior.measure import RimTable
from rim_lens.behavior.refusal_score import refusal_tokens
from rim_lens.causal.ablation_test import ablation_test
from rim_lens.causal.run_scores import heads_of
from rim_lens.chat.segments import Thinking
from rim_lens.inference_time.held_out_attention import on_other_chats
from rim_lens.inference_time.probe import probe_refusal
from rim_lens.inference_time.refusal_heads import ContrastName, find_refusal_heads
from rim_lens.inference_time.span_attention import span_attention
from rim_lens.inference_time.sweep import AblationSweep, ablation_sweep
from rim_lens.inference_time.token_attention import TokenAttention, token_attention
from rim_lens.model.lens_model import LensModel
from rim_lens.results import Result

BY_GROUP: tuple[ContrastName, ...] = ("cot_divergence",)  # few answers with thinking off are not refusals
SHOWN_REQUESTS = 4  # read token by token under every head, thinking off and on


def measure_heads(context: Context) -> Mapping[str, Result]:
    """Attention contrasts, ablation sweep, causal test on other prompts, probe, token view."""
    behavior = context.results["behavior"]
    assert isinstance(behavior, RimTable)
    other = answers_to_others(context, behavior)  # first: an engine that writes is not in memory beside the model
    found = attention_contrasts(context, behavior, other) | ablations(context, behavior)
    return found | refusal_probe(context, behavior) if context.plan.extent.probe else found


def attention_contrasts(context: Context, behavior: RimTable, other: Sequence[Generation]) -> dict[str, Result]:
    """Heads' attention against the refusal score and between refused and complied answers, thinking off and on."""
    model, plan = context.model, context.plan
    answers = pd.concat([answers_in(behavior, "harmful", "off"), answers_in(behavior, "harmful", "on")])
    chats, labels = chats_of(answers), answers["label"].tolist()
    attention = span_attention(model, chats, batch_size=plan.batch_size)
    scores = answers["refusal_score"].to_numpy()
    by_score = find_refusal_heads(model, chats, outcome=scores, attention=attention, seed=plan.seed)
    by_group = attempt(
        model,
        "attention of refused against complied answers",
        lambda: find_refusal_heads(model, chats, labels, contrasts=BY_GROUP, attention=attention, seed=plan.seed),
    )
    other_scores = np.array([one.score for one in other], dtype=np.float64)
    other_chats = [one.chat for one in other]
    tested = on_other_chats(model, by_score, other_chats, other_scores, batch_size=plan.batch_size)
    return {"attention_by_score": tested, "refusal_heads": by_group}


def answers_to_others(context: Context, behavior: RimTable) -> list[Generation]:
    """Other requests with their scores, thinking off and on with the model's own CoTs, to test chosen heads on."""
    model, plan = context.writer, context.plan
    modes: list[Thinking] = ["off"] if answers_in(behavior, "harmful", "on").empty else ["off", "on"]
    other, score = list(context.other_prompts("harmful")), refusal_tokens(model).score
    return [
        generation
        for mode in modes
        for generation in generate(
            model,
            other,
            thinking=mode,
            max_new_tokens=1,  # only the CoT and the score after it are read
            cot_budget=plan.cot_budget,
            batch_size=plan.batch_size,
            temperature=plan.temperature,
            top_p=plan.top_p,
            seed=plan.seed,
            decision_score=score,
        )
    ]


def ablations(context: Context, behavior: RimTable) -> dict[str, Result]:
    """Each head's ablation on the sample, and the strongest ones' on other prompts against random sets."""
    model, plan = context.model, context.plan
    off, on = answers_in(behavior, "harmful", "off"), answers_in(behavior, "harmful", "on")
    sweep = ablation_sweep(
        model, chats_of(off), method="screened", positions="suffix", n_exact=plan.extent.screened, seed=plan.seed
    )
    heads = sweep.ranked(max(plan.extent.doses), "supports")
    test = attempt(
        model,
        "causal test of heads",
        lambda: ablation_test(
            model,
            heads,
            list(context.other_prompts("harmful")),
            doses=[k for k in plan.extent.doses if k <= len(heads)] or [len(heads)],
            positions="decision",
            n_controls=plan.n_controls,
            generated=False,
            alternative="less",
            seed=plan.seed,
        ),
    )
    return {"ablation": sweep, "head_test": test, "token_attention": token_views(model, off, on, sweep)}


def token_views(model: LensModel, off: pd.DataFrame, on: pd.DataFrame, sweep: AblationSweep) -> TokenAttention:
    """Every head's attention to the words of a few chats, the same requests with thinking off and on.

    Strongest heads first.
    """
    chosen_rows = pd.concat([off[:SHOWN_REQUESTS], on[:SHOWN_REQUESTS]])
    heads = list(dict.fromkeys([*sweep.ranked(), *heads_of(model)]))
    return token_attention(model, chats_of(chosen_rows), heads, notes=chosen_rows["label"].tolist())


def refusal_probe(context: Context, behavior: RimTable) -> dict[str, Result]:
    """Refused against complied answers, read from the residual stream before the answer.

    Harmful and harmless requests.
    """
    model, plan = context.model, context.plan
    answers = pd.concat([answers_in(behavior, "harmful", "off"), answers_in(behavior, "harmless", "off")])
    chats, labels = chats_of(answers), answers["label"].tolist()
    probe = attempt(
        model,
        "refusal probe",
        lambda: probe_refusal(model, chats, labels, batch_size=plan.batch_size, seed=plan.seed),
    )
    return {"probe": probe}


def answers_in(behavior: RimTable, set_name: str, condition: str) -> pd.DataFrame:
    """The first answer to each prompt of one set in one condition, by prompt."""
    answers = behavior.answers
    chosen = answers[(answers["set"] == set_name) & (answers["condition"] == condition) & (answers["sample"] == 0)]
    return chosen.sort_values("prompt").reset_index(drop=True)
