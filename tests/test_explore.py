"""Explorers.

The state's methods change what is shown, ablation is the real one, widgets only bind, and there is a fallback.
"""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from families import shared_model, tiny_hf, tiny_tokenizer
from peft import LoraConfig, get_peft_model

from rim_lens import Checkpoints, RimLensError, ablate_heads, ablation_sweep, generate, load_model, refusal_score
from rim_lens.capture.attention import attention_rows
from rim_lens.capture.neurons import neuron_activations
from rim_lens.explore import state
from rim_lens.explore.heads import explore_heads
from rim_lens.explore.neurons import explore_neurons
from rim_lens.training_time.series_measures import REQUEST_AND_ANSWER

HOSTILE = "how <script>alert(1)</script>"
REQUESTS = ["how do I open a lock", HOSTILE, "please tell me more"]
ROWS = [(0, 3), (1, 40), (2, 7)]


@pytest.fixture(scope="module")
def model():
    return shared_model()


@pytest.fixture(scope="module")
def sweep(model):
    return ablation_sweep(model, model.render(REQUESTS), n_permutations=50)


@pytest.fixture
def explorer(model, sweep):
    return explore_heads(model, REQUESTS, sweep, max_new_tokens=3, cot_budget=4)


@pytest.fixture(scope="module")
def series(tmp_path_factory):
    place = tmp_path_factory.mktemp("series")
    base = place / "tiny"
    tiny_hf("llama").save_pretrained(base)
    tiny_tokenizer().save_pretrained(base)
    for step in (1, 2):
        torch.manual_seed(step)
        tuned = get_peft_model(load_model(base).hf, LoraConfig(r=2, target_modules="all-linear"))
        with torch.no_grad():
            for name, parameter in tuned.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(0, 0.1 * step)
        tuned.peft_config["default"].base_model_name_or_path = str(base)
        tuned.save_pretrained(place / f"step-{step}")
    return Checkpoints([place / "step-1", place / "step-2"], base=str(base))


@pytest.fixture(scope="module")
def neurons(series):
    return explore_neurons(series.open(), ROWS, REQUESTS, series, n_prompts=2)


# ---- heads ----------------------------------------------------------------------------------------------------------
def test_it_starts_at_the_first_head_of_the_result(explorer, sweep):
    assert explorer.head == sweep.ranked(1)[0]
    assert explorer.map == "Effect of ablating each head on refusal"


def test_tokens_follow_head_prompt_and_mode(explorer, model):
    explorer.select_head(2, 1)
    explorer.select_prompt(len(REQUESTS) + 2)
    assert explorer.prompt == 2
    chat = model.render(REQUESTS[2])[0]
    rows = explorer.looks_at("off")
    np.testing.assert_allclose(rows["weight"], attention_rows(model, [chat])[0][2, 1, 0], atol=1e-6)
    assert "".join(rows["text"]) == chat.text
    thinking = explorer.looks_at("on")
    assert (thinking["segment"] == "cot").any()
    assert len(thinking) > len(rows)


def test_ablation_is_that_of_the_api(explorer, model):
    explorer.select_prompt(0)
    explorer.ablate((1, 2), (0, 0))
    chat = model.render(REQUESTS[0])
    assert explorer.before("off").score == pytest.approx(refusal_score(model, chat)[0], abs=1e-5)
    with ablate_heads(model, [(1, 2), (0, 0)]):
        expected = refusal_score(model, chat)[0]
        said = generate(model, REQUESTS[:1], max_new_tokens=3)[0].response
    assert explorer.after("off").score == pytest.approx(expected, abs=1e-5)
    assert explorer.after("off").response == said
    assert abs(expected - explorer.before("off").score) > 1e-3
    explorer.ablate()
    assert explorer.after("off") == explorer.before("off")


def test_a_chat_is_read_as_it_was_given(model, sweep):
    chat = model.render(REQUESTS[0], thinking="prefilled", cot="one two three")[0]
    explorer = explore_heads(model, [chat], sweep, max_new_tokens=2)
    explorer.set_thinking("prefilled", "off")
    assert "".join(explorer.looks_at("prefilled")["text"]) == chat.text
    assert explorer.before("prefilled").score == pytest.approx(refusal_score(model, [chat])[0], abs=1e-5)


def test_what_is_not_there_is_refused(explorer, model):
    with pytest.raises(RimLensError, match="no head L9H0"):
        explorer.select_head(9, 0)
    with pytest.raises(RimLensError, match="no head L0H7"):
        explorer.ablate((0, 7))
    with pytest.raises(RimLensError, match="thinking 'prefilled'"):
        explorer.set_thinking("prefilled")
    with pytest.raises(RimLensError, match="at least one"):
        explore_heads(model, [])
    assert explorer.ablated == ()


def test_prompts_are_escaped(explorer):
    explorer.select_prompt(1)
    assert "<script" not in explorer.token_views()
    assert "<script" not in explorer.answer_views()


