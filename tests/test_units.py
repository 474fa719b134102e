"""Heads and neurons by name: what is written is what is read, everywhere that heads are taken."""

import numpy as np
import pandas as pd
import pytest
import torch
from families import shared_model
from hypothesis import given
from hypothesis import strategies as st

from rim_lens.capture.neuron_sets import neuron_rows
from rim_lens.errors import RimLensError
from rim_lens.inference_time.token_attention import token_attention
from rim_lens.intervene import ablate_heads, knock_out
from rim_lens.results_codec import Decoder, Encoder
from rim_lens.stats import matched_head_sets
from rim_lens.units import Head, Neuron, heads_from

NUMBER = st.integers(0, 9999)


@given(NUMBER, NUMBER)
def test_a_head_is_read_from_its_name(layer, head):
    one = Head(layer, head)
    assert str(one) == f"L{layer}H{head}"
    assert Head.parse(str(one)) == Head.parse((layer, head)) == Head.parse(one) == one


@given(NUMBER, NUMBER, st.none() | NUMBER)
def test_a_neuron_is_read_from_its_name_and_from_its_row(layer, unit, expert):
    one = Neuron(layer, unit, expert)
    assert Neuron.parse(str(one)) == Neuron.parse(one.place) == Neuron.parse(one) == one
    assert one.place == ((layer, unit) if expert is None else (layer, expert, unit))


@pytest.mark.parametrize("wrong", ["L1N2", "12", (1, 2, 3), (1.5, 2), 7, None, Neuron(1, 2)])
def test_what_is_not_a_head_is_named_in_the_error(wrong):
    with pytest.raises(RimLensError, match='is not a head: write "L12H3"'):
        Head.parse(wrong)


@pytest.mark.parametrize("wrong", ["L1H2", "", (1,), Head(1, 2)])
def test_what_is_not_a_neuron_is_named_in_the_error(wrong):
    with pytest.raises(RimLensError, match="is not a neuron"):
        Neuron.parse(wrong)


def test_units_from_tables():
    heads = pd.DataFrame({"head": [3, 1], "layer": [12, 0], "effect": [0.5, 0.1]})
    assert Head.from_table(heads) == [Head(12, 3), Head(0, 1)]
    dense = pd.DataFrame({"layer": [1], "unit": [7]})
    assert Neuron.from_table(dense) == [Neuron(1, 7)]
    assert Neuron.from_table(dense.assign(expert=2)) == [Neuron(1, 7, 2)]


@pytest.mark.parametrize(
    "heads", [["L1H2", "L2H0"], [(1, 2), (2, 0)], [Head(1, 2), Head(2, 0)], "L1H2, L2H0", np.array([[1, 2], [2, 0]])]
)
def test_interventions_take_heads_in_every_form(heads):
    model = shared_model("llama")
    batch = model.batch(model.render(["a request"]))
    with ablate_heads(model, [Head(1, 2), Head(2, 0)]):
        expected = model.decision_logits(batch)
    with ablate_heads(model, heads):
        assert torch.equal(model.decision_logits(batch), expected)
    with ablate_heads(model, [heads_from(heads)]):  # a list per row
        assert torch.equal(model.decision_logits(batch), expected)
    assert not torch.equal(model.decision_logits(batch), expected)


def test_other_functions_take_names_too():
    model = shared_model("llama")
    chats = model.render(["a request"])
    named, pairs = token_attention(model, chats, ["L1H2"]), token_attention(model, chats, [(1, 2)])
    assert np.array_equal(named.weights, pairs.weights)
    assert named.of(0, "L1H2")["weight"].sum() == pytest.approx(1, abs=1e-4)
    assert matched_head_sets(["L1H2"], 4, 3) == matched_head_sets([(1, 2)], 4, 3)
    assert neuron_rows(["L1N2", "L0N4"]).tolist() == [[1, 2], [0, 4]]
    with (
        knock_out(model, ["L0H1"], "user"),
        pytest.raises(RimLensError, match="no head L9H0"),
        ablate_heads(model, ["L9H0"]),
    ):
        pass


def test_units_are_saved_by_name():
    found = Encoder().encode([Head(1, 2), Neuron(3, 4), Neuron(3, 4, 5)], "units")
    assert found == [{"$unit": "L1H2"}, {"$unit": "L3N4"}, {"$unit": "L3E5N4"}]
    back = Decoder({}, {}).decode(found)
    assert back == [Head(1, 2), Neuron(3, 4), Neuron(3, 4, 5)]
    assert isinstance(back[2], Neuron)
