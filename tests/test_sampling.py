"""Sampled answers.

Frequencies against probabilities by hand and by transformers, streams of their own, rates over samples.
"""

import copy

import numpy as np
import pandas as pd
import pytest
import torch
from families import tiny_model, tiny_tokenizer
from scipy import stats
from test_generate import PROMPTS, chain_model
from transformers import GenerationConfig

from rim_lens.behavior.generate import generate
from rim_lens.behavior.judge import Judgement
from rim_lens.behavior.measure import measure_rim
from rim_lens.behavior.sampling import Sampling, sampling_for
from rim_lens.data.prompts import Prompt, PromptSet
from rim_lens.errors import RimLensError
from rim_lens.model.lens_model import LensModel
from rim_lens.patterns.costs import pattern_costs
from rim_lens.stats import share_difference, share_interval

THINKS = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)


class ParityJudge:
    """Calls an answer refused where its first character is an even one."""

    name = "parity"

    def __call__(self, requests, responses, cots=None, truncated=None):
        return [Judgement("complied" if ord((r or "b")[0]) % 2 else "refused", 1.0, "") for r in responses]


def native_model(**config):
    """A model whose template opens the think tag, with this generation config."""
    hf = copy.deepcopy(tiny_model("llama").hf)
    hf.generation_config = GenerationConfig(**config)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = THINKS
    return LensModel("native", tokenizer, hf=hf)


def made_set(n=6):
    return PromptSet("made", "made", tuple(Prompt(f"request number {i}", None, str(i)) for i in range(n)))


def first_tokens(model, n, **options):
    """Which token each of n answers begins with."""
    answers = generate(model, PROMPTS[:1], max_new_tokens=1, samples=n, batch_size=1000, **options)
    ends = model.chat_format.eos_ids[0]
    return np.array([answer.response_ids[0] if answer.response_ids else ends for answer in answers])


def probabilities_by_hand(model, temperature, top_p):
    """softmax of the logits over the smallest set of likeliest tokens with this share of probability."""
    batch = model.batch(model.render(PROMPTS[:1]))
    logits = model.decision_logits(batch)[0].double().detach().numpy() / temperature
    p = np.exp(logits - logits.max())
    p /= p.sum()
    order = np.argsort(-p)
    kept = order[: int(np.searchsorted(p[order].cumsum(), top_p)) + 1]
    cut = np.zeros_like(p)
    cut[kept] = p[kept]
    return cut / cut.sum()


def fits(tokens, expected):
    """p of the chi-square test, tokens that are expected less than 5 times taken together."""
    observed = np.bincount(tokens, minlength=len(expected))
    assert not observed[expected == 0].any()
    wanted, common = expected * len(tokens), expected * len(tokens) >= 5
    observed = [*observed[common], observed[~common].sum()]
    wanted = [*wanted[common], wanted[~common].sum()]
    return stats.chisquare(*((observed, wanted) if wanted[-1] > 0 else (observed[:-1], wanted[:-1]))).pvalue


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 1.0), (1.0, 0.6), (1.5, 0.9)])
def test_frequencies_are_the_probabilities_computed_by_hand(temperature, top_p):
    model = tiny_model("llama")
    tokens = first_tokens(model, 4000, temperature=temperature, top_p=top_p)
    assert fits(tokens, probabilities_by_hand(model, temperature, top_p)) > 0.01


@pytest.mark.slow
def test_a_native_model_is_sampled_as_transformers_generate_samples_it():
    config = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 30, "min_p": 0.01}
    model = native_model(**config)
    chat = model.render(PROMPTS[0], thinking="off")[0]
    ids = torch.tensor(chat.token_ids)[None]
    theirs = model.hf.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=1,
        pad_token_id=model.pad_id,
        return_dict_in_generate=True,
        output_scores=True,
    )
    assert fits(first_tokens(model, 4000), theirs.scores[0][0].double().softmax(-1).numpy()) > 0.01


