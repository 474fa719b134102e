"""Data of the page's linked views: every head's row as the tables have it, attention weights as they were measured."""

import base64
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from made_heads import ALL_HEADS, PLANTED, made_inference, made_sweep, made_token_attention
from made_neurons import made_training
from made_results import HOSTILE, made_behavior

from rim_lens.plots.style import number, percent
from rim_lens.report.page import linked
from rim_lens.report.page_heads import WHOLE, linked_heads, token_views
from rim_lens.report.page_neurons import linked_neurons


@pytest.fixture(scope="module")
def views():
    return linked_heads(made_inference())


def weights_of(chat, n_heads):
    shares = np.frombuffer(base64.b64decode(chat["weights"]), dtype="<u2")
    return shares.reshape(n_heads, len(chat["tokens"])) / WHOLE


def test_weights_are_those_measured(views):
    attention = made_token_attention()
    assert views["heads"][0] == f"L{PLANTED[0]}H{PLANTED[1]}"
    for index, chat in enumerate(views["chats"]):
        given = weights_of(chat, len(views["heads"]))
        for row, head in enumerate(attention.heads):
            expected = attention.of(index, head)
            np.testing.assert_allclose(given[row], expected["weight"], atol=1 / WHOLE)
            assert chat["tokens"] == expected["text"].tolist()
            assert chat["segments"] == expected["segment"].tolist()


def test_every_table_has_every_head_that_it_measured(views):
    sweep = made_sweep()
    table = next(table for table in views["tables"] if table["title"] == "Ablated alone")
    assert set(table["rows"]) == set(sweep.table["name"])
    row = sweep.table.iloc[0]
    assert table["rows"][row["name"]][1].startswith(number(row["effect"], sign=True))
    contrast = next(table for table in views["tables"] if "candidate" in table["columns"])
    assert len(contrast["rows"]) == len(ALL_HEADS)
    for table in views["tables"]:
        for cells in table["rows"].values():
            assert all(len(row) == len(table["columns"]) for row in (cells if "many" in table else [cells]))


def test_what_a_head_causes_stands_before_what_it_goes_with(views):
    sections = [table["section"] for table in views["tables"]]
    assert sections.index("ablation") < sections.index("refusal_heads")


def test_a_page_stays_small_by_leaving_out_whole_requests_then_heads():
    attention = made_token_attention()
    again = replace(
        attention,
        weights=np.tile(attention.weights, 2),
        tokens=attention.tokens.assign(chat=attention.tokens["chat"] + 2).pipe(
            lambda more: pd.concat([attention.tokens, more])
        ),
        chats=pd.concat([attention.chats, attention.chats.assign(chat=[2, 3], request="another")]),
    )
    n_tokens, n_heads = attention.weights.shape[1], len(attention.heads)
    whole = token_views(again, 2 * n_tokens * n_heads)
    assert whole["left_out"] == {"chats": 0, "heads": 0}
    one = token_views(again, 2 * n_tokens * n_heads - 1)
    assert [chat["request"] for chat in one["chats"]] == [HOSTILE] * 2
    assert one["left_out"] == {"chats": 2, "heads": 0}
    few = token_views(again, 3 * n_tokens)
    assert (len(few["heads"]), few["left_out"]["heads"]) == (3, n_heads - 3)
    np.testing.assert_allclose(weights_of(few["chats"][0], 3), attention.weights[:3, :8], atol=1 / WHOLE)


def test_nothing_about_single_heads_means_no_views():
    assert linked_heads({"behavior": made_behavior()}) is None
    assert linked_neurons({"behavior": made_behavior()}) is None


def test_neuron_rows_are_the_tables():
    results = made_training()
    tables = {table["title"]: table for table in linked_neurons(results)["tables"]}
    first = results["safety_neurons"].table.iloc[0]
    assert tables["Safety-critical neurons"]["rows"][first["neuron"]][0] == "yes"
    shift = results["shift"].neurons
    assert len(tables["Activation shift"]["rows"]) == len(shift)


def test_a_neuron_over_the_checkpoints_and_its_prompts():
    results = made_training()
    tables = linked_neurons(results)["tables"]
    shift = results["neuron_shift"]
    over = next(table for table in tables if table["title"].startswith("Shift against aligned"))
    assert set(over["rows"]) == set(shift.neurons["neuron"])
    name, checkpoint = shift.neurons["neuron"].iloc[0], shift.neurons["checkpoint"].iloc[-1]
    mine = shift.neurons.query("neuron == @name and checkpoint == @checkpoint").set_index("prompts")["change"]
    assert over["rows"][name][-1] == [checkpoint, *(percent(mine[kind], sign=True) for kind in ("safety", "task"))]
    fired = next(table for table in tables if table["title"] == "Prompts that fire it most")
    firing = results["neuron_table"].firing
    assert {name: len(rows) for name, rows in fired["rows"].items()} == firing["neuron"].value_counts().to_dict()


def test_only_names_of_heads_and_neurons_become_links():
    assert linked("L12H3") == '<a class="unit" href="#L12H3">L12H3</a>'
    assert linked("L1H2, L2E3N45").count("<a ") == 2
    assert linked("see L12H3") == "see L12H3"
    assert linked("<b>L12H3</b>") == "&lt;b&gt;L12H3&lt;/b&gt;"
