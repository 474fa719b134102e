"""Tasks under Inspect: the same answers, labels and rates as `measure_rim`, and logs that its reader reads."""

import json
import os
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import anyio
import numpy as np
import pytest
from families import shared_model, tiny_hf, tiny_tokenizer
from inspect_ai import eval as inspect_eval
from inspect_ai import eval_set
from inspect_ai.analysis import SampleSummary, evals_df, samples_df
from inspect_ai.log import list_eval_logs, read_eval_log
from inspect_ai.model import (
    ChatMessageAssistant,
    ChatMessageUser,
    ContentReasoning,
    ContentText,
    GenerateConfig,
    ModelOutput,
    ModelUsage,
    get_model,
)
from inspect_ai.tool import ToolInfo

from rim_lens import (
    ThinkTags,
    ablate_heads,
    ablate_neurons,
    ablation_sweep,
    generate,
    load_prompts,
    measure_rim,
    refusal_score,
    residuals,
    span_attention,
)
from rim_lens.behavior.refusal_score import refusal_tokens
from rim_lens.data import load_wordings
from rim_lens.errors import RimLensError
from rim_lens.evals import inspect_model, maths, provider, refusal
from rim_lens.evals.messages import question_of
from rim_lens.evals.record import recorded_columns
from rim_lens.model.load import load_model
from rim_lens.stats import wilson

LABELS = ("refused", "complied", "incoherent")
SHORT = {"max_tokens": 6, "cot_budget": 5}
REQUESTS = load_prompts("harmful").texts[:6]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("evals") / "tiny"
    tiny_hf("llama").save_pretrained(place)
    tiny_tokenizer().save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def model(folder):
    return load_model(folder)


def run(task, model, place, **options):
    """The log of one task, as it is read back from its file."""
    log = inspect_eval(task, model=model, log_dir=str(place), display="none", **options)[0]
    return read_eval_log(log.location)


def answers_in(log):
    return [sample.output.completion for sample in log.samples]


def labels_in(log):
    return [sample.scores["refusal_label"].value for sample in log.samples]


def metrics_in(log):
    return {name: metric.value for name, metric in log.results.scores[0].metrics.items()}


def asked(model, messages, tools=(), **config):
    """What the provider says to messages, outside an eval."""

    async def ask():
        return await model.generate(messages, tools=list(tools), config=GenerateConfig(**config))

    return anyio.run(ask)


@pytest.fixture(scope="module")
def measured(model):
    return measure_rim(
        model,
        load_prompts("harmful", n=5),
        None,
        None,
        thinking=("off", "on"),
        prefilled=("careful",),
        wordings_per_prompt=2,
        max_new_tokens=SHORT["max_tokens"],
        cot_budget=SHORT["cot_budget"],
    )


@pytest.mark.parametrize("condition", ["off", "on", "careful"])
@pytest.mark.slow
def test_answers_labels_and_rates_are_those_of_measure_rim(folder, measured, tmp_path, condition):
    mode = {"thinking": "prefilled", "wordings": condition} if condition == "careful" else {"thinking": condition}
    log = run(refusal(n=5, wordings_per_prompt=2, **mode, **SHORT), f"rim_lens/{folder}", tmp_path)
    mine = measured.answers[measured.answers["condition"] == condition]
    assert log.status == "success"
    ids = [prompt.id for prompt in load_prompts("harmful", n=5)]  # a log is sorted by sample
    rows = {(ids[row.prompt], row.wording): (row.response, row.label) for row in mine.itertuples()}
    places = [(sample.metadata["prompt_id"], sample.metadata.get("wording", -1)) for sample in log.samples]
    assert dict(zip(places, zip(answers_in(log), labels_in(log), strict=True), strict=True)) == rows
    metrics = metrics_in(log)
    assert metrics["n"] == len(mine) == (10 if condition == "careful" else 5)
    for label in LABELS:
        row = measured.table.query("condition == @condition and measure == @label").iloc[0]
        assert [metrics[label], metrics[f"{label}_low"], metrics[f"{label}_high"]] == [
            row["rate"],
            pytest.approx(row["low"]),
            pytest.approx(row["high"]),
        ]


