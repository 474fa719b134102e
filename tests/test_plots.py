"""Figures: what is on the axes is what is in the tables, zero is the middle, n is told, text is escaped."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import plotly.io as pio
import pytest
from families import tiny_tokenizer
from ipywidgets.widgets.widget import _remove_buffers
from made_arms import made_arms, made_maths, made_run
from made_directions import made_directions
from made_heads import (
    HEADS,
    LAYERS,
    PLANTED,
    made_head_test,
    made_heads,
    made_inference,
    made_interchange,
    made_outcome_heads,
    made_patching,
    made_probe,
    made_sweep,
    made_token_attention,
)
from made_neurons import made_forgetting, made_neuron_test, made_ras, made_shift, made_training
from made_patterns import made_patterns
from made_results import MANIFEST, made_behavior, made_series

from rim_lens import RefusalJudge, RimLensError, judge_report, results_codec
from rim_lens.chat.segments import SEGMENTS
from rim_lens.inference_time import attention_by_length
from rim_lens.inference_time.span_attention import SpanAttention
from rim_lens.plots.arms import arm_changes
from rim_lens.plots.attention import attention_contrast, length_curve, segment_map
from rim_lens.plots.behavior import rates
from rim_lens.plots.forgetting import forgetting_scatter, predictors, ras_over_series
from rim_lens.plots.images import image_bytes, save_image
from rim_lens.plots.neurons import ras_variants, shift_by_layer
from rim_lens.plots.paper import thinking_table
from rim_lens.plots.probe import cliff_heads, probe_map, trace_curve
from rim_lens.plots.series import refusal_over_series
from rim_lens.plots.set_effects import ablation_figure, dose_curve, set_effects
from rim_lens.plots.style import diverging, interval, p_value, percent, template
from rim_lens.plots.sweeps import ablation_map, interchange_map, patching_map, patching_together
from rim_lens.plots.tokens import frames
from rim_lens.results import Result
from rim_lens.stats import paired_difference, wilson
from rim_lens.training_time import compare_arms
from rim_lens.words import LIKELIHOOD

has_browser = any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome")))
needs_browser = pytest.mark.skipif(not has_browser, reason="no Chromium or Chrome on PATH")


def made_lengths(lengths=(5, 10, 20, 40), each=4, seed=0):
    """Span attention of chats with CoTs of given lengths; every head's attention to the CoT grows with it."""
    rng = np.random.default_rng(seed)
    n = len(lengths) * each
    cot, user = SEGMENTS.index("cot"), SEGMENTS.index("user")
    n_keys = np.zeros((n, len(SEGMENTS)))
    n_keys[:, cot], n_keys[:, user] = np.repeat(lengths, each), 20
    mass = np.zeros((n, 2, 3, len(SEGMENTS)))
    mass[..., cot] = (n_keys[:, cot] / 100)[:, None, None] + rng.uniform(0, 0.1, (n, 2, 3))
    mass[..., user] = 1 - mass[..., cot]
    with np.errstate(invalid="ignore", divide="ignore"):
        lift = mass / (n_keys / n_keys.sum(1, keepdims=True))[:, None, None]
    requests = [f"request {i % each}" for i in range(n)]
    return SpanAttention(mass, lift, n_keys, requests, ["prefilled"] * n, "decision", manifest=MANIFEST)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    series, behavior = made_series(), made_behavior()
    more = {"lengths": attention_by_length(made_lengths())}
    labelled = [{"request": "r", "response": "I can't help with that.", "label": "refused"}] * 5
    more |= {"judge": judge_report(RefusalJudge(), labelled)}
    more |= {"series_maths": made_maths(), "arms": compare_arms(made_arms(), made_maths()), "finetuning": made_run()}
    more |= made_patterns(tmp_path_factory.mktemp("arms"), behavior, tiny_tokenizer())
    more |= made_directions()
    return {"behavior": behavior, "series": series, **more, **made_inference(), **made_training()}


def trace_named(figure, name):
    return next(trace for trace in figure.data if trace.name == name)


def ends(trace, axis="x"):
    """Lower and upper ends of a trace's error bars."""
    middle, bars = np.asarray(trace[axis], dtype=float), trace[f"error_{axis}"]
    return middle - np.asarray(bars.arrayminus, dtype=float), middle + np.asarray(bars.array, dtype=float)


