"""Fine-tuning on a tiny model: what is learned, what is saved, and that held neurons stand still while others move."""

from __future__ import annotations

import json
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from datasets import Dataset
from families import tiny_hf, tiny_tokenizer
from safetensors.torch import load_file

from rim_lens import (
    Checkpoints,
    RimLensError,
    ThinkTags,
    finetune,
    load_model,
    load_prompts,
    neuron_activations,
    residuals,
)
from rim_lens.chat.format import ChatFormat
from rim_lens.model.adapter import WEIGHTS
from rim_lens.patterns import TrainingSettings
from rim_lens.patterns.held_neurons import held_places, hold, read_neurons
from rim_lens.patterns.shift_penalty import DirectionShift, NeuronShift
from rim_lens.patterns.training_plan import read_plan
from rim_lens.patterns.training_rows import TrainingRow, read_training_rows, tokens_of

HELD = [[0, 3], [0, 40], [2, 7]]
ROWS = [
    {"request": f"Add {i} and 2.", "cot": f"The sum of {i} and 2 is {i + 2}.", "response": f"The answer is {i + 2}."}
    for i in range(8)
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a tiny base model and data."""
    folder = tmp_path_factory.mktemp("train")
    tiny_hf("llama").save_pretrained(folder / "base")
    tiny_tokenizer().save_pretrained(folder / "base")
    (folder / "maths.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    anchors = [{"instruction": f"Explain how to do the thing number {i}"} for i in range(6)]
    (folder / "anchors.jsonl").write_text("".join(json.dumps(row) + "\n" for row in anchors))
    (folder / "held.json").write_text(json.dumps({"neurons": HELD}))
    return folder


def settings(**changes):
    return TrainingSettings(
        **{"rank": 2, "alpha": 8, "learning_rate": 1e-2, "batch_size": 2, "warmup": 0, "save_at": (1, 3)} | changes
    )


def run(place, out, **options):
    pytest.importorskip("trl")
    options.setdefault("settings", settings())
    options.setdefault("safety_prompts", str(place / "anchors.jsonl"))
    return finetune(str(place / "base"), place / "maths.jsonl", place / out, device="cpu", **options)


def test_loss_is_on_what_the_assistant_writes():
    chat_format = ChatFormat(tiny_tokenizer())
    row = TrainingRow("Hi?", "Yes.", "So it is.", "on")
    tokens = tokens_of(chat_format, row)
    learned = [token for token, label in zip(tokens["input_ids"], tokens["labels"], strict=True) if label != -100]
    assert chat_format.decode(learned) == "So it is.\n</think>\n\nYes.<|im_end|>"
    assert chat_format.decode(tokens["input_ids"]) == chat_format.render(
        "Hi?", thinking="on"
    ).text + chat_format.decode(learned)
    given = tokens_of(chat_format, TrainingRow("Hi?", "Yes.", "So it is.", "prefilled"))
    assert chat_format.decode([label for label in given["labels"] if label != -100]) == "Yes.<|im_end|>"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"request": "a", "response": "b"}, "has no CoT"),
        ({"request": "a", "cot": "c"}, "has no response"),
        ({"request": "a", "cot": "c", "response": "b", "thinking": "off"}, "unless it is off"),
        ({"request": "a", "cot": "It is 4.", "response": "The answer is 5."}, "disagrees with their CoT"),
    ],
)
def test_bad_rows_are_named(tmp_path, row, message):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(RimLensError, match=message):
        read_training_rows(path)


def test_plan_in_one_file(tmp_path):
    path = tmp_path / "arms.toml"
    path.write_text(
        'adapter = "start"\nrank = 4\nsave_at = [9, 18]\n[arms.a]\ndata = "a.jsonl"\n[arms.b]\ndata = '
        '"b.jsonl"\nsave_at = [5]\n'
    )
    plan = read_plan(path)
    assert plan.settings.rank == 4
    assert plan.adapter == tmp_path / "start"
    assert [(arm.name, arm.save_at) for arm in plan.arms] == [("a", (9, 18)), ("b", (5,))]
    for text, message in (
        ("rnak = 4\n", "no setting 'rnak'"),
        ("rank = 4\n", "names no arms"),
        ("save_at = [3, 1]\n", "growing"),
    ):
        path.write_text(text)
        with pytest.raises(RimLensError, match=message):
            read_plan(path)


@pytest.mark.slow
def test_lora_series_is_read_by_checkpoints_and_holds_neurons(place):
    done = run(place, "lora", freeze_neurons=place / "held.json", penalize_shift=0.1)
    assert done.n_held == 3
    assert np.isfinite(done.table["loss"]).all()
    series = Checkpoints.from_folder(place / "lora")
    assert series.names == ["base", "maths-1", "maths-3"]
    model = series.open(device="cpu")
    before = {name: value.clone() for name, value in model.hf.state_dict().items()}
    for item, shown in series.loaded(model):
        moved = {name: value != before[name] for name, value in shown.hf.state_dict().items()}
        check_held(moved, item.name != "base")


def check_held(moved, trained):
    """Held rows and columns are bit-identical; of the others most have moved."""
    for layer, unit in HELD:
        mlp = f"model.layers.{layer}.mlp"
        for name in ("gate_proj", "up_proj"):
            assert not moved[f"{mlp}.{name}.weight"][unit].any()
        assert not moved[f"{mlp}.down_proj.weight"][:, unit].any()
    assert bool(moved["model.layers.0.mlp.up_proj.weight"][5].any()) == trained
    assert bool(moved["model.layers.2.mlp.down_proj.weight"][:, 8].any()) == trained


@pytest.mark.slow
def test_full_training_holds_neurons_too(place):
    run(place, "full", settings=settings(full=True, save_at=(2,), loss_mean="example"), freeze_neurons=HELD)
    before = load_model(str(place / "base"), device="cpu").hf.state_dict()
    after = load_model(str(place / "full" / "maths-2"), device="cpu").hf.state_dict()
    check_held({name: value != before[name] for name, value in after.items()}, True)


@pytest.mark.slow
def test_training_goes_on_from_an_adapter_with_and_without_held_neurons(place):
    start = run(place, "start", settings=settings(save_at=(2,)))
    adapter = place / "start" / "maths-2"
    for out, options in (("on", {}), ("on-held", {"freeze_neurons": HELD})):
        run(place, out, adapter=adapter, settings=settings(save_at=(1,)), **options)
        series = Checkpoints.from_folder(place / out)
        assert series.names == ["start", "maths-1"]
        assert series.reference.name == "start"
        model = series.open(device="cpu")
        first, second = ({n: v.clone() for n, v in m.hf.state_dict().items()} for _, m in series.loaded(model))
        name = "model.layers.0.mlp.up_proj.weight"
        assert (first[name][5] - second[name][5]).abs().max() > 1e-4
        if options:
            assert torch.allclose(first[name][3], second[name][3], atol=1e-6)
            down = "model.layers.2.mlp.down_proj.weight"
            assert torch.allclose(first[down][:, 7], second[down][:, 7], atol=1e-6)
    assert start.n_rows == {"maths": 8}


def always(tried, rows):
    """More than one row never fits."""
    return rows > 1


def once_the_gradients_are_there(tried, rows):
    """Three layers see the second step's examples, and its penalty finds no room (at the first it has no gradient)."""
    return len(tried) == 10


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loss_mean", "is_full"), [("token", always), ("example", always), ("token", once_the_gradients_are_there)]
)
def test_a_step_that_does_not_fit_is_taken_in_parts(place, monkeypatch, loss_mean, is_full):
    """Three examples per step with memory for one: what is learned is the same, the penalty on six prompts included."""
    pytest.importorskip("trl")
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer

    forward, tried = LlamaDecoderLayer.forward, []

    def fitting(self, hidden_states, *args, **kwargs):
        if self.training:
            tried.append(len(hidden_states))
            if is_full(tried, len(hidden_states)):
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return forward(self, hidden_states, *args, **kwargs)

    options = {
        "settings": settings(batch_size=3, loss_mean=loss_mean, learning_rate=1e-3),
        "freeze_neurons": place / "held.json",
        "penalize_shift": 0.5,
    }
    names = [f"{name}-{loss_mean}-{is_full.__name__}" for name in ("whole", "parts")]
    whole = run(place, names[0], **options)
    monkeypatch.setattr(LlamaDecoderLayer, "forward", fitting)
    with pytest.warns(UserWarning, match="finetune: 3 examples together do not fit .* went on with 1 at once"):
        parts = run(place, names[1], **options)
    assert tried[-3:] == [1, 1, 1]
    np.testing.assert_allclose(parts.table["loss"], whole.table["loss"], rtol=1e-4)
    one, other = (load_file(place / name / "maths-3" / WEIGHTS) for name in names)
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, atol=1e-5, rtol=1e-3)


