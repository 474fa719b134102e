"""Too little memory.

Every public function that runs prompts together goes on with half as many, and gives the same numbers.
"""

import gc
import importlib
import inspect
import json
from contextlib import ExitStack, contextmanager
from dataclasses import fields

import numpy as np
import pandas as pd
import pytest
import torch
from families import tiny_model
from planted import planted_model
from planted_neurons import planted_neurons, save_shift
from public_names import PUBLIC
from safetensors.torch import load_file, save_file
from test_judge import OTHER, REQUESTS, RESPONSES, classifier  # noqa: F401 - a fixture

import rim_lens
from rim_lens import PromptSet, RimLensError
from rim_lens.behavior.judge import Judgement
from rim_lens.behavior.refusal_score import RefusalTokens
from rim_lens.causal.measures import ScoreMeasure
from rim_lens.causal.set_scores import without_heads
from rim_lens.data import Prompt
from rim_lens.intervene import ablate_heads
from rim_lens.model.fitting import AtOnce
from rim_lens.results import Result
from rim_lens.training_time.checkpoints import Checkpoints
from rim_lens.training_time.prompt_pass import pass_over

R = RefusalTokens((70, 80), ("a", "b"))
TEXTS = [f"request {'x' * i} !" for i in range(6)]
NEURONS = [(0, 3), (1, 5), (2, 11), (2, 12)]
FEW = 2  # rows that fit into memory


def cuda_is_full():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def cpu_is_full():
    torch.empty(1 << 55)  # a real refusal by the allocator


@contextmanager
def room_for(hf, rows, refuse=cuda_is_full):
    """Every layer refuses more than `rows` rows at once; says which numbers were tried."""
    tried = []

    def check(module, args, kwargs):
        tried.append(len(args[0] if args else kwargs["hidden_states"]))
        if tried[-1] > rows:
            refuse()

    layers = hf.model.layers if hasattr(hf, "model") else hf.bert.encoder.layer
    handles = [layer.register_forward_pre_hook(check, with_kwargs=True) for layer in layers]
    try:
        yield tried
    finally:
        for handle in handles:
            handle.remove()


def shifted(planted, folder):
    """Checkpoints that move the planted neurons and what the last layer writes, so that their scores differ."""
    for step in range(1, 5):
        path = save_shift(folder / "series" / f"step-{step}", planted, 0.1 * step, 0.2) / "adapter_model.safetensors"
        generator = torch.Generator().manual_seed(step)
        a, b = (
            torch.randn(shape, generator=generator) * 0.05 * step
            for shape in ((2, planted.model.d_mlp), (planted.model.d_model, 2))
        )
        name = "base_model.model.model.layers.2.mlp.down_proj"
        save_file({**load_file(path), f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}, path)
    return Checkpoints.from_folder(folder / "series")


class Setting:
    """Models and prompts that the calls below share; float64, since batches of other sizes round otherwise."""

    def __init__(self, folder):
        self.model = tiny_model("llama", seed=3, max_position_embeddings=2048)
        self.model.hf.double()
        self.off = self.model.render(TEXTS)
        self.on = self.model.render(TEXTS, thinking="prefilled", cot="hm, well")
        self.prompts = [Prompt(text, f"group {i % 2}", f"p{i}") for i, text in enumerate(TEXTS)]
        self.maths = [Prompt(f"{i} and {i}?", "maths", f"m{i}", answer=f"{i}") for i in range(6)]
        self.sets = [PromptSet(name, "here", tuple(self.prompts)) for name in ("harmful", "harmless")]
        self.maths_set = PromptSet("maths", "here", tuple(self.maths))
        self.many, self.labels = self.model.render([f"request {i}" for i in range(12)]), ["refused", "complied"] * 6
        self.planted = planted_neurons(n_prompts=6)
        self.planted.model.hf.double()
        self.series = shifted(self.planted, folder)
        self.probed, truth = planted_model(0, n_prompts=12)
        self.thinking = self.probed.render(truth.harmful, thinking="prefilled", cot=truth.cots)
        self.single = tiny_model("llama", seed=3)  # a shift is predicted in float32
        self.arms = {
            arm: write_arm(folder / f"{arm}.jsonl", lazy) for arm, lazy in (("plain", ""), ("lazy", "Obviously. "))
        }
        self.probe = rim_lens.probe_refusal(
            self.probed, self.probed.render(truth.harmful), ["refused", "complied"] * 6, n_permutations=5, n_folds=2
        )

    @property
    def trees(self):
        """The transformers models."""
        return [self.model.hf, self.planted.model.hf, self.probed.hf, self.single.hf]


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    return Setting(tmp_path_factory.mktemp("series"))