@pytest.mark.slow
def test_every_kind_of_result_has_a_figure_that_tells_n(results):
    with_figure = {
        kind for kind in results_codec.registered.values() if kind.figure and kind.__module__.startswith("rim_lens.")
    }
    assert {type(result) for result in results.values()} == with_figure
    for result in results.values():
        figure = result.plot()
        assert isinstance(figure, go.Figure)
        assert "n = " in figure.layout.title.subtitle.text
        assert figure.layout.title.text


@pytest.mark.slow
def test_figures_are_sent_to_notebooks_as_json(results):
    maps = [ablation_map(results["ablation"])]
    for figure in [*(result.plot() for result in results.values()), *maps]:
        state, _, _ = _remove_buffers(go.FigureWidget(figure).get_state())
        json.dumps(state["_widget_data"], allow_nan=False)
        json.dumps(state["_widget_layout"], allow_nan=False)


@pytest.mark.parametrize(
    ("front_end", "mime"),
    [
        ("jupyterlab", "application/vnd.plotly.v1+json"),
        ("vscode", "application/vnd.plotly.v1+json"),
        ("colab", "text/html"),
    ],
)
def test_front_ends_get_the_mime_types_of_the_how_to(front_end, mime):
    """Plotly chooses among these renderers by the front end it runs in; NaN of hatched heads is written as null."""
    sent = pio.renderers[front_end].to_mimebundle(made_sweep().plot().to_plotly_json())
    assert mime in sent
    if front_end != "colab":
        assert "NaN" not in json.dumps(sent)
    page = (Path(__file__).parents[1] / "docs" / "howto" / "notebooks.md").read_text(encoding="utf-8")
    assert f"`{mime}`" in page


def test_heads_that_were_not_measured_are_hatched_and_say_what_is_estimated():
    sweep = made_sweep()
    kept = sweep.table.head(5)
    estimate = np.full_like(sweep.effect, -0.25)
    screened = dataclasses.replace(sweep, table=kept, estimate=estimate)
    cells, hatch = ablation_map(screened).data[:2]
    assert len(hatch.x) == LAYERS * HEADS - 5
    assert np.equal(np.asarray(cells.z), None).sum() == LAYERS * HEADS - 5  # no colour, which would read as a zero
    assert not {(x, y) for x, y in zip(hatch.x, hatch.y, strict=True)} & set(sweep.ranked(5))
    assert "not measured; first-order estimate −0.25" in hatch.customdata[0]
    assert "hatched" in ablation_map(screened).layout.title.subtitle.text
    everything = segment_map(made_heads()[0])  # of all heads
    assert "hatched" not in everything.layout.title.subtitle.text
    assert tuple(ablation_map(screened).layout.xaxis.range) == (-0.5, LAYERS - 0.5)


def test_vermilion_means_more_refusal_in_every_map_of_heads():
    """Each map is asked about a head that was made to go with refusal, or to stand against it."""
    _, heads = made_heads()  # the planted head looks at the CoT more where the answer complied
    contrast = attention_contrast(heads, "cot_divergence")
    assert contrast.data[0].z[PLANTED[1]][PLANTED[0]] < 0
    assert "refused − complied" in contrast.layout.coloraxis.colorbar.title.text
    scored = attention_contrast(made_outcome_heads(), "cot_divergence")
    assert "more refused" in scored.layout.coloraxis.colorbar.title.text
    assert scored.data[0].z[PLANTED[1]][PLANTED[0]] < 0
    trace = made_inference()["trace"]
    row = trace.table.iloc[0]  # the head that writes the fall of the reading
    assert np.sign(cliff_heads(trace).data[0].z[row["head"]][row["layer"]]) == -np.sign(row["fall"])


def test_result_without_a_figure_says_so():
    class Plain(Result):
        """Nothing to draw."""

    with pytest.raises(RimLensError, match="no figure of a Plain"):
        Plain(manifest=MANIFEST).plot()


def test_rates_are_the_tables(results):
    table = results["behavior"]
    for set_name, measure in (("harmful", "refused"), ("harmful", "incoherent"), ("maths", "solved")):
        trace = trace_named(rates(table, set_name), measure)
        rows = table.table.query("set == @set_name and measure == @measure")
        np.testing.assert_allclose(trace.x, rows["rate"])
        low, high = ends(trace)
        np.testing.assert_allclose(low, rows["low"], atol=1e-12)
        np.testing.assert_allclose(high, rows["high"], atol=1e-12)