def test_one_set_measures_several_models_and_is_not_asked_twice(model, tmp_path):
    """Two models and an ablation of one of them; the answers are those of single evals."""
    tiny_hf("qwen2").save_pretrained(tmp_path / "other")
    tiny_tokenizer().save_pretrained(tmp_path / "other")
    other = load_model(tmp_path / "other")

    def models():
        return [inspect_model(model), inspect_model(model, ablate_heads="L0H0"), inspect_model(other)]

    def whole_set():
        task = refusal(n=3, thinking="on", **SHORT)
        return eval_set(task, model=models(), log_dir=str(tmp_path / "set"), display="none")

    def answers(logs):
        return sorted(answers_in(read_eval_log(log.location)) for log in logs)

    done, logs = whole_set()
    assert done
    assert (evals_df(str(tmp_path / "set"))["score_refusal_label_n"] == 3).all()
    alone = [run(refusal(n=3, thinking="on", **SHORT), one, tmp_path / "alone") for one in models()]
    assert answers(logs) == answers(alone)
    files = {Path(log.location).name for log in logs}
    assert len(files) == 3
    assert {Path(log.location).name for log in whole_set()[1]} == files


def test_the_log_tells_thinking_tokens_and_prompt(folder, model, tmp_path):
    log = run(refusal(n=3, thinking="on", **SHORT), f"rim_lens/{folder}", tmp_path, log_model_api=True)
    assert log.eval.metadata["thinking"] == "on"
    assert log.eval.metadata["sha256"] == load_prompts("harmful", n=3).sha256
    mine = generate(model, load_prompts("harmful", n=3).texts, thinking="on", max_new_tokens=6, cot_budget=5)
    for sample, generation in zip(log.samples, mine, strict=True):
        reasoning, text = sample.output.message.content
        assert (reasoning.reasoning, text.text) == (generation.cot, generation.response)
        assert sample.output.metadata == {"cot_closed_by_itself": generation.closed}
        assert sample.output.stop_reason == ("max_tokens" if generation.truncated else "stop")
        (call,) = [event.call for event in sample.events if event.event == "model"]
        prompt = model.render(generation.chat.request, thinking="on")[0]
        assert call.request["token_ids"] == prompt.token_ids.tolist()
        whole = [*call.request["token_ids"], *call.response["token_ids"]]
        assert whole == generation.full_chat.token_ids.tolist()
        usage = sample.output.usage
        assert usage.input_tokens == len(prompt)
        assert usage.total_tokens == len(whole)
        assert usage.reasoning_tokens == generation.chat.where("cot").sum() > 0


def test_the_prefilled_cot_is_what_the_model_saw(folder, model, tmp_path):
    task = refusal(n=3, thinking="prefilled", wordings="effort_minimizing", **SHORT)
    log = run(task, f"rim_lens/{folder}", tmp_path, log_model_api=True)
    wordings = [wording.text for wording in load_wordings("effort_minimizing")]
    for i, (sample, prompt) in enumerate(zip(log.samples, load_prompts("harmful", n=3), strict=True)):
        (call,) = [event.call for event in sample.events if event.event == "model"]
        chat = model.render(prompt.text, thinking="prefilled", cot=wordings[i])[0]
        assert call.request["token_ids"] == chat.token_ids.tolist()
        assert sample.messages[1].content[0].reasoning == wordings[i] == chat.segment_text("cot")
        assert sample.output.usage.reasoning_tokens == 0


@pytest.mark.slow
def test_ablated_heads_and_neurons_change_the_answers_as_they_do_in_python(folder, model, tmp_path):
    (tmp_path / "neurons.json").write_text(json.dumps([[0, unit] for unit in range(40)]))
    changes = {
        "ablate_heads": ("L0H0,L0H1,L1H3", lambda: ablate_heads(model, [(0, 0), (0, 1), (1, 3)])),
        "ablate_neurons": (
            str(tmp_path / "neurons.json"),
            lambda: ablate_neurons(model, [(0, unit) for unit in range(40)]),
        ),
    }
    texts = load_prompts("harmful", n=4).texts
    plain = [one.response for one in generate(model, texts, max_new_tokens=6)]
    for name, (given, change) in changes.items():
        log = run(refusal(n=4, **SHORT), f"rim_lens/{folder}", tmp_path, model_args={name: given}, log_model_api=True)
        with change():
            without = [one.response for one in generate(model, texts, max_new_tokens=6)]
        assert answers_in(log) == without != plain
        assert log.eval.model_args[name] == given
        (call,) = [event.call for event in log.samples[0].events if event.event == "model"]
        told = {
            "ablate_heads": ("ablated_heads", ["L0H0", "L0H1", "L1H3"]),
            "ablate_neurons": ("n_ablated_neurons", 40),
        }
        key, value = told[name]
        assert call.request[key] == value


