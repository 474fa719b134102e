"""Figures of neurons and heads over a series.

What is drawn is what is in the tables, and captions say what it cannot say.
"""

import numpy as np
import pytest
from made_neurons import made_forgetting, made_neuron_table, made_prediction, made_series_heads, made_series_shift

from rim_lens import RimLensError
from rim_lens.plots.forgetting import ras_by_layer
from rim_lens.plots.neurons import neuron_means
from rim_lens.plots.prediction import predicted_against_actual, prediction_by_checkpoint
from rim_lens.plots.series_heads import head_order, heads_by_checkpoint
from rim_lens.plots.series_shift import shift_by_layer_and_checkpoint, shift_over_series
from rim_lens.report.neuron_series import heads_section, prediction_section, shift_section
from rim_lens.report.neuron_table import section


def trace_named(figure, name):
    return next(trace for trace in figure.data if trace.name == name)


def ends(trace):
    middle, bars = np.asarray(trace.y, dtype=float), trace.error_y
    return middle - np.asarray(bars.arrayminus, dtype=float), middle + np.asarray(bars.array, dtype=float)


@pytest.mark.parametrize("prompts", ["safety", "task"])
def test_shifts_are_the_tables(prompts):
    shift = made_series_shift()
    rows = shift.table[(shift.table["prompts"] == prompts) & (shift.table["scope"] == "all")]
    figure = shift_over_series(shift, prompts, "change")
    np.testing.assert_allclose(trace_named(figure, "matched random neurons").y, rows["control_change"])
    plain = rows[rows["arm"] == "plain"]
    trace = trace_named(figure, "plain maths CoT")
    np.testing.assert_allclose(trace.y, plain["change"])
    np.testing.assert_allclose(ends(trace)[0], plain["low"], atol=1e-12)
    moved = shift_over_series(shift, prompts)
    np.testing.assert_allclose(trace_named(moved, "matched random neurons").y, rows["control_moved"])
    np.testing.assert_allclose(trace_named(moved, "plain maths CoT").y, plain["moved"])
    np.testing.assert_allclose(ends(trace_named(moved, "plain maths CoT"))[1], plain["moved_high"], atol=1e-12)
    cells = shift_by_layer_and_checkpoint(shift, prompts).data[0]
    layers = shift.table[(shift.table["prompts"] == prompts) & (shift.table["scope"] == "L2")]
    np.testing.assert_allclose(cells.z.astype(float)[:, 1], 100 * (layers["change"] - layers["control_change"]))
    assert list(cells.y) == layers["checkpoint"].tolist()


def test_predictions_are_the_tables():
    check = made_prediction()
    figure = prediction_by_checkpoint(check)
    plain = check.table[check.table["arm"] == "plain"]
    np.testing.assert_allclose(trace_named(figure, "plain maths CoT").y, plain["r"])
    grey = trace_named(figure, "matched random neurons")
    np.testing.assert_allclose(np.asarray(grey.y) + np.asarray(grey.error_y.array), check.table["control_high"])
    points = check.neurons[check.neurons["checkpoint"] == "plain-9"]
    drawn = predicted_against_actual(check, "plain-9").data[0]
    np.testing.assert_allclose((drawn.x, drawn.y), (points["predicted"], points["actual"]))


def test_heads_are_the_tables():
    heads = made_series_heads()
    for quantity in ("effect", "attention"):
        figure = heads_by_checkpoint(heads, quantity)
        np.testing.assert_allclose(trace_named(figure, "chosen heads").y, heads.table[quantity])
        np.testing.assert_allclose(trace_named(figure, "random heads").y, heads.table[f"{quantity}_random"])
    order = head_order(heads)
    np.testing.assert_allclose(trace_named(order, "effect").y, heads.table["effect_rank"].iloc[1:])
    assert [line.y0 for line in order.layout.shapes] == [heads.halves["effect"], heads.halves["attention"]]


@pytest.mark.slow
def test_ras_by_layer_is_the_table():
    forgetting = made_forgetting()
    cells = ras_by_layer(forgetting).data[0]
    rows = forgetting.ras_layers
    one = rows[(rows["checkpoint"] == "effort-40") & (rows["layer"] == 2)].iloc[0]
    assert cells.z[list(cells.y).index("effort-40"), list(cells.x).index("2")] == one["ras"] - one["control_mean"]
    older = made_forgetting()
    object.__setattr__(older, "ras_layers", None)
    with pytest.raises(RimLensError, match="no RAS by layer"):
        ras_by_layer(older)


def test_the_neuron_figure_shows_both_modes():
    table = made_neuron_table()
    figure = neuron_means(table)
    np.testing.assert_allclose(trace_named(figure, "thinking off").x, table.table["off"])
    np.testing.assert_allclose(trace_named(figure, "thinking on (own CoT)").x, table.table["on"])
    assert "<script>" not in "".join(map(str, figure.data[0].customdata))


def test_every_figure_says_n_and_sections_say_what_was_done():
    sections = [
        section("a", made_neuron_table()),
        shift_section("b", made_series_shift()),
        prediction_section("c", made_prediction()),
        heads_section("d", made_series_heads()),
    ]
    for one in sections:
        drawings = [block for block in one.blocks if block.kind == "drawing"]
        assert drawings
        assert all("n = " in drawing.caption for drawing in drawings)
        assert all("n = " in told or "ρ" in told for told in one.in_short)
    words = " ".join(block.text for one in sections for block in one.blocks if block.kind == "words")
    assert "direct path" in words
    assert "need not be the very ones" in words
    assert "on other prompts" in words