def test_hover_of_a_rate_tells_count_and_change(results):
    table = results["behavior"]
    told = trace_named(rates(table), "refused").customdata
    row = table.table.query("set == 'harmful' and measure == 'refused' and condition == 'on'").iloc[0]
    assert f"{row['k']} of {row['n']}" in told[1][1]
    change = table.differences.query("set == 'harmful' and measure == 'refused' and to == 'on'").iloc[0]
    assert f"{100 * change['difference']:+.1f}".replace("-", "−") in told[1][2]
    assert told[0][2] == ""  # the first condition is compared with nothing


@pytest.mark.parametrize(
    ("quantity", "columns"), [("rate", ("rate", "low", "high")), ("score", ("score", "score_low", "score_high"))]
)
def test_series_shows_arms_and_the_reference(results, quantity, columns):
    series = results["series"]
    figure = refusal_over_series(series, quantity)
    rows = series.table[series.table["arm"] == "plain"]
    trace = trace_named(figure, "plain maths CoT")
    np.testing.assert_allclose(trace.y, rows[columns[0]])
    np.testing.assert_allclose(ends(trace, "y")[0], rows[columns[1]], atol=1e-12)
    np.testing.assert_allclose(np.asarray(trace.x, dtype=float), rows["step"], atol=1.0)  # arms stand a little apart
    reference = series.table.set_index("checkpoint").loc["aligned"]
    band, line = figure.layout.shapes
    assert (band.y0, band.y1, line.y0) == tuple(reference[name] for name in (columns[1], columns[2], columns[0]))


def test_series_without_steps_is_in_the_tables_order():
    series = made_series(steps_known=False)
    figure = refusal_over_series(series)
    assert list(figure.data[0].x) == [name for name in series.table["checkpoint"] if name != "aligned"]
    assert figure.layout.xaxis.type == "category"


def test_head_maps_are_centred_at_zero_and_mark_candidates():
    spans, heads = made_heads()
    figure = attention_contrast(heads)
    cells = figure.data[0].z
    assert cells.shape == (HEADS, LAYERS)
    for _, row in heads.of("cot_divergence").iterrows():
        assert cells[row["head"], row["layer"]] == pytest.approx(-100 * row["shift"])  # refused − complied
    axis = figure.layout.coloraxis
    assert axis.cmin == -axis.cmax
    assert axis.cmax == pytest.approx(np.abs(cells).max())
    assert list(zip(figure.data[1].x, figure.data[1].y, strict=True)) == heads.candidates() == [PLANTED]
    mass = segment_map(spans).data[0].z
    np.testing.assert_allclose(mass, 100 * spans.segment("cot").mean(axis=0).T)


def test_contrast_with_a_score_shows_correlations():
    heads = made_outcome_heads()
    figure = attention_contrast(heads)
    for _, row in heads.of("cot_divergence").iterrows():
        assert figure.data[0].z[row["head"], row["layer"]] == pytest.approx(-row["mass_effect"])  # with being refused
    assert "refusal score" in figure.layout.title.text
    assert "nan" not in "".join(figure.data[0].text.ravel())


def test_sweeps_are_maps_of_effects_with_heads_that_were_not_measured_left_out():
    sweep = made_sweep()
    cells = ablation_map(sweep).data[0].z.astype(float)  # None, where there is no value, becomes NaN
    np.testing.assert_allclose(cells, sweep.effect.mean(axis=0).T)
    assert np.isnan(cells).any()
    patching = made_patching()
    np.testing.assert_allclose(patching_map(patching).data[0].z.astype(float), patching.effect.mean(axis=0).T)
    np.testing.assert_allclose(patching_together(patching).data[0].y, patching.together["returned"])
    interchange = made_interchange()
    for direction in ("into_harmful", "into_harmless"):
        shown = interchange_map(interchange, direction)
        np.testing.assert_allclose(shown.data[0].z.astype(float), getattr(interchange, direction).mean(axis=0).T)
        assert PLANTED in list(zip(shown.data[1].x, shown.data[1].y, strict=True))


def test_diverging_scale_of_one_sign_or_nothing_is_still_centred():
    for values in (np.array([0.2, 0.9]), np.array([-3.0]), np.zeros(2), np.array([np.nan])):
        scale = diverging(values, "unit")
        assert scale["cmin"] == -scale["cmax"] < 0