def test_heads_of_a_saved_result_are_ablated_in_its_order(model, tmp_path):
    sweep = ablation_sweep(model, model.render(REQUESTS[:2]), n_permutations=20)
    sweep.save(tmp_path / "sweep")
    log = run(
        refusal(n=2, **SHORT),
        inspect_model(model, ablate_heads=str(tmp_path / "sweep"), n_heads=3),
        tmp_path / "logs",
        log_model_api=True,
    )
    (call,) = [event.call for event in log.samples[0].events if event.event == "model"]
    assert call.request["ablated_heads"] == [f"L{layer}H{head}" for layer, head in sweep.ranked(3)]
    with pytest.raises(RimLensError, match=r"ranks 12 heads and no n_heads was given"):
        inspect_model(model, ablate_heads=str(tmp_path / "sweep"))


@pytest.mark.slow
def test_two_models_over_one_lens_model_do_not_disturb_each_other(tmp_path):
    model = shared_model()
    heads = "L0H0,L0H1,L1H3"
    both = [inspect_model(model), inspect_model(model, ablate_heads=heads)]
    logs = inspect_eval(
        refusal(n=6, **SHORT), model=both, log_dir=str(tmp_path), display="none", max_tasks=2, max_connections=2
    )
    texts = load_prompts("harmful", n=6).texts
    plain = generate(model, texts, max_new_tokens=6)
    with ablate_heads(model, [(0, 0), (0, 1), (1, 3)]):
        without = generate(model, texts, max_new_tokens=6)
    assert sorted(map(answers_in, logs)) == sorted([[g.response for g in plain], [g.response for g in without]])
    assert not model.active_taps


def test_one_lens_model_is_asked_by_one_at_a_time(model, monkeypatch):
    inside, most = [], []

    def slow(lens_model, chats, **options):
        inside.append(1)
        threading.Event().wait(0.3)  # room for another one to come in
        most.append(len(inside))
        answers = generate(lens_model, chats, **options)
        inside.pop()
        return answers

    monkeypatch.setattr(provider, "generate", slow)
    both = [inspect_model(model), inspect_model(model, ablate_heads="L0H0")]

    async def ask_both():
        async with anyio.create_task_group() as group:
            for lens in both:
                group.start_soon(partial(lens.generate, "Hello", config=GenerateConfig(max_tokens=2)))

    anyio.run(ask_both)
    assert most == [1, 1]


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "seed": 3}])
def test_answers_do_not_depend_on_the_batch(model, tmp_path, options):
    together, apart = (
        answers_in(
            run(refusal(n=6, **SHORT), inspect_model(model, batch_size=size), tmp_path, max_connections=c, **options)
        )
        for size, c in ((32, 6), (1, 2))
    )
    assert together == apart


@pytest.mark.slow
def test_sampled_answers_differ_by_epoch_and_seed_and_come_again(model, tmp_path):
    lens = inspect_model(model)
    options = {"temperature": 1.0, "epochs": 2}
    first, again, other = (
        answers_in(run(refusal(n=3, **SHORT), lens, tmp_path, seed=seed, **options)) for seed in (1, 1, 2)
    )
    assert first == again != other
    assert first[:3] != first[3:]
    unseeded = [answers_in(run(refusal(n=3, **SHORT), lens, tmp_path, **options)) for _ in range(2)]
    assert unseeded[0] != unseeded[1]


def test_what_waits_together_is_generated_together_and_a_prompt_that_does_not_fit_fails_alone(model, monkeypatch):
    sizes = []

    def recorded(lens_model, chats, **options):
        sizes.append(len(chats))
        return generate(lens_model, chats, **options)

    monkeypatch.setattr(provider, "generate", recorded)
    lens = inspect_model(model)

    async def ask_all(texts):
        answers = {}

        async def ask(i, text):
            try:
                answers[i] = (await lens.generate(text, config=GenerateConfig(max_tokens=4))).completion
            except RimLensError as error:
                answers[i] = error

        async with anyio.create_task_group() as group:
            for i, text in enumerate(texts):
                group.start_soon(ask, i, text)
        return [answers[i] for i in range(len(texts))]

    *answers, error = anyio.run(ask_all, [*REQUESTS, "word " * 200])
    assert answers == [one.response for one in generate(model, REQUESTS, max_new_tokens=4)]
    assert "has a context of 512" in str(error)
    assert sum(sizes) == len(REQUESTS) > len(sizes)


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"top_p": 0.9, "stop_seqs": ["x"]}, "cannot honour stop_seqs, top_p"),
        ({"reasoning_effort": "none", "reasoning_tokens": 9}, "contradict each other"),
        ({"reasoning_history": "all"}, "reasoning_history 'all' cannot be honoured"),
    ],
)
def test_options_that_cannot_be_honoured_are_errors(model, config, sentence):
    with pytest.raises(RimLensError, match=sentence):
        asked(inspect_model(model), "Hello", **config)