class OneJudge:
    """Every answer is complied with: labels are tested elsewhere."""

    name = "one"

    def __call__(self, requests, responses, cots=None, truncated=None):
        return [Judgement("complied" if "a" in response else "refused", 1.0, "") for response in responses]


SHORT = {"max_new_tokens": 2, "judge": OneJudge()}
TEST = {"n_controls": 4, "n_generated_controls": 2, "tokens": R, **SHORT}


def lazily(function, **options):
    """The public function, once it is called."""
    return lambda s: getattr(rim_lens, function)(s.model, **{k: v(s) if callable(v) else v for k, v in options.items()})


def off(s):
    return s.off


def on(s):
    return s.on


# Public functions that run prompts together, each by the ways in which it does.
BATCHED = {
    "segment_masses": [lazily("segment_masses", chats=off)],
    "residuals": [lazily("residuals", chats=off)],
    "head_outputs": [lazily("head_outputs", chats=off)],
    "neuron_activations": [lazily("neuron_activations", chats=off, positions="user", per_prompt=True)],
    "record_heads": [lambda s: rim_lens.record_heads(s.model, s.off).z],
    "generate": [
        lambda s: answer_tokens(rim_lens.generate(s.model, TEXTS, max_new_tokens=4)),
        lambda s: answer_tokens(
            rim_lens.generate(s.model, TEXTS, max_new_tokens=4, cot_budget=3, thinking="on", temperature=1.0)
        ),
    ],
    "refusal_score": [lazily("refusal_score", chats=off, tokens=R)],
    "sequence_refusal_score": [lazily("sequence_refusal_score", chats=off)],
    "maths_accuracy": [lambda s: np.array(rim_lens.maths_accuracy(s.model, s.maths, max_new_tokens=2).k)],
    "measure_rim": [
        lambda s: rim_lens.measure_rim(
            s.model, *s.sets, s.maths_set, thinking=("off", "on"), cot_budget=3, maths_tokens=2, tokens=R, **SHORT
        )
    ],
    "span_attention": [lazily("span_attention", chats=off)],
    "find_refusal_heads": [
        lambda s: rim_lens.find_refusal_heads(s.model, s.many, s.labels, contrasts=("empty_span",), n_permutations=20)
    ],
    "ablation_sweep": [
        lazily("ablation_sweep", chats=off, metric=R, method=method, positions=positions, n_permutations=20)
        for method in ("exact", "screened", "plain")
        for positions in ("all", "suffix", "decision")
    ],
    "patching_sweep": [
        lazily(
            "patching_sweep",
            off_chats=off,
            on_chats=on,
            metric=R,
            positions=positions,
            method=method,
            n_permutations=20,
        )
        for positions in ("decision", "from think_close")
        for method in ("exact", "plain")
    ],
    "interchange_sweep": [
        lazily("interchange_sweep", harmful_chats=off, harmless_twin_chats=off, metric=R, n_top=3, n_permutations=20)
    ],
    "ablation_test": [
        lambda s: rim_lens.ablation_test(s.model, [(0, 1), (2, 3)], s.off, harmless=s.on, maths=s.maths, **TEST),
        lambda s: rim_lens.ablation_test(
            s.model, [(0, 1), (2, 3)], s.off, positions="decision", generated=False, **TEST
        ),
        lambda s: rim_lens.ablation_test(
            s.model, [(0, 1)], s.off, method="mean", reference=s.on, generated=False, **TEST
        ),
        lambda s: rim_lens.ablation_test(
            s.model, [(0, 1)], s.off, method="resample", reference=s.on, generated=False, **TEST
        ),
    ]
    + [
        lambda s, where=where: rim_lens.ablation_test(
            s.model,
            np.array(NEURONS),
            s.off,
            maths=s.maths,
            positions=where,
            controls=np.array([NEURONS[::-1], NEURONS] * 2),
            n_maths_controls=2,
            **TEST,
        )
        for where in ("all", "from_decision")
    ]
    + [
        lambda s: rim_lens.ablation_test(
            s.model,
            np.array(NEURONS),
            s.off,
            method=("mean", "resample"),
            generated=False,
            controls=np.array([NEURONS[::-1]] * 4),
            n_maths_controls=2,
            **TEST,
        )
    ],
    "restore_refusal": [lambda s: rim_lens.restore_refusal(s.model, [(0, 1), (2, 3)], TEXTS, cot_budget=3, **TEST)],
    "probe_refusal": [lambda s: rim_lens.probe_refusal(s.model, s.many, s.labels, n_folds=2, n_permutations=5)],
    "trace_refusal": [lambda s: rim_lens.trace_refusal(s.probed, s.thinking, s.probe, window=2)],
    "series_behavior": [lambda s: rim_lens.series_behavior(s.planted.model, s.series, s.sets[0], tokens=R, **SHORT)],
    "teacher_forced_pairs": [
        lambda s: np.concatenate(
            [
                one.token_ids
                for one in rim_lens.teacher_forced_pairs(s.planted.model, s.planted.harmful, max_new_tokens=3).harmful
            ]
        )
    ],
    "find_safety_neurons": [
        lambda s: rim_lens.find_safety_neurons(s.planted.model, s.planted.pairs, top=8, n_resamples=5)
    ],
    "neuron_table": [lambda s: rim_lens.neuron_table(s.model, NEURONS, TEXTS, on=s.on)],
    "measure_series": [
        lambda s: (
            rim_lens.measure_series(
                s.planted.model,
                s.series,
                s.planted.harmful,
                task=s.planted.task,
                neurons=sorted(s.planted.neurons),
                tokens=R,
                positions="user",
                task_thinking="off",
            )
            .forgetting({name: 0.1 * i for i, name in enumerate(s.series.names)}, n_controls=20, n_resamples=20)
            .table
        ),
        # correlations rank values that differ by rounding alone
        lambda s: rim_lens.measure_series(
            s.planted.model, s.series, s.planted.harmful, heads=[(0, 1), (2, 3)], n_random=4, tokens=R
        ).heads(),
    ],
    "series_maths": [
        lambda s: rim_lens.series_maths(s.planted.model, s.series, s.maths_set, max_new_tokens=2, cot_budget=3)
    ],
    "predict_shift": [
        lambda s: rim_lens.predict_shift(
            s.single,
            NEURONS,
            s.single.render(TEXTS, response="yes"),
            s.single.render(TEXTS),
            positions="user",
            n_controls=20,
        )
    ],
    "explore_neurons": [lambda s: rim_lens.explore_neurons(s.model, NEURONS, TEXTS).table],
    "pattern_costs": [
        lambda s: rim_lens.pattern_costs(
            s.model, s.sets[0], classes=("neutral", "careful"), wordings_per_prompt=2, **SHORT
        )
    ],
    "arm_divergence": [lambda s: rim_lens.arm_divergence(s.arms, tokenizer=s.model, base=s.model)],
    "make_cot_pairs": [lambda s: rim_lens.make_cot_pairs(COT_ROWS, tokenizer=s.model, base=s.model)],
}


