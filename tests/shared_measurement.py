"""A measurement that can be run by one process or by several, each of which writes what it got."""

from pathlib import Path

import numpy as np
import pytest
from families import tiny_model
from planted_neurons import planted_neurons

from rim_lens import processes
from rim_lens.behavior.generate import generate
from rim_lens.behavior.llm_judge import LLMJudge
from rim_lens.behavior.maths import maths_accuracy
from rim_lens.behavior.refusal_score import RefusalTokens, refusal_score, sequence_refusal_score
from rim_lens.behavior.rubrics import FiveStep
from rim_lens.capture.activations import head_outputs, mean_head_outputs, residuals
from rim_lens.capture.attention import attention_rows
from rim_lens.capture.neurons import neuron_activations
from rim_lens.causal.ablation_test import ablation_test as causal_test
from rim_lens.causal.measures import ScoreMeasure
from rim_lens.data.prompts import Prompt
from rim_lens.errors import RimLensError
from rim_lens.inference_time.patching import patching_sweep
from rim_lens.inference_time.span_attention import span_attention
from rim_lens.inference_time.sweep import ablation_sweep
from rim_lens.intervene import ablate_heads
from rim_lens.training_time.safety_neurons import find_safety_neurons

NAMES = ("mean", "variance", "magnitude", "firing_rate", "prompt_mean", "prompt_magnitude", "prompt_tokens")
REQUESTS = [f"request {'x' * i}" for i in range(7)]
TOKENS = RefusalTokens((70, 80), ("a", "b"))


def measurement() -> dict[str, np.ndarray]:
    """Everything that is split over processes, on tiny models; in float64, since other batches round otherwise."""
    model = tiny_model("llama")
    model.hf.double()
    return {
        **neurons(),
        **answers(model),
        **scores(model),
        **activations(model),
        **sweeps(model),
        **neuron_tests(model),
    }


def neurons():
    """Moments of a dense model and of a mixture of experts, and a set of safety neurons."""
    found = {}
    for family in ("llama", "qwen3_moe"):
        model = tiny_model(family)
        chats = model.render(REQUESTS, response="yes, sure")
        measured = neuron_activations(model, chats, per_prompt=True, batch_size=2, threshold=0.01)
        found |= {f"{family}.{name}": getattr(measured, name) for name in NAMES}
    planted = planted_neurons(n_prompts=9)
    safety = find_safety_neurons(planted.model, planted.pairs, top=8, n_resamples=20)
    return {**found, "safety": safety.rows, "jaccard": np.array(safety.jaccard)}


def answers(model):
    """Tokens and scores of generated answers, greedy and sampled, with thinking off and on; maths solved."""
    found = {}
    for thinking, temperature in (("off", 0.0), ("on", 0.0), ("off", 1.0)):
        options = {"max_new_tokens": 6, "cot_budget": 5, "temperature": temperature, "decision_score": TOKENS.score}
        written = generate(model, REQUESTS, thinking=thinking, batch_size=2, **options)
        key = f"answers.{thinking}.{temperature}"
        found[f"{key}.tokens"] = np.concatenate([one.full_chat.token_ids for one in written])
        found[f"{key}.scores"] = np.array([one.score for one in written])
    problems = [Prompt(f"{i}", f"What is {i}?", "maths", answer=f"{i}") for i in range(5)]
    rate = maths_accuracy(model, problems, max_new_tokens=4)
    return {**found, "maths": np.array([rate.k, rate.n])}


def scores(model):
    """Refusal scores in both forms, and under head sets that differ by row."""
    chats = model.render(REQUESTS)
    sets = [[(0, 1)], [(1, 2), (2, 0)], [(2, 3)]]
    measure = ScoreMeasure(model, chats, TOKENS, "here", batch_size=4)
    changed = measure(sets, lambda heads: ablate_heads(model, heads))
    return {
        "refusal": refusal_score(model, chats, TOKENS, batch_size=2),
        "sequence": sequence_refusal_score(model, chats, batch_size=5),
        "under sets": changed["refusal score, here"].values,
    }


