"""Figures of reasoning patterns: what is on the axes is what is in the tables, hostile names are text."""

import numpy as np
import pytest
from families import tiny_tokenizer
from made_patterns import made_costs, made_patterns
from made_results import HOSTILE, made_behavior

from rim_lens.patterns.taxonomy import NAMES
from rim_lens.plots.patterns import cost_by_category, cost_by_class, own_shares, shares_by_arm
from rim_lens.words import ANY


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return made_patterns(tmp_path_factory.mktemp("arms"), made_behavior(), tiny_tokenizer())


def trace_named(figure, name):
    return next(trace for trace in figure.data if trace.name == name)


def ends(trace):
    middle, bars = np.asarray(trace.x, dtype=float), trace.error_x
    return middle - np.asarray(bars.arrayminus, dtype=float), middle + np.asarray(bars.array, dtype=float)


def test_costs_are_the_tables():
    costs = made_costs()
    figure = cost_by_class(costs)
    shown = trace_named(figure, "patterns")
    pooled = costs.contrasts.query("`class` == @ANY and reference == 'neutral'", local_dict={"ANY": ANY})
    rows = costs.table.set_index("class").loc[list(NAMES)]
    np.testing.assert_allclose(shown.x, [*pooled["cost"], *rows["cost"]])
    low, high = ends(shown)
    np.testing.assert_allclose(low, [*pooled["low"], *rows["low"]], atol=1e-12)
    np.testing.assert_allclose(high, [*pooled["high"], *rows["high"]], atol=1e-12)
    labels = figure.layout.yaxis.ticktext
    assert [labels[int(y)] for y in shown.y][:2] == ["any pattern", "confirmatory<br>reasoning"]
    assert labels[int(trace_named(figure, "no CoT").y[0])] == "no CoT"
    np.testing.assert_allclose(
        trace_named(figure, "other text").x, costs.table.set_index("class").loc[["irrelevant", "careful"], "cost"]
    )
    caption = figure.layout.title.subtitle.text.replace("<br>", " ")
    assert "n = 32 harmful requests; 8 wordings per class, 1 per request" in caption
    assert "heuristic reliance" in caption.split("q &lt; 0.05")[1]
    assert f"{100 * rows.loc['heuristic', 'cost']:+.1f} points" in shown.customdata[2]


@pytest.mark.slow
def test_costs_by_category_are_the_tables():
    costs = made_costs()
    figure = cost_by_category(costs)
    for name in (ANY, "heuristic"):
        rows = costs.by_category[costs.by_category["class"] == name]
        trace = trace_named(figure, name)
        np.testing.assert_allclose(trace.x, rows["cost"])
        np.testing.assert_allclose(ends(trace)[0], rows["low"], atol=1e-12)
    few = costs.answers.assign(category=np.where(costs.answers["prompt"] < 3, "rare", "common"))
    assert "1 with fewer than 4 left out" in cost_by_category(made_costs(few)).layout.title.subtitle.text
    drawn = figure.to_json()
    assert HOSTILE not in drawn
    assert "&lt;/script&gt;" in figure.layout.yaxis.ticktext[1].replace("<br>", "")
    assert cost_by_category(made_costs(costs.answers.assign(category=None))).data == ()


@pytest.mark.slow
def test_shares_are_the_tables(results):
    arms, own = results["training_patterns"], results["own_patterns"]
    shown = trace_named(shares_by_arm(arms), "any pattern")
    rows = arms.table[arms.table["pattern"] == "any"]
    np.testing.assert_allclose(shown.x, rows["share"])
    np.testing.assert_allclose(ends(shown)[1], rows["high"], atol=1e-12)
    figure = own_shares(own)
    np.testing.assert_allclose(figure.data[0].x, own.table["share"])
    assert figure.layout.xaxis.range[1] > own.table["high"].max()
    assert f"n = {own.n_cots} CoTs" in figure.layout.title.subtitle.text