def test_dose_curve_shows_effects_over_the_controls_band():
    test = made_head_test()
    figure = dose_curve(test)
    rows = test.dose_curve().sort_values("k")
    band, line = figure.data
    np.testing.assert_allclose(line.y, rows["effect"])
    np.testing.assert_allclose(ends(line, "y")[1], rows["high"], atol=1e-12)
    np.testing.assert_allclose(band.y, [*rows["control_high"], *rows["control_low"][::-1]])


@pytest.mark.parametrize("test", [made_head_test(), made_neuron_test()], ids=["heads", "neurons"])
def test_set_effects_shows_shares_of_the_whole_set(test):
    figure = set_effects(test)
    rows = test.table[~test.table["measure"].str.startswith("refusal score")]
    if "k" in rows:
        rows = rows[rows["k"] == rows["k"].max()]
    np.testing.assert_allclose(figure.data[-1].x, rows["effect"])
    for bar, (_, row) in zip(figure.data[:-1], rows.iterrows(), strict=True):
        assert tuple(bar.x) == (row["control_low"], row["control_high"])


def test_a_test_whose_rates_have_no_random_sets_shows_its_scores():
    test = made_neuron_test()
    share = ~test.table["measure"].str.startswith("refusal score")
    assert ablation_figure(test).layout.xaxis.title.text == "change of the share of answers"
    bare = dataclasses.replace(test, table=test.table.assign(n_controls=test.table["n_controls"].where(~share, 0)))
    figure, scores = ablation_figure(bare), bare.table[~share & (bare.table["k"] == bare.table["k"].max())]
    np.testing.assert_allclose(figure.data[-1].x, scores["effect"])
    assert figure.layout.xaxis.title.text == "change (nats)"
    assert "no random sets" in set_effects(bare).layout.title.subtitle.text


def test_probe_map_is_centred_at_chance():
    probe = made_probe()
    figure = probe_map(probe)
    np.testing.assert_allclose(figure.data[0].z + 0.5, probe.grid().T)
    assert figure.layout.coloraxis.cmin == -0.5
    assert figure.layout.yaxis.ticktext[-1] == "&lt;/script&gt;"


def test_trace_shows_readings_over_the_band_of_permuted_labels(results):
    trace = results["trace"]
    figure = trace_curve(trace)
    np.testing.assert_allclose(trace_named(figure, "all").y, trace.curve["mean"])
    band = trace_named(figure, "permuted labels")
    np.testing.assert_allclose(band.y, [*trace.curve["control_high"], *trace.curve["control_low"][::-1]])
    assert not any(one.name.startswith("complied") for one in figure.data)  # nobody complied: nothing to show
    cells = cliff_heads(trace).data[0].z
    for _, row in trace.table.iterrows():
        assert cells[row["head"], row["layer"]] == pytest.approx(-row["fall"])  # towards refusal is above zero


def test_token_view_keeps_order_and_weights():
    attention = made_token_attention()
    figure = attention.plot(chat=1, per_row=4)
    assert figure.data[0].z.shape == (3, 4)
    np.testing.assert_allclose(figure.data[0].z.astype(float).ravel()[:9], attention.weights[0, 8:])
    assert all("<script" not in text for text in figure.data[0].text.ravel())


def test_neuron_figures_are_the_tables():
    shift, ras = made_shift(), made_ras()
    layers = shift.table[shift.table["scope"] != "all"]
    np.testing.assert_allclose(trace_named(shift_by_layer(shift), "safety neurons").y, layers["change"])
    np.testing.assert_allclose(trace_named(ras_variants(ras), "safety neurons").x, ras.table["ras"])
    np.testing.assert_allclose(trace_named(ras_variants(ras), "matched random sets").x, ras.table["control_mean"])


def test_forgetting_figures_are_the_tables():
    forgetting = made_forgetting()
    shown = forgetting_scatter(forgetting)
    plain = forgetting.table[forgetting.table["arm"] == "plain"]
    np.testing.assert_allclose(trace_named(shown, "plain maths CoT").x, plain["ras_safety"])
    np.testing.assert_allclose(trace_named(shown, "plain maths CoT").y, plain["refusal_drop"])
    np.testing.assert_allclose(trace_named(ras_over_series(forgetting), "matched random neurons").y, 0.02)
    rows = forgetting.correlations.query("outcome == 'refusal_drop'")
    shown = predictors(forgetting)
    np.testing.assert_allclose(shown.data[0].x, rows["pearson"].dropna())
    assert len(shown.data[0].x) == len(rows) - 1 == len(shown.layout.yaxis.ticktext)  # ras_control does not vary
    assert "without r: RAS, control neurons" in shown.layout.title.subtitle.text.replace("<br>", " ")