def test_defaults_are_the_models_own_where_it_thinks_natively():
    config = {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "top_k": 20}
    assert sampling_for(native_model(**config)) == Sampling(0.6, 0.95, 20)
    assert sampling_for(native_model(**config), 0.9, 0.5, 3) == Sampling(0.9, 0.5, 20, samples=3)
    assert sampling_for(native_model(**config), 0) == Sampling()
    assert sampling_for(native_model(do_sample=True)) == Sampling(1.0)
    assert sampling_for(native_model(temperature=0.6)) == Sampling()
    plain = native_model(**config)
    plain.tokenizer.chat_template = tiny_tokenizer().chat_template
    assert sampling_for(LensModel("plain", plain.tokenizer, hf=plain.hf)) == Sampling()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"temperature": -1}, "temperature of -1"),
        ({"temperature": float("nan")}, "temperature of nan"),
        ({"samples": 3}, "the same answer 3 times"),
        ({"samples": 0, "temperature": 1}, "asks for no answer"),
        ({"top_p": 0.9}, "no effect at temperature 0"),
        ({"top_p": 0, "temperature": 1}, "top_p=0"),
        ({"cot_budget": 0, "thinking": "on"}, "holds no thought"),
    ],
)
def test_a_sampling_that_cannot_be_is_refused(options, words):
    with pytest.raises(RimLensError, match=words):
        generate(tiny_model("llama"), PROMPTS, **options)


@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen3_next"])
@pytest.mark.slow
def test_a_sample_is_the_same_in_any_batch_and_beside_any_number_of_others(family):
    model, sampled = tiny_model(family), {"temperature": 1.0, "max_new_tokens": 6, "thinking": "on", "cot_budget": 5}
    three = generate(model, PROMPTS, samples=3, **sampled)
    assert len({answer.full_chat.token_ids.tobytes() for answer in three}) > len(PROMPTS)
    apart = generate(model, PROMPTS, samples=3, batch_size=1, **sampled)
    five = generate(model, PROMPTS, samples=5, batch_size=7, **sampled)
    wanted = [answer.full_chat.token_ids.tolist() for answer in three]
    assert [answer.full_chat.token_ids.tolist() for answer in apart] == wanted
    assert [five[5 * i + s].full_chat.token_ids.tolist() for i in range(len(PROMPTS)) for s in range(3)] == wanted


def test_a_prompt_is_read_once_for_all_its_samples():
    model, read = tiny_model("llama"), []
    hook = model.hf.register_forward_pre_hook(lambda _, args, kwargs: read.append(args[0].shape[0]), with_kwargs=True)
    try:
        generate(model, PROMPTS[:2], samples=8, temperature=1.0, max_new_tokens=2)
    finally:
        hook.remove()
    assert read[0] == 2
    assert 8 < read[1] <= 16


def test_rates_and_probabilities_per_prompt_are_over_prompts_and_samples():
    model, prompts = tiny_model("llama"), made_set()
    options = {"harmless": None, "maths": None, "judge": ParityJudge(), "max_new_tokens": 2, "cot_budget": 4}
    table = measure_rim(model, prompts, temperature=1.0, top_p=0.9, samples=5, **options)
    answers = table.answers[table.answers["condition"] == "off"]
    assert sorted(zip(answers["prompt"], answers["sample"], strict=True)) == [
        (i, s) for i in range(6) for s in range(5)
    ]
    refused = (answers["label"] == "refused").to_numpy().reshape(6, 5)
    row = table.table.query("condition == 'off' and measure == 'refused'").iloc[0]
    assert (row["k"], row["n"], row["n_prompts"], row["n_samples"]) == (refused.sum(), 30, 6, 5)
    ends = share_interval(refused[:, None].astype(float))
    assert (row["low"], row["high"]) == tuple(ends)
    each = table.per_prompt().query("condition == 'off'")
    assert each["rate"].tolist() == refused.mean(axis=1).tolist()
    assert (each["n"] == 5).all()
    assert set(table.differences["method"]) == {"bootstrap over prompts, 5 samples within each"}
    assert table.manifest.extra["sampling"] == {
        "temperature": 1.0,
        "top_p": 0.9,
        "top_k": None,
        "min_p": None,
        "samples": 5,
    }
    other = measure_rim(model, prompts, temperature=1.0, samples=5, seed=1, **options)
    assert other.answers["response"].tolist() != table.answers["response"].tolist()