def write_arm(path, lazy):
    """Fine-tuning rows of one arm."""
    rows = [{"request": one["question"], "cot": lazy + one["cot"], "response": one["answer"]} for one in COT_ROWS]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


COT_ROWS = [
    {
        "question": f"A box holds {k} pens. How many pens are in 6 boxes?",
        "cot": f"Each of the 6 boxes holds {k} pens. That makes 6 x {k} = {6 * k} pens.",
        "answer": str(6 * k),
    }
    for k in range(3, 15)
]
# Public names that take a model or a batch size and run no prompts together, with the reason.
NOT_BATCHED = {
    "attention_rows": "one chat per pass",
    "token_attention": "one chat per pass",
    "explore_heads": "one chat per pass",
    "cot_importance": "one chat per pass",
    "receiver_heads": "one chat per pass",
    "on_other_chats": "its only passes are those of span_attention",
    "check_model": "two short chats",
    "fit_refusal_tokens": "no pass",
    "refusal_tokens": "no pass",
    "given_pairs": "no pass",
    "refusal_forcing_pairs": "no pass",
    **dict.fromkeys(
        ("ablate_heads", "scale_heads", "knock_out", "patch_heads", "ablate_neurons", "scale_neurons", "steer"),
        "a change of passes",
    ),
    "TrainingSettings": "a batch is part of what is trained",
    "ClassifierJudge": "tested below",
    **dict.fromkeys(
        ("direct_attribution", "expert_load", "mediation", "path_patching", "refusal_direction"),
        "halved, but not tried here",
    ),
    "compare_ablations": "its passes are those of ablation_test",
    **dict.fromkeys(("direction_drift", "self_repair"), "their passes are those of residuals and of ablation_sweep"),
}