def test_without_a_result_the_map_is_attention(model):
    explorer = explore_heads(model, REQUESTS)
    values = np.asarray(explorer.figure().data[0].z)
    assert values.shape == (model.n_heads, model.n_layers)
    assert explorer.map == "Attention to the closing think tag"


def test_widgets_call_the_state_and_follow_it(explorer):
    shown = explorer.widget()
    shown.clicked(None, SimpleNamespace(xs=[1], ys=[3]), None)
    assert explorer.head == (1, 3)
    assert (shown.layer.value, shown.head.value) == (1, 3)
    assert shown.figure.layout.shapes[0].x0 == 0.5
    before = shown.tokens.value
    shown.after.click()
    assert explorer.prompt == shown.prompt.value == 1
    assert shown.tokens.value != before
    shown.mode.value = "side by side"
    assert explorer.thinking == ("off", "on")
    shown.ablate.click()
    assert explorer.ablated == ((1, 3),)
    assert "Without L1H3" in shown.answers.value
    shown.restore.click()
    assert explorer.ablated == ()
    explorer.select_head(0, 2)
    assert (shown.layer.value, shown.head.value) == (0, 2)
    assert shown.ablate.description == "Ablate L0H2"


def test_ablated_heads_are_marked_and_a_request_of_ones_own_is_asked(explorer, model):
    explorer.ablate("L1H3")
    explorer.select_head(2, 1)
    dotted = [one.x0 for one in explorer.figure().layout.shapes if one.line.dash == "dot"]
    assert dotted == [0.5]
    shown = explorer.widget()
    shown.own.value = "what is a key"
    shown.read.click()
    assert explorer.requests[shown.prompt.value] == "what is a key"
    assert explorer.before("off").score == pytest.approx(refusal_score(model, ["what is a key"])[0], abs=1e-5)
    assert "ablated: L1H3" in shown.state.value
    shown.own.value = " "
    shown.read.click()
    assert "no request" in shown.state.value


# ---- neurons --------------------------------------------------------------------------------------------------------
def test_shift_of_a_neuron_is_its_change_at_every_checkpoint(neurons, series):
    neurons.select_neuron("L1N40")
    shift = neurons.shift().set_index("checkpoint")
    assert list(shift.index) == ["base", "step-1", "step-2"]
    assert shift.loc["base", "change"] == 0
    model = series.open()
    chats = model.render(REQUESTS)
    means = []
    for name in ("base", "step-2"):
        series.load(model, name)
        means.append(neuron_activations(model, chats, REQUEST_AND_ANSWER).magnitude[1, 40])
    assert shift.loc["step-2", "change"] == pytest.approx(means[1] / means[0] - 1, abs=1e-5)
    inside = (shift["low"] <= shift["change"]) & (shift["change"] <= shift["high"])
    assert inside.all()


def test_top_prompts_and_unknown_neurons(neurons):
    neurons.select_neuron("L2N7")
    top = neurons.top_prompts()
    assert len(top) == 2
    assert set(top["request"]) <= set(REQUESTS)
    assert top["activation"].abs().is_monotonic_decreasing
    with pytest.raises(RimLensError, match="no neuron 'L0N0'"):
        neurons.select_neuron("L0N0")
    assert "<script" not in neurons.views()


def test_neuron_widgets_call_the_state_and_follow_it(neurons):
    shown = neurons.widget()
    shown.clicked(None, SimpleNamespace(point_inds=[1]), None)
    assert neurons.neuron == shown.neuron.value == "L1N40"
    assert "L1N40" in shown.shift.layout.title.text
    shown.neuron.value = "L0N3"
    assert neurons.neuron == "L0N3"
    np.testing.assert_allclose(shown.shift.data[0].y, neurons.shift()["change"])
    assert tuple(shown.map.data[0].selectedpoints) == (0,)


# ---- how they are shown ---------------------------------------------------------------------------------------------
def test_without_widgets_there_are_figures_and_one_sentence(explorer, neurons, monkeypatch):
    import IPython.display

    shown = []
    monkeypatch.setattr(IPython.display, "display", shown.append)
    monkeypatch.setattr(state, "find_spec", lambda name: None)
    explorer._ipython_display_()
    assert state.NO_WIDGETS in shown[0].data
    assert shown[1].layout.meta["cells"] == "heads"
    assert "% of attention" in shown[2].data
    neurons._ipython_display_()
    assert len(shown) == 6


@pytest.mark.slow
def test_a_notebook_cell_shows_the_widget(tmp_path):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    here = str(Path(__file__).parent)
    code = (
        f"import sys; sys.path.insert(0, {here!r})\n"
        "from families import tiny_model; from rim_lens.explore.heads import explore_heads\n"
        "explore_heads(tiny_model(), ['hello'], max_new_tokens=2)"
    )
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    nbclient.NotebookClient(notebook, timeout=200, resources={"metadata": {"path": str(tmp_path)}}).execute()
    found = [output.data for output in notebook.cells[0].outputs if output.output_type == "display_data"]
    assert any("application/vnd.jupyter.widget-view+json" in data for data in found)