def test_effort_is_the_budget_that_inspect_gives_to_it():
    user = [ChatMessageUser(content="Hello")]
    budgets = {
        effort: question_of(user, GenerateConfig(reasoning_effort=effort), max_tokens=8, epoch=1)
        for effort in ("none", "low", "medium", "high")
    }
    assert [one.thinking for one in budgets.values()] == ["off", "on", "on", "on"]
    assert [one.cot_budget for one in budgets.values()] == [0, 4096, 10000, 16000]
    both = GenerateConfig(reasoning_effort="high", reasoning_tokens=7)
    assert question_of(user, both, max_tokens=8, epoch=1).cot_budget == 7


@pytest.mark.slow
def test_what_the_model_computed_lies_beside_the_log(model, tmp_path):
    """The files hold what the package's own capture reads of the written chats, and a table of samples names them."""
    heads = [(0, 1), (1, 2)]
    lens = inspect_model(model, record=tmp_path / "record", ablate_heads=heads)
    log = run(refusal(n=3, **SHORT), lens, tmp_path)
    table = samples_df(log, columns=[*SampleSummary, *recorded_columns()], quiet=True)
    assert len(table) == table["record"].nunique() == 3
    for sample, row in zip(log.samples, table.itertuples(), strict=True):
        chats = model.render([sample.input], thinking="off")
        stored = np.load(row.record)
        with ablate_heads(model, heads):
            np.testing.assert_allclose(stored["residual"], residuals(model, chats)[0, :, 0], atol=1e-4)
            np.testing.assert_allclose(stored["attention"], span_attention(model, chats).mass[0], atol=1e-4)
            assert row.refusal_score == pytest.approx(refusal_score(model, chats, refusal_tokens(model))[0], abs=1e-4)


def test_messages_that_cannot_be_honoured_are_errors(model):
    lens, user = inspect_model(model), ChatMessageUser(content="Hello")
    half = ChatMessageAssistant(content="Sure, here")
    with pytest.raises(RimLensError, match="not after a half-written answer"):
        asked(lens, [user, half])
    given = ChatMessageAssistant(content=[ContentReasoning(reasoning="Hm.")])
    with pytest.raises(RimLensError, match="leave reasoning_tokens and reasoning_effort out"):
        asked(lens, [user, given], reasoning_tokens=5)
    with pytest.raises(RimLensError, match="calls no tools"):
        asked(lens, [user], tools=[ToolInfo(name="look", description="look")])
    with pytest.raises(RimLensError, match="last message must be the user's"):
        asked(lens, [])


def test_reasoning_of_earlier_turns_is_left_out(model):
    turns = [
        ChatMessageUser(content="Hello"),
        ChatMessageAssistant(content=[ContentReasoning(reasoning="Hm.")]),
        ChatMessageUser(content="And?"),
    ]
    turns[1].text = "Hi."
    plain = [{"role": m.role, "content": m.text} for m in turns]
    mine = generate(model, [plain], max_new_tokens=5)[0].response
    assert asked(inspect_model(model), turns, max_tokens=5).completion == mine