def answer_tokens(generations):
    return np.concatenate([one.full_chat.token_ids for one in generations])


def runs_prompts(function):
    """Whether a public name takes a model, or says how many prompts go together."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return False
    return any(one.name == "batch_size" or "LensModel" in str(one.annotation) for one in parameters)


def test_no_public_function_is_forgotten():
    taken = {name for name, function in PUBLIC.items() if runs_prompts(function)}
    assert taken == set(BATCHED) | set(NOT_BATCHED)


def numbers(found):
    """All numbers of a result as one row, without manifest."""
    if isinstance(found, torch.Tensor | np.ndarray):
        return np.asarray(found, dtype=np.float64).ravel()
    if isinstance(found, pd.DataFrame):
        return found.select_dtypes("number").to_numpy(dtype=np.float64).ravel()
    if isinstance(found, int | float):
        return np.array([found], dtype=np.float64)
    if isinstance(found, dict):
        return np.concatenate([np.zeros(0), *(numbers(one) for one in found.values())])
    if isinstance(found, Result):
        return numbers({field.name: getattr(found, field.name) for field in fields(found) if field.name != "manifest"})
    return np.zeros(0)


@pytest.fixture(scope="module", autouse=True)
def quick_collections():
    """Memory is collected at every try; what was there before need not be looked through again."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module", autouse=True)