def test_a_predictor_that_does_not_vary_has_points_and_no_line():
    forgetting = made_forgetting()
    figure = forgetting_scatter(forgetting, "ras_control")  # the same at every checkpoint
    assert "no correlation" in figure.layout.title.subtitle.text
    assert all(trace.mode == "markers" for trace in figure.data)
    plain = forgetting.table[forgetting.table["arm"] == "plain"]
    np.testing.assert_allclose(trace_named(figure, "plain maths CoT").y, plain["refusal_drop"])


def test_words_for_numbers():
    assert percent(-0.219, sign=True) == "−21.9\u00a0%"
    assert percent(float("nan")) == "–"
    assert interval(-0.5, 0.25, "%") == "[−50.0,\u00a025.0]"
    assert (p_value(0.0004), p_value(0.031), p_value(None)) == ("p\u00a0<\u00a00.001", "p\u00a0=\u00a00.031", "")


def test_light_and_dark_templates_differ_only_in_colour():
    light, dark = (template(one).to_plotly_json()["layout"] for one in (False, True))
    assert light.keys() == dark.keys()
    assert light["font"]["color"] != dark["font"]["color"]
    assert light["margin"] == dark["margin"]


def test_attention_over_cot_length_is_the_mean_of_the_chats_of_a_length():
    spans = made_lengths()
    by_length = attention_by_length(spans, (1, 2))
    cot = spans.segment("cot")[:, 1, 2]
    for i, length in enumerate((5, 10, 20, 40)):
        rows = by_length.table[(by_length.table["segment"] == "cot") & (by_length.table["cot_tokens"] == length)]
        (row,) = rows.to_dict("records")
        assert row["mass"] == pytest.approx(cot[4 * i : 4 * i + 4].mean())
        assert row["mass_low"] < row["mass"] < row["mass_high"]
        assert row["n"] == 4
    figure = length_curve(by_length)
    shown = trace_named(figure, "cot")
    rows = by_length.table[by_length.table["segment"] == "cot"]
    np.testing.assert_allclose(shown.x, rows["cot_tokens"])
    np.testing.assert_allclose(shown.y, 100 * rows["mass"])
    np.testing.assert_allclose(ends(shown, "y")[0], 100 * rows["mass_low"], atol=1e-9)
    lift = trace_named(length_curve(by_length, "lift"), "user")
    np.testing.assert_allclose(lift.y, by_length.table.query("segment == 'user'")["lift"])


def test_cot_lengths_are_binned_evenly_and_must_differ():
    many = made_lengths(lengths=range(10, 34), each=1)
    rows = attention_by_length(many, n_bins=3).table.query("segment == 'cot'")
    assert rows["n"].tolist() == [8, 8, 8]
    assert rows["cot_high"].tolist() == [17, 25, 33]
    with pytest.raises(RimLensError, match="differ in length"):
        attention_by_length(made_lengths(lengths=(10,)))
    with pytest.raises(RimLensError, match="fewer than 3 chats"):
        attention_by_length(many, n_bins=12)
    with pytest.raises(RimLensError, match="no head L9H0"):
        attention_by_length(many, (9, 0))


def test_table_1_shows_both_rates_of_every_model(results):
    table = results["behavior"]
    figure = thinking_table({"small": table, "large": made_behavior(seed=1)})
    assert list(figure.layout.yaxis.ticktext) == ["small", "large"]
    shown = {(trace.xaxis, trace.name): trace for trace in figure.data}
    for axis, set_name, measure in (("x", "harmful", "complied"), ("x2", "maths", "solved")):
        for mode, name in (("off", "thinking off"), ("on", "thinking on (own CoT)")):
            assert shown[axis, name].x[0] == pytest.approx(table.rate(set_name, mode, measure))
            low, _ = ends(shown[axis, name])
            row = table.table.query("set == @set_name and condition == @mode and measure == @measure").iloc[0]
            assert low[0] == pytest.approx(wilson(row["k"], row["n"]).low)
    assert "tiny &lt;model&gt;" in thinking_table(table).layout.yaxis.ticktext


def test_table_1_needs_both_modes(results):
    table = results["behavior"]
    only_off = table.table[table.table["condition"] == "off"]
    with pytest.raises(RimLensError, match="thinking off and on"):
        thinking_table(type(table)(only_off, table.differences, table.answers, table.judge, manifest=MANIFEST))