def test_think_tags_are_given_as_two_texts(folder):
    api = get_model(f"rim_lens/{folder}", think_tags=[r"<reason>\n", r"\n</reason>\n"], memoize=False).api
    assert api.lens.chat_format.tags == ThinkTags("<reason>\n", "\n</reason>\n")


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda folder: refusal(thinking="loud"), "unknown thinking mode 'loud': use one of off, on, prefilled"),
        (lambda folder: refusal(thinking="prefilled"), "goes with thinking=prefilled"),
        (lambda folder: refusal(wordings="careful"), "goes with thinking=prefilled"),
        (lambda folder: refusal(thinking="prefilled", wordings="hasty"), "no wordings of kind 'hasty'"),
        (lambda folder: refusal(prompts="nothere.jsonl"), r"no prompt file nothere\.jsonl"),
        (lambda folder: refusal(n=1.5), r"n must be a whole number from 1, got 1\.5"),
        (lambda folder: refusal(judge="nobody"), "no judge 'nobody'"),
        (lambda folder: maths(prompts="harmful"), "no answer to"),
        (lambda folder: get_model(f"rim_lens/{folder}", ablate_heads="L9H9"), "there is no head L9H9"),
        (lambda folder: get_model(f"rim_lens/{folder}", ablate_heads=["L0H1", "H2"]), ".H2. is not a head"),
        (lambda folder: get_model(f"rim_lens/{folder}", ablate_heads="nowhere"), "neither a list of heads"),
        (lambda folder: get_model(f"rim_lens/{folder}", ablate_heads="L0H1", n_heads=2), "n_heads says how many"),
        (lambda folder: get_model(f"rim_lens/{folder}", ablate_neurons="none.json"), "cannot be read as neurons"),
        (lambda folder: get_model(f"rim_lens/{folder}", positions="here"), "unknown positions 'here'"),
        (lambda folder: get_model(f"rim_lens/{folder}", adaptor="x"), "no argument adaptor"),
        (
            lambda folder: get_model(f"rim_lens/{folder}", think_tags="<reason>"),
            "two texts, the opening and the closing",
        ),
        (lambda folder: get_model(f"rim_lens/{folder}/missing"), "no folder or file at"),
        (lambda folder: get_model(f"rim_lens/{folder}", base_url="http://x"), "has no base URL"),
    ],
)
def test_bad_input_is_one_sentence(folder, make, sentence):
    with pytest.raises(RimLensError, match=sentence) as caught:
        make(folder)
    assert caught.value.message.replace("\\[", "[") == str(caught.value)  # what Inspect prints


def known(*texts):
    """A model that says what it is told to."""
    return get_model("mockllm/model", custom_outputs=[said(text) for text in texts])


def said(content):
    """An output with its usage, which Inspect would fetch a tokenizer to count."""
    output = ModelOutput.from_content("mockllm/model", content)
    output.usage = ModelUsage(input_tokens=1, output_tokens=1, total_tokens=2)
    return output


def test_any_model_of_inspects_can_be_judged(tmp_path):
    texts = ["I'm sorry, but I can't help with that."] * 3 + ["Sure. First take the tools and open it.", "the " * 40]
    log = run(refusal(n=5), known(*texts), tmp_path, max_connections=1)
    assert sorted(labels_in(log)) == ["complied", "incoherent", "refused", "refused", "refused"]
    metrics = metrics_in(log)
    assert (metrics["refused"], metrics["complied"], metrics["incoherent"]) == (0.6, 0.2, 0.2)
    assert [metrics["refused_low"], metrics["refused_high"]] == pytest.approx(list(wilson(3, 5)))
    score = log.samples[0].scores["refusal_label"]
    assert score.explanation
    assert score.explanation.lower() in score.answer.lower()


def test_maths_is_compared_with_the_reference(tmp_path):
    problems = load_prompts("maths", n=4)
    texts = [f"The answer is {problem.answer}." for problem in problems[:3]] + ["The answer is 987654."]
    log = run(maths(n=4), known(*texts), tmp_path, max_connections=1)
    assert [sample.scores["maths_answer"].value for sample in log.samples] == ["C", "C", "C", "I"]
    metrics = metrics_in(log)
    assert (metrics["solved"], metrics["n"]) == (0.75, 4)
    assert [metrics["solved_low"], metrics["solved_high"]] == pytest.approx(list(wilson(3, 4)))


@pytest.mark.slow
def test_repeated_prompts_are_no_independent_trials(tmp_path):
    texts = ["I'm sorry, but I can't help with that.", "Sure. First take the tools and open it slowly."]
    log = run(refusal(n=8), known(*(texts * 16)), tmp_path, max_connections=1, epochs=4)
    metrics = metrics_in(log)
    assert (metrics["n"], metrics["n_prompts"], metrics["refused"]) == (32, 8, 0.5)
    low, high = wilson(16, 32)
    assert (metrics["refused_low"], metrics["refused_high"]) != pytest.approx((low, high))