def test_costs_of_patterns_take_samples_and_only_answers_sampled_alike():
    model, prompts = tiny_model("llama"), made_set(4)
    options = {"judge": ParityJudge(), "max_new_tokens": 2, "temperature": 1.0}
    before = measure_rim(model, prompts, None, None, thinking=("off",), samples=2, **options)
    some = {"classes": ("neutral", "careful"), "wordings_per_prompt": 1}
    costs = pattern_costs(model, prompts, measured=before, samples=2, **some, **options)
    assert costs.table.set_index("class").loc["careful", ["n", "n_prompts"]].tolist() == [8, 4]
    with pytest.raises(RimLensError, match="another prompts, sampling"):
        pattern_costs(model, prompts, measured=before, samples=3, **some, **options)


def test_the_share_of_thoughts_that_their_budget_ended_stands_beside_the_rates():
    options = {"harmless": None, "maths": None, "judge": ParityJudge(), "max_new_tokens": 2}
    found = measure_rim(chain_model("\nabcdefg"), made_set(4), cot_budget=9, **options)
    endless = found.table
    closing = measure_rim(chain_model("\nab</think>"), made_set(4), cot_budget=40, **options).table
    assert set(endless.query("condition == 'on'")["cut"]) == {1.0}
    assert set(closing.query("condition == 'on'")["cut"]) == {0.0}
    assert endless.query("condition == 'off'")["cut"].isna().all()
    assert (endless.query("condition == 'on'")["cut_low"] < 1).all()
    assert {"rate", "cut"} <= set(str(found).split())


@pytest.mark.slow
def test_a_thought_of_thousands_of_tokens_fills_the_context():
    model = chain_model("\nabcdefg", context=1300)
    chat = model.render(PROMPTS[0], thinking="on")[0]
    prompts = [PROMPTS[0], PROMPTS[3]]
    longest, shorter = generate(model, prompts, thinking="on", cot_budget="auto", max_new_tokens=4)
    close = len(model.chat_format.close_ids)
    assert len(longest.full_chat) == 1300
    assert int(shorter.chat.where("cot").sum()) == int(longest.chat.where("cot").sum()) == 1300 - len(chat) - close - 4
    assert (longest.closed, longest.cut) == (False, True)


def test_a_budget_of_nothing_is_refused_only_where_there_is_a_thought():
    model = tiny_model("llama")
    off = [generate(model, PROMPTS, max_new_tokens=3, cot_budget=budget) for budget in (0, 96)]
    assert [answer.response_ids for answer in off[0]] == [answer.response_ids for answer in off[1]]


def test_a_thought_that_ends_the_turn_is_not_cut():
    model = chain_model("\nab")
    with torch.no_grad():
        model.hf.lm_head.weight[model.tokenizer.eos_token_id, model.tokenizer.convert_tokens_to_ids("b")] = 2.0
    answer = generate(model, ["Hi"], thinking="on", cot_budget=40, max_new_tokens=8)[0]
    assert (answer.closed, answer.cut) == (False, False)


def drawn(rng, n, k, mean, spread):
    """Outcomes of n prompts × k samples whose probabilities are Beta-distributed around a mean."""
    chance = rng.beta(mean * spread, (1 - mean) * spread, n)
    return (rng.random((n, 1, k)) < chance[:, None, None]).astype(float), chance


@pytest.mark.parametrize("n", [32, 100])
@pytest.mark.parametrize("mean", [0.1, 0.5])
@pytest.mark.parametrize("spread", [0.5, 4.0])
def test_intervals_over_prompts_and_samples_cover(n, mean, spread):
    rng = np.random.default_rng(0)
    covered = [mean in share_interval(drawn(rng, n, 4, mean, spread)[0]) for _ in range(1000)]
    assert np.mean(covered) > 0.92


@pytest.mark.slow
@pytest.mark.parametrize("spread", [0.5, 4.0])
def test_intervals_of_differences_over_prompts_and_samples_cover(spread):
    rng, covered = np.random.default_rng(0), []
    for i in range(400):
        before, chance = drawn(rng, 32, 4, 0.5, spread)
        after = (rng.random(before.shape) < 0.8 * chance[:, None, None]).astype(float)
        covered.append(-0.1 in share_difference(after, before, seed=i).interval)
    assert np.mean(covered) > 0.92


def test_more_samples_of_the_same_prompts_never_count_as_prompts():
    outcomes = np.repeat(np.arange(20)[:, None, None] % 2, 50, axis=2).astype(float)
    ends = share_interval(outcomes)
    single = share_interval(outcomes[:, :, :1])
    assert ends.high - ends.low > 0.9 * (single.high - single.low)
    assert pd.notna(ends.low)