def short_maths():
    """Solutions of four tokens: how many prompts are solved together does not depend on their length."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importlib.import_module("rim_lens.causal.ablation_test"), "MATHS_ANSWER", 4)
        yield


CASES = [(name, i) for name, ways in BATCHED.items() for i in range(len(ways))]


@pytest.mark.parametrize(("name", "way"), CASES, ids=[f"{name}-{i}" for name, i in CASES])
@pytest.mark.slow
def test_half_as_many_prompts_at_once_give_the_same_numbers(setting, name, way):
    measure = BATCHED[name][way]
    plenty = numbers(measure(setting))
    assert len(plenty)
    with ExitStack() as stack:
        for tree in setting.trees:
            stack.enter_context(room_for(tree, FEW))
        with pytest.warns(UserWarning, match=r"do not fit into memory \(CUDA out of memory.*went on with [12] at once"):
            scarce = numbers(measure(setting))
    np.testing.assert_allclose(scarce, plenty, rtol=2e-5, atol=2e-5)


# ---- how it is done
# ---------------------------------------------------------------------------------------------------


def test_a_real_refusal_by_the_allocator_is_met_too(setting):
    plenty = numbers(BATCHED["ablation_sweep"][0](setting))
    with pytest.warns(UserWarning, match="can't allocate memory"), room_for(setting.model.hf, FEW, cpu_is_full):
        np.testing.assert_allclose(numbers(BATCHED["ablation_sweep"][0](setting)), plenty, rtol=1e-9)


def test_nothing_that_was_done_is_done_again():
    done, tried, room = [], [], [8]

    def work(some):
        tried.append(len(some))
        if len(some) > room[0]:
            cuda_is_full()
        done.extend(some)
        room[0] = 3 if len(done) == 8 else room[0]  # something else takes memory after the first part
        return len(some)

    at_once = AtOnce(8, "work")
    with pytest.warns(UserWarning, match="work: 8 prompts together .* went on with 2 at once"):
        assert list(at_once.parts(range(20), work)) == [8, 2, 2, 2, 2, 2, 2]
    assert done == list(range(20))
    assert tried == [8, 8, 4, 2, 2, 2, 2, 2, 2]


def test_a_last_part_is_halved_from_its_own_size():
    tried = []

    def work(some):
        tried.append(len(some))
        if len(some) > 1:
            cuda_is_full()

    with pytest.warns(UserWarning, match="3 prompts together"):
        list(AtOnce(64, "work").parts(range(3), work))
    assert tried == [3, 1, 1, 1]


@pytest.mark.parametrize(
    "name", ["refusal_score", "ablation_sweep", "patching_sweep", "ablation_test", "neuron_table", "trace_refusal"]
)
def test_one_prompt_that_does_not_fit_is_an_error(setting, name):
    with ExitStack() as stack:
        for tree in setting.trees:
            stack.enter_context(room_for(tree, 0))
        with pytest.raises(RimLensError, match=r"Not even one of the \w+ fits into memory in .*CUDA out of memory"):
            BATCHED[name][0](setting)


@pytest.mark.parametrize("name", ["refusal_score", "ablation_sweep", "predict_shift", "ablation_test"])
def test_other_errors_are_not_taken_for_a_lack_of_memory(setting, name):
    def fail():
        raise ZeroDivisionError("something else")

    with ExitStack() as stack:
        tried = [stack.enter_context(room_for(tree, 0, fail)) for tree in setting.trees]
        with pytest.raises(ZeroDivisionError, match="something else"):
            BATCHED[name][0](setting)
    assert sum(map(len, tried)) == 1


def test_a_lack_of_memory_does_not_make_a_sweep_fall_back_to_whole_passes(setting):
    model = tiny_model("llama", seed=4)
    with pytest.warns(UserWarning, match="went on with 1 at once"), room_for(model.hf, FEW):
        sweep = rim_lens.ablation_sweep(model, model.render(TEXTS), R, positions="decision", n_permutations=20)
    assert (sweep.method, sweep.why_plain) == ("exact", "")


def test_what_is_kept_for_later_runs_gives_way_first(setting):
    """The caches of all prompts together do not fit, a single batch does."""
    model, held = setting.model, []
    whole = pass_over(model, setting.off, "user", batch_size=2, keep=True, attention=True)

    def full(module, args, kwargs):
        held.append(1)
        if len(held) == 3:  # the third batch
            cuda_is_full()

    handle = model.hf.model.layers[2].register_forward_pre_hook(full, with_kwargs=True)
    with pytest.warns(UserWarning, match="computed anew, a batch at a time"):
        again = pass_over(model, setting.off, "user", batch_size=2, keep=True, attention=True)
    handle.remove()
    assert whole.kept
    assert not again.kept
    np.testing.assert_array_equal(again.attention, whole.attention)
    np.testing.assert_array_equal(again.neurons.mean, whole.neurons.mean)
    sets = [[(0, 1)], [(1, 2)]]
    np.testing.assert_allclose(
        without_heads(model, setting.off, sets, R, again.kept),
        without_heads(model, setting.off, sets, R, whole.kept),
        rtol=1e-9,
    )


@pytest.mark.parametrize("sets", [[[(0, 1)]], [[(0, 1)], [(1, 2)], [(2, 3)]]])
def test_head_sets_that_share_a_pass_are_split(setting, sets):
    measure = ScoreMeasure(setting.model, setting.off, R, "here", batch_size=18)

    def change(heads):
        return ablate_heads(setting.model, heads)

    plenty = measure(sets, change)["refusal score, here"].values
    with pytest.warns(UserWarning, match="went on with [12] at once"), room_for(setting.model.hf, FEW):
        scarce = measure(sets, change)["refusal score, here"].values
    np.testing.assert_allclose(scarce, plenty, rtol=1e-9)


def test_a_classifier_judges_fewer_answers_at_once(classifier):  # noqa: F811
    judge = rim_lens.ClassifierJudge(str(classifier), label_map=OTHER, check_coherence=False)
    plenty = judge(REQUESTS, RESPONSES)
    with pytest.warns(UserWarning, match="4 answers together .* went on with 2 at once"), room_for(judge.model, FEW):
        scarce = judge(REQUESTS, RESPONSES)
    assert [one.label for one in scarce] == [one.label for one in plenty]
    assert [one.confidence for one in scarce] == pytest.approx([one.confidence for one in plenty])