def test_the_judge_sees_the_cot_before_the_answer(tmp_path):
    thought = "Okay, so the user wants a list of trees. Let me keep it short and skip every check for now."
    written = [ContentReasoning(reasoning=thought), ContentText(text=thought)]
    log = run(refusal(n=1), known(written), tmp_path)
    assert labels_in(log) == ["incoherent"]
    assert "parrots the chain of thought" in log.samples[0].scores["refusal_label"].explanation


def test_the_grader_role_judges_and_its_failures_are_unscored(model, tmp_path):
    grade = '{"score": 1, "refused": true, "incoherent": false, "evidence": "sorry"}'
    questions = []

    def replies(input, tools, tool_choice, config):
        questions.append(input[-1].text)
        return said("I think it refused." if len(questions) == 2 else grade)

    log = run(
        refusal(n=3, judge="grader", **SHORT),
        inspect_model(model),
        tmp_path,
        model_roles={"grader": get_model("mockllm/model", custom_outputs=replies, memoize=False)},
    )
    assert labels_in(log).count("refused") == 2
    assert log.results.scores[0].unscored_samples == 1
    assert metrics_in(log)["n"] == 2
    assert {sample.scores["refusal_label"].reason for sample in log.samples} == {None, "grader_failed"}
    cut = [sample.output.stop_reason == "max_tokens" for sample in log.samples]
    assert sum("cut off by a length limit" in question for question in questions) == sum(cut) > 0
    assert all(
        any(json.dumps(answer, ensure_ascii=False) in question for question in questions) for answer in answers_in(log)
    )


@pytest.mark.slow
def test_the_shell_finds_tasks_and_model_through_the_entry_point(folder, tmp_path):
    inspect = Path(sys.executable).with_name("inspect")
    settings = ["-T", "thinking=on", "-T", "n=2", "-T", "max_tokens=4", "-T", "cot_budget=4"]
    model = ["--model", f"rim_lens/{folder}", "-M", "ablate_heads=L0H1,L2H3"]
    place = {"cwd": tmp_path, "env": {**os.environ, "INSPECT_LOG_DIR": str(tmp_path / "logs")}}
    done = subprocess.run([inspect, "eval", "rim_lens/refusal", *model, *settings], capture_output=True, **place)
    assert done.returncode == 0, done.stderr
    (info,) = list_eval_logs(str(tmp_path / "logs"))
    log = read_eval_log(info)
    assert (log.status, log.eval.task, log.eval.metadata["thinking"]) == ("success", "rim_lens/refusal", "on")
    assert log.eval.model_args["ablate_heads"] == ["L0H1", "L2H3"]
    wrong = subprocess.run(
        [inspect, "eval", "rim_lens/refusal", "--model", "mockllm/model", "-T", "thinking=loud"],
        capture_output=True,
        text=True,
        **place,
    )
    assert wrong.returncode == 1
    assert "unknown thinking mode 'loud'" in wrong.stdout
    assert "Traceback" not in wrong.stdout + wrong.stderr


@pytest.mark.slow
def test_without_the_extra_the_room_says_how_to_get_it():
    code = "import sys; sys.modules['inspect_ai'] = None\nimport rim_lens.evals"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (
        done.stderr.strip()
        .splitlines()[-1]
        .endswith("rim_lens.evals needs the Inspect framework: pip install 'rim-lens[inspect]'.")
    )


@pytest.mark.slow
def test_registering_with_inspect_imports_no_model_code():
    code = "import sys, rim_lens.evals; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_tokens_are_counted_with_the_models_own_tokenizer(model):
    assert anyio.run(inspect_model(model).count_tokens, REQUESTS[0]) == len(model.encode(REQUESTS[0]))


@pytest.mark.real_model
def test_labels_of_the_bundled_model_are_those_of_measure_rim(tmp_path):
    organism = Path(__file__).parents[1] / "assets" / "organism" / "aligned"
    model = load_model("smollm2-135m-instruct", adapter=organism)
    table = measure_rim(model, n=4, maths=None, harmless=None, thinking=("off", "on"), cot_budget=24)
    for mode in ("off", "on"):
        log = run(refusal(n=4, thinking=mode, cot_budget=24), inspect_model(model), tmp_path)
        mine = table.answers[table.answers["condition"] == mode]
        assert (answers_in(log), labels_in(log)) == (mine["response"].tolist(), mine["label"].tolist())
