"""One measurement of a series: every checkpoint loaded once, every prompt passed once, and views that need no model."""

import numpy as np
import pandas as pd
import pytest
import torch
from planted_neurons import planted_neurons, save_shift
from safetensors.torch import load_file, save_file

from rim_lens import RimLensError, load_result, measure_series, series_behavior, series_maths
from rim_lens.behavior.refusal_score import RefusalTokens
from rim_lens.data.prompts import Prompt, PromptSet
from rim_lens.training_time.checkpoints import Checkpoints

TOKENS = RefusalTokens((73, 80), ("a", "b"))
AMOUNTS = ((0.1, 0.3), (0.5, 0.2), (0.2, 0.4), (0.3, 0.1))


@pytest.fixture(scope="module")
def planted():
    return planted_neurons(n_prompts=6)


@pytest.fixture(scope="module")
def series(planted, tmp_path_factory):
    root = tmp_path_factory.mktemp("series")
    for number, (loss, gain) in enumerate(AMOUNTS):
        path = save_shift(root / f"step-{number}", planted, loss, gain) / "adapter_model.safetensors"
        generator = torch.Generator().manual_seed(number)
        name = "base_model.model.model.layers.2.mlp.down_proj"
        a = torch.randn(2, planted.model.d_mlp, generator=generator) * 0.05 * (number + 1)
        b = torch.randn(planted.model.d_model, 2, generator=generator)
        save_file({**load_file(path), f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}, path)
    return Checkpoints.from_folder(root)


def problems(n=5):
    text = ((f"Add {i} and 2.", f"{i} + 2 is {i + 2}", str(i + 2)) for i in range(n))
    return PromptSet("sums", "made", tuple(Prompt(a, None, a, answer=c, rationale=b) for a, b, c in text))


def everything(planted, series):
    return measure_series(
        planted.model, series, planted.harmful, problems(), neurons=sorted(planted.neurons), heads=[(0, 1), (2, 3)],
        answers=True, solve=True, tokens=TOKENS, max_new_tokens=3, maths_tokens=2, cot_budget=3,
    )  # fmt: skip


@pytest.fixture(scope="module")
def measured(planted, series):
    return everything(planted, series)


def test_every_checkpoint_is_loaded_once_and_every_prompt_passed_once(planted, series, monkeypatch):
    rows, loads = [], []

    def count(module, args, kwargs):
        cache = kwargs.get("past_key_values")
        if cache is None or cache.get_seq_length() == 0:
            rows.append(len(kwargs.get("input_ids", args[0] if args else None)))

    loaded = Checkpoints.loaded

    def counted(self, model):
        for one in loaded(self, model):
            loads.append(one[0].name)
            yield one

    monkeypatch.setattr(Checkpoints, "loaded", counted)
    handle = planted.model.hf.base_model.register_forward_pre_hook(count, with_kwargs=True)
    everything(planted, series)
    handle.remove()
    needed = len(series) * (len(planted.harmful) + len(problems()))
    assert needed <= sum(rows) <= 1.1 * needed
    assert sorted(loads) == sorted(series.names)


@pytest.mark.slow
def test_views_are_what_measuring_apart_gives(planted, series, measured):
    alone = series_behavior(planted.model, series, planted.harmful, tokens=TOKENS, max_new_tokens=3)
    together = measured.behavior()
    assert together.answers["response"].tolist() == alone.answers["response"].tolist()
    np.testing.assert_allclose(together.table["score"], alone.table["score"], atol=1e-4)
    maths = series_maths(planted.model, series, problems(), max_new_tokens=2, cot_budget=3)
    pd.testing.assert_frame_equal(measured.maths().answers, maths.answers, atol=1e-4)
    neurons = measure_series(
        planted.model, series, planted.harmful, task=problems(), neurons=sorted(planted.neurons), tokens=TOKENS
    )
    pd.testing.assert_frame_equal(measured.shift(n_controls=50).table, neurons.shift(n_controls=50).table, atol=1e-4)
    heads = measure_series(planted.model, series, planted.harmful, heads=[(0, 1), (2, 3)], tokens=TOKENS)
    pd.testing.assert_frame_equal(measured.heads().heads, heads.heads().heads, atol=1e-4)


@pytest.mark.slow
def test_a_saved_measurement_gives_the_same_views(measured, tmp_path):
    again = load_result(measured.save(tmp_path / "series"))
    name = again.order[-1]
    for view in (
        lambda one: one.drift(),
        lambda one: one.behavior().table,
        lambda one: one.maths().table,
        lambda one: one.shift(n_controls=50).table,
        lambda one: one.ras(name, n_controls=50).table,
        lambda one: one.forgetting(n_controls=50, n_resamples=50).table,
        lambda one: one.heads().table,
    ):
        pd.testing.assert_frame_equal(view(again), view(measured))
    assert again.reference == "base"


def test_what_was_not_measured_is_named(planted, series):
    heads = measure_series(planted.model, series.only(["base"]), planted.harmful, heads=[(0, 1)], tokens=TOKENS)
    for view, needed in ((heads.behavior, "answers=True"), (heads.maths, "maths="), (heads.shift, "neurons=")):
        with pytest.raises(RimLensError, match=needed):
            view()
    with pytest.raises(RimLensError, match="no checkpoint 'other'"):
        heads.ras("other")
    with pytest.raises(RimLensError, match="nothing to measure"):
        measure_series(planted.model, series)