def test_table_2_is_the_paired_change_of_compliance(results):
    series = results["series"]
    figure = compare_arms(series).plot()
    answers = series.answers.set_index(["checkpoint", "prompt"])["label"] == "complied"
    labels = list(figure.layout.yaxis.ticktext)
    for trace in figure.data:
        for x, y, low in zip(trace.x, trace.y, ends(trace)[0], strict=True):
            name = labels[y].removesuffix(" steps").replace(", ", "-")
            expected = paired_difference(answers[name].to_numpy(), answers["aligned"].to_numpy())
            assert x == pytest.approx(100 * expected.value)
            assert low == pytest.approx(100 * expected.interval.low)
    assert sum(len(trace.x) for trace in figure.data) == len(series.table) - 1


def test_segments_of_a_chat_are_framed_row_by_row():
    outlines = {name: (x, y) for name, x, y in frames(["user"] * 3 + ["cot"] * 3, per_row=4)}
    assert outlines["user"][0][:2] == [-0.44, 2.44]
    x, y = outlines["cot"]
    assert (min(v for v in x[:5]), max(v for v in x[:5])) == (3 - 0.44, 3 + 0.44)  # first row: one token
    assert (x[5], y[5]) == (None, None)
    assert (min(x[6:]), max(x[6:]), min(y[6:])) == (-0.44, 1.44, 1 - 0.44)
    attention = made_token_attention()
    segments = attention.of(0, attention.heads[0])["segment"]
    assert [trace.name for trace in attention.plot().data[1:]] == list(dict.fromkeys(segments))


@needs_browser
@pytest.mark.slow
def test_images_are_drawn_offline_in_the_asked_size(tmp_path, results):
    figure = results["behavior"].plot()
    path = save_image(figure, tmp_path / "new" / "rates.png", width=600, height=300, scale=1)
    png = path.read_bytes()
    assert png.startswith(b"\x89PNG")
    assert (int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")) == (600, 300)


@needs_browser
@pytest.mark.slow
def test_several_figures_are_drawn_by_one_browser(results):
    rates_svg, series_svg = image_bytes([results["behavior"].plot(), results["series"].plot()], "svg")
    assert "Harmful requests" in rates_svg.decode()
    assert "checkpoint by checkpoint" in series_svg.decode()


def test_images_without_browser_or_format_say_what_to_do(tmp_path, monkeypatch):
    with pytest.raises(RimLensError, match=r"end it in \.png"):
        save_image(go.Figure(), tmp_path / "figure.tiff")
    pytest.importorskip("kaleido", reason="the extra images is not installed")
    monkeypatch.setenv("BROWSER_PATH", str(tmp_path / "no-browser"))
    with pytest.raises(RimLensError, match="install one"):
        save_image(go.Figure(), tmp_path / "figure.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("measure", ["complied", "incoherent", LIKELIHOOD])
def test_arm_changes_show_the_table(results, measure):
    comparison = results["arms"]
    figure = arm_changes(comparison, measure)
    rows = comparison.table[(comparison.table["measure"] == measure) & (comparison.table["arm"] == "effort")]
    scale = 1 if measure == LIKELIHOOD else 100
    trace = trace_named(figure, "effort-minimizing maths CoT")
    np.testing.assert_allclose(trace.x, scale * rows["change"])
    np.testing.assert_allclose(ends(trace), (scale * rows["low"], scale * rows["high"]))
    assert list(figure.layout.yaxis.ticktext) == [
        f"{arm}, {step} steps" for arm in ("plain", "effort", "style") for step in (9, 18)
    ]


def test_a_measure_that_was_not_taken_is_named(results):
    with pytest.raises(RimLensError, match="no measure 'maths solved'"):
        arm_changes(results["arms"], "maths solved")


def test_maths_over_a_series_shows_the_table(results):
    maths = results["series_maths"]
    figure = maths.plot()
    rows = maths.table[maths.table["arm"] == "style"]
    trace = trace_named(figure, "chatty maths CoT")
    np.testing.assert_allclose(trace.y, rows["likelihood"])
    np.testing.assert_allclose(ends(trace, "y"), (rows["likelihood_low"], rows["likelihood_high"]))


def test_loss_curves_have_one_line_a_run(results):
    figure = results["finetuning"].plot()
    assert [(trace.legendgroup, trace.showlegend) for trace in figure.data] == [
        ("plain", True),
        ("plain", False),
        ("effort", True),
        ("effort", False),
    ]