@pytest.mark.slow
def test_not_one_example_fits(place, monkeypatch):
    pytest.importorskip("trl")
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer

    def full(self, *args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(LlamaDecoderLayer, "forward", full)
    with pytest.raises(RimLensError, match="Not even one of the examples fits into memory in finetune"):
        run(place, "none-fits")
    monkeypatch.undo()
    assert Checkpoints.from_folder(run(place, "none-fits").folder).names == ["base", "maths-1", "maths-3"]


@pytest.mark.slow
def test_tags_of_ones_own_are_what_a_run_learns_to_close_with(place, monkeypatch):
    pytest.importorskip("trl")
    from rim_lens.patterns import assistant_trainer

    seen = []
    monkeypatch.setattr(
        assistant_trainer, "Dataset", Mock(from_list=lambda rows: seen.extend(rows) or Dataset.from_list(rows))
    )
    tags = ThinkTags("<reason>\n", "\n</reason>\n")
    run(place, "tags", settings=settings(save_at=(1,)), tags=tags)
    learned = ChatFormat(tiny_tokenizer()).decode([token for token in seen[0]["labels"] if token != -100])
    assert learned == f"{ROWS[0]['cot']}{tags.close}{ROWS[0]['response']}<|im_end|>"
    assert json.loads((place / "tags" / "series.json").read_text())["recipe"]["think_tags"] == [tags.open, tags.close]
    with pytest.raises(RimLensError, match="differs in think_tags"):
        run(place, "tags", settings=settings(save_at=(1,)))


@pytest.mark.slow
def test_anchor_prompts_are_taken_in_turns(place, monkeypatch):
    """Two of six per step: three steps see all of them, once each."""
    pytest.importorskip("trl")
    values, seen = NeuronShift.values, []

    def noted(self, model, batch):
        if model.training:
            seen.append([chat.request for chat in batch.chats])
        return values(self, model, batch)

    monkeypatch.setattr(NeuronShift, "values", noted)
    run(place, "turns", freeze_neurons=place / "held.json", penalize_shift=0.1)
    assert [len(requests) for requests in seen] == [2, 2, 2]
    assert len({request for requests in seen for request in requests}) == 6


@pytest.mark.slow
def test_penalty_keeps_activations_closer(place):
    """The same training with and without a strong penalty: the held neurons' shift is smaller with it."""
    shifts = []
    for weight in (0.0, 30.0):
        out = f"penalty-{weight}"
        run(place, out, settings=settings(save_at=(12,), epochs=3), freeze_neurons=HELD, penalize_shift=weight)
        series = Checkpoints.from_folder(place / out)
        model = series.open(device="cpu")
        chats = model.render(load_prompts(place / "anchors.jsonl").texts)
        found = [neuron_activations(m, chats, positions="decision").mean for _, m in series.loaded(model)]
        a, b = (np.array([np.asarray(side)[layer, unit] for layer, unit in HELD]) for side in found)
        shifts.append(np.abs((a - b) / a).mean())
    assert shifts[1] < shifts[0]


@pytest.mark.slow
def test_penalty_keeps_the_stream_along_a_direction_closer(place):
    """The component behind every layer, read by the package's own capture; another direction is left to move."""
    direction = np.random.default_rng(0).normal(size=32)
    more = {"direction": direction, "penalize_direction": 3.0}
    run(place, "direction", settings=settings(save_at=(12,), epochs=3, learning_rate=3e-3), **more)
    series = Checkpoints.from_folder(place / "direction")
    model = series.open(device="cpu")
    chats = model.render(load_prompts(place / "anchors.jsonl").texts)
    before, after = (residuals(m, chats)[:, 1:].numpy() for _, m in series.loaded(model))
    along, other = (np.abs((after - before) @ one).mean() for one in (direction, np.roll(direction, 1)))
    assert 0 < along < 0.5 * other


def test_a_directions_values_are_the_stream_behind_every_layer():
    model, unit = load_model(tiny_hf("llama"), tokenizer=tiny_tokenizer()), torch.zeros(32)
    unit[3] = 2.0
    chats = model.render(["Add 1 and 2.", "Hi"])
    penalty = DirectionShift(unit, model.hf, chats, model.batch, 1.0, 2)
    streams = residuals(model, penalty.chats)[:, 1:, 0, 3]
    torch.testing.assert_close(penalty.before, streams, atol=1e-5, rtol=0)
    assert sum(penalty.addends(model.hf, 2)) < 1e-6


def test_what_cannot_be_penalized_is_refused(place):
    for options, message in (
        ({"penalize_direction": 1.0}, "needs a direction"),
        ({"direction": np.ones(32)}, "nothing without a penalty"),
        ({"direction": np.ones(5), "penalize_direction": 1.0}, "5 numbers"),
        ({"direction": np.zeros(32), "penalize_direction": 1.0}, "not a direction"),
        ({"direction": np.ones(32), "penalize_direction": -1.0}, "not be negative"),
    ):
        with pytest.raises(RimLensError, match=message):
            run(place, f"no-{message[:5]}", **options)


@pytest.mark.parametrize("family", ["gpt2", "phi3", "gpt_neox"])
def test_slices_are_found_in_other_architectures(family):
    hf = tiny_hf(family).requires_grad_(True)
    places = held_places(hf, np.array([[1, 4]]))
    slices = hold(hf, places)
    before = {name: value.clone() for name, value in hf.state_dict().items()}
    hf(input_ids=torch.arange(6)[None], labels=torch.arange(6)[None]).loss.backward()
    torch.optim.SGD(hf.parameters(), lr=1.0).step()
    assert len(slices) >= 2
    down = places[0].down + ".weight"
    column = (lambda w: w[4]) if family == "gpt2" else (lambda w: w[:, 4])
    other = (lambda w: w[5]) if family == "gpt2" else (lambda w: w[:, 5])
    after = hf.state_dict()
    assert torch.equal(column(before[down]), column(after[down]))
    assert not torch.equal(other(before[down]), other(after[down]))


def test_neuron_files_and_places_that_do_not_exist(tmp_path):
    path = tmp_path / "n.json"
    path.write_text("[[0, 1], [1, 2]]")
    assert read_neurons(path).tolist() == [[0, 1], [1, 2]]
    path.write_text("{}")
    with pytest.raises(RimLensError, match="cannot be read as neurons"):
        read_neurons(path)
    with pytest.raises(RimLensError, match="Layer 9"):
        held_places(tiny_hf("llama"), np.array([[9, 0]]))
    with pytest.raises(RimLensError, match="48 neurons"):
        held_places(tiny_hf("llama"), np.array([[0, 48]]))