def neuron_tests(model):
    """Answers and likelihoods with sets of neurons ablated from the decision position on: prompts are split."""
    problems = [Prompt(f"{i} and {i}?", "maths", f"m{i}", answer=f"{i}") for i in range(5)]
    controls = np.array([[(0, 4), (1, 6)], [(1, 2), (2, 3)]])
    n = {"n_controls": 2, "n_generated_controls": 1, "n_maths_controls": 2}
    found = causal_test(
        model, np.array([(0, 3), (1, 5)]), model.render(REQUESTS), maths=problems, solve=False,
        positions="from_decision", controls=controls, tokens=TOKENS, max_new_tokens=4, **n,
    )  # fmt: skip
    return {"neurons before": found.prompts["before"].to_numpy(), "neurons after": found.prompts["after"].to_numpy()}


def activations(model):
    """Attention, residual stream and head outputs."""
    chats = model.render(REQUESTS)
    spans = span_attention(model, chats, batch_size=2)
    rows = attention_rows(model, chats, (-1, 0))
    return {
        "mass": spans.mass,
        "lift": spans.lift,
        "rows": np.concatenate([one.reshape(-1) for one in rows]),
        "stream": residuals(model, chats, "user", batch_size=2).numpy(),
        "z": head_outputs(model, chats, batch_size=2).numpy(),
        "mean z": mean_head_outputs(model, chats, batch_size=2).numpy(),
    }


def sweeps(model):
    """Head sweeps with more prompts than processes (prompts are split) and with one prompt (heads are split)."""
    off, on = model.render(REQUESTS[:3]), model.render(REQUESTS[:3], thinking="prefilled", cot="hm, well")
    found = {}
    for n in (3, 1):
        found[f"exact {n}"] = ablation_sweep(model, off[:n], TOKENS, n_permutations=99).effect
        screened = ablation_sweep(model, off[:n], TOKENS, "screened", n_exact=5, n_permutations=99)
        found |= {f"estimate {n}": screened.estimate, f"screened {n}": screened.effect}
        patched = patching_sweep(model, off[:n], on[:n], TOKENS, n_together=3, n_permutations=99)
        found |= {f"patched {n}": patched.effect, f"off {n}": patched.score_off, f"on {n}": patched.score_on}
    return found


def judged(folder: Path) -> tuple[np.ndarray, int]:
    """Scores of an LLM judge whose endpoint is replaced, and how many questions this process asked."""
    asked = []
    judge = LLMJudge("http://127.0.0.1:9/v1", "m", cache=folder / "grades.jsonl")

    def answer(client, key, question, request, check):
        asked.append(request)
        judge.endpoint.cache.add(key, FiveStep(False, False, request, score=1 + len(request) % 5))

    judge.endpoint._ask = answer
    responses = [f"answer {i}" for i in range(7)]
    first, again = (judge.grade(REQUESTS, responses) for _ in range(2))
    assert first == again
    return np.array([grade.score for grade in first]), len(asked)


def saved(folder: Path) -> int:
    """Save a result, meet the error of saving another one there; how many folders there are."""
    model = tiny_model("llama")
    result = span_attention(model, model.render(REQUESTS))
    result.save(folder / "spans")
    assert (folder / "spans" / "result.json").is_file()  # it is there for those that waited, too
    with pytest.raises(RimLensError, match="another result"):
        result.save(folder / "spans")
    return len(list(folder.glob("spans*")))


def write_part(place: Path) -> None:
    """What one process gets, in a file under its rank."""
    mine = processes.share(7)
    gathered = processes.gather_items(7, mine, [f"item {i}" for i in mine])
    grades, n_asked = judged(place)
    np.savez(
        place / f"{processes.rank()}.npz",
        **measurement(),
        mine=np.array(mine),
        gathered=np.array(gathered),
        grades=grades,
        n_asked=n_asked,
        n_saved=saved(place),
    )
