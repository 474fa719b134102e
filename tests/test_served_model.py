"""A model behind a server answers as the same model here does; what needs its inside is one sentence."""

from contextlib import contextmanager

import numpy as np
import pytest
from completions_server import CompletionsTestServer
from families import tiny_model

from rim_lens import load_model
from rim_lens.behavior.generate import generate
from rim_lens.behavior.measure import measure_rim
from rim_lens.behavior.refusal_score import RefusalTokens, refusal_score, sequence_refusal_score
from rim_lens.capture.neurons import neuron_activations
from rim_lens.errors import RimLensError
from rim_lens.inference_time.span_attention import span_attention
from rim_lens.intervene.heads import ablate_heads

PROMPTS = ["Name a fruit.", "Why is the sky blue?", "Say hello.", "Explain how a bicycle stays upright."]
QUICK = {"backoff": 0.001, "retries": 3}


@contextmanager
def serving(model, dialect="ids", cache=False, **options):
    server = CompletionsTestServer(model, dialect)
    try:
        yield (
            server,
            load_model(
                server.url,
                model="tiny",
                tokenizer=model.tokenizer,
                engine_options={"cache": cache, **QUICK, **options},
            ),
        )
    finally:
        server.shutdown()
        server.server_close()


def shown(generation):
    return (
        generation.response_ids,
        generation.chat.token_ids.tolist(),
        generation.closed,
        generation.cut,
        generation.truncated,
    )


@pytest.mark.parametrize("thinking", ["off", "on"])
def test_greedy_answers_are_those_of_the_model_here(thinking):
    model = tiny_model("qwen3")
    options = {"thinking": thinking, "max_new_tokens": 6, "cot_budget": 9}
    with serving(model) as (server, served):
        there = generate(served, PROMPTS, **options)
    assert [shown(one) for one in there] == [shown(one) for one in generate(model, PROMPTS, **options)]
    assert all(isinstance(body["prompt"], list) for body in server.bodies)


def test_a_server_that_takes_text_only_gives_the_same_text():
    model = tiny_model("llama")
    with serving(model, "text") as (server, served):
        there = generate(served, PROMPTS, thinking="on", max_new_tokens=6, cot_budget=6)
        assert served.engine.describe()["sends"] == "text"
    assert isinstance(server.bodies[-1]["prompt"], str)
    for one in there:
        assert one.chat.text.startswith(model.render(PROMPTS, thinking="on")[there.index(one)].text)
        assert one.cut or one.closed is not None


def test_a_thought_that_closes_itself_and_one_that_its_budget_ends():
    from test_generate import chain_model

    model = chain_model("\nab</think>")
    with serving(model) as (_, served):
        closed, cut = (generate(served, "q", thinking="on", cot_budget=n, max_new_tokens=8)[0] for n in (64, 2))
        here = [generate(model, "q", thinking="on", cot_budget=n, max_new_tokens=8)[0] for n in (64, 2)]
    assert [shown(closed), shown(cut)] == [shown(one) for one in here]
    assert (closed.closed, cut.closed) == (here[0].closed, False)
    assert cut.cut


@pytest.mark.slow
def test_measure_rim_gives_the_same_rates():
    model = tiny_model("qwen3")
    options = {"n": 3, "max_new_tokens": 4, "cot_budget": 5, "harmless": None}
    with serving(model) as (_, served):
        there = measure_rim(served, **options)
    here = measure_rim(model, **options)
    assert there.answers["response"].tolist() == here.answers["response"].tolist()
    assert there.table["rate"].tolist() == here.table["rate"].tolist()
    assert there.answers["refusal_score"].isna().all()


def test_refusal_score_from_log_probabilities():
    model = tiny_model("qwen3")
    tokens = RefusalTokens((40, 41, 77), ("a", "b", "c"))
    chats = model.render(PROMPTS)
    with serving(model) as (_, served):
        np.testing.assert_allclose(refusal_score(served, chats, tokens), refusal_score(model, chats, tokens), atol=1e-4)
    with serving(model, "text") as (_, served), pytest.raises(RimLensError, match="does not give the log-prob"):
        refusal_score(served, chats, tokens)


@pytest.mark.slow
def test_samples_are_drawn_from_their_own_seeds():
    model = tiny_model("qwen3")
    options = {"temperature": 1.0, "samples": 3, "max_new_tokens": 8}
    with serving(model) as (server, served):
        first = [one.response_ids for one in generate(served, PROMPTS[:2], seed=1, **options)]
        again = [one.response_ids for one in generate(served, PROMPTS[:2], seed=1, **options)]
        other = [one.response_ids for one in generate(served, PROMPTS[:2], seed=2, **options)]
    assert first == again != other
    assert len(set(first)) == 6
    assert len({body["seed"] for body in server.bodies}) == 12


def test_failures_pass_and_nothing_is_asked_twice(tmp_path, monkeypatch):
    monkeypatch.setenv("RIM_LENS_API_KEY", "secret-key")
    model, cache = tiny_model("qwen3"), tmp_path / "written.jsonl"
    with serving(model, cache=cache) as (server, served):
        server.failures.extend([503, 429])
        first = [shown(one) for one in generate(served, PROMPTS, max_new_tokens=4)]
        asked = len(server.bodies)
        assert asked == len(PROMPTS) + 2
        again = load_model(
            server.url, model="tiny", tokenizer=model.tokenizer, engine_options={"cache": cache, **QUICK}
        )
        assert [shown(one) for one in generate(again, PROMPTS, max_new_tokens=4)] == first
        assert len(server.bodies) == asked
        assert set(server.keys) == {"Bearer secret-key"}
    assert "secret-key" not in cache.read_text()


def test_what_came_in_before_a_failure_is_kept(tmp_path):
    model, cache = tiny_model("qwen3"), tmp_path / "written.jsonl"
    with serving(model, cache=cache, concurrency=1) as (server, served):
        server.failures.extend([200, 200, *[503] * 4])
        with pytest.raises(RimLensError, match=r"in 4 attempts .*replies so far are in the cache") as raised:
            generate(served, PROMPTS, max_new_tokens=4)
        assert "\n" not in str(raised.value)
        generate(served, PROMPTS, max_new_tokens=4)
        assert len(server.bodies) == 2 + 4 + 2


@pytest.mark.parametrize(
    "inside",
    [
        lambda model: ablate_heads(model, [(0, 0)]).__enter__(),
        lambda model: span_attention(model, "Hi"),
        lambda model: neuron_activations(model, "Hi", "all"),
        lambda model: sequence_refusal_score(model, "Hi"),
        lambda model: model.decision_logits(model.batch(model.render("Hi"))),
        lambda model: model.n_layers,
    ],
)
def test_what_needs_the_inside_is_one_sentence(inside):
    with serving(tiny_model("qwen3")) as (_, served), pytest.raises(RimLensError, match="answers only: load the wei"):
        inside(served)


def test_a_wrong_name_and_a_missing_tokenizer_are_one_sentence():
    model = tiny_model("qwen3")
    with serving(model) as (server, _):
        with pytest.raises(RimLensError, match="needs model="):
            load_model(server.url, model="tiny")
        other = load_model(server.url, model="other", tokenizer=model.tokenizer, engine_options={"cache": False})
        with pytest.raises(RimLensError, match=r"refused to continue .*status 404"):
            generate(other, "Hi")


def test_the_context_is_the_servers():
    with serving(tiny_model("qwen3")) as (_, served):
        assert served.max_length == 512
        with pytest.raises(RimLensError, match="context of 512"):
            generate(served, "Hi", max_new_tokens=600)
