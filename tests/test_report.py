"""The report as text: one file, nothing from outside, everything escaped, sections only for what was measured."""

import base64
import hashlib
import importlib
import inspect
import json
import re
from dataclasses import fields, replace
from html.parser import HTMLParser
from itertools import pairwise

import pandas as pd
import pytest
from families import tiny_tokenizer
from made_heads import made_inference
from made_neurons import made_training
from made_patterns import made_answers, made_costs, made_patterns, with_own_cots
from made_results import HOSTILE, MANIFEST, made_behavior, made_series

from rim_lens.audit.findings import findings_of
from rim_lens.patterns import own_patterns
from rim_lens.report.answer import found_sentence, more_sentence
from rim_lens.report.finding import Finding
from rim_lens.report.made_by import MADE_BY
from rim_lens.report.page import SCRIPTS, embedded, report_page
from rim_lens.report.page_heads import linked_heads
from rim_lens.report.page_neurons import linked_neurons
from rim_lens.report.sections import CHAPTERS
from rim_lens.report.wording import clearly

PLAN = {"model": "tiny", "checkpoints": None, "n": 32, "prefilled": ("effort_minimizing", "neutral")}


class Outline(HTMLParser):
    """Headings, ids, links, tables, scripts and visible text of a page."""

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.headings, self.ids, self.links, self.text, self.scripts = [], [], [], [], []
        self.attributes, self._open = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.attributes.append((tag, given))
        if "id" in given:
            self.ids.append(given["id"])
        if tag == "a":
            self.links.append(given["href"])
        if tag == "script":
            self.scripts.append([given.get("type"), ""])
        if re.fullmatch(r"h[1-6]", tag):
            self.headings.append([int(tag[1]), ""])
        self._open.append(tag)

    def handle_endtag(self, tag):
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data):
        if "script" in self._open:
            self.scripts[-1][1] += data
        elif "style" not in self._open:
            self.text.append(data)
            if any(re.fullmatch(r"h[1-6]", tag) for tag in self._open):
                self.headings[-1][1] += data


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    behavior = made_behavior()
    patterns = made_patterns(tmp_path_factory.mktemp("arms"), behavior, tiny_tokenizer())
    return {"behavior": behavior, "series": made_series(), **patterns, **made_inference(), **made_training()}


@pytest.fixture(scope="module")
def page(results):
    return report_page(results, findings_of(results), MANIFEST, PLAN)


@pytest.fixture(scope="module")
def outline(page):
    return Outline(page)


@pytest.mark.slow
def test_page_is_one_file_below_8_mb(page, outline):
    assert len(page.encode()) < 8e6
    for tag, given in outline.attributes:
        assert "src" not in given, f"<{tag}> loads something"
        assert tag not in ("link", "iframe", "img", "object")
    assert all(link.startswith("#") for link in outline.links)


def test_policy_allows_the_inlined_scripts_alone(outline):
    policy = next(given["content"] for tag, given in outline.attributes if given.get("http-equiv"))
    assert "default-src 'none'" in policy
    assert "unsafe-eval" not in policy
    runnable = [text for kind, text in outline.scripts if kind != "application/json"]
    assert len(runnable) == 1 + len(SCRIPTS)
    for text in runnable:
        assert f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" in policy
    assert policy.count("sha256-") == len(runnable)


def test_prompts_and_answers_are_text_everywhere(page, outline):
    assert HOSTILE not in page
    assert "<script>document.title" not in page
    assert HOSTILE in "".join(outline.text)
    assert "tiny <model>" in "".join(outline.text)


def test_figures_are_json_that_can_stand_in_a_script(outline, results):
    drawn = [json.loads(text) for kind, text in outline.scripts if kind == "application/json"]
    assert len(drawn) > len(results)
    for figure in drawn[:-2]:
        assert "template" not in figure["layout"]
        assert figure["data"]
    assert set(drawn[-2]) == {"heads", "neurons"}
    assert set(drawn[-1]) == {"light", "dark"}
    hostile = {"a": "</script><!--\u2028"}
    assert not set("<>&\u2028") & set(embedded(hostile))
    assert json.loads(embedded(hostile)) == hostile


def test_every_result_has_a_section_and_every_link_a_target(outline, results):
    assert set(results) <= set(outline.ids)
    assert len(outline.ids) == len(set(outline.ids))
    views = linked_heads(results)["tables"] + linked_neurons(results)["tables"]
    units = {name for table in views for name in table["rows"]}
    assert {link[1:] for link in outline.links} <= set(outline.ids) | units


def test_headings_go_down_one_level_at_a_time(outline):
    levels = [level for level, _ in outline.headings]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b <= a + 1 for a, b in pairwise(levels))
    assert all(text.strip() for _, text in outline.headings)


def test_landmarks_names_and_scrolling_boxes(outline):
    tags = [tag for tag, _ in outline.attributes]
    assert tags.count("main") == tags.count("nav") == 1
    assert outline.links[0] == "#summary"
    boxes = [given for tag, given in outline.attributes if given.get("class") == "scroll"]
    assert len(boxes) == tags.count("table")
    assert all(box["tabindex"] == "0" and box["aria-label"] and box["role"] == "region" for box in boxes)


def test_summary_gives_rates_with_interval_and_count(outline, results):
    row = results["behavior"].table.query("set == 'harmful' and condition == 'off' and measure == 'refused'").iloc[0]
    told = f"{100 * row['rate']:.1f} % [{100 * row['low']:.1f}, {100 * row['high']:.1f}], {row['k']} of {row['n']}"
    plain = "".join(outline.text).replace("\u00a0", " ")
    assert f"With thinking off, the model refuses {told} harmful requests." in plain


def test_a_difference_that_n_cannot_show_is_not_called_one(results):
    behavior = results["behavior"]
    same = replace(behavior, differences=behavior.differences.assign(low=-0.2, high=0.2, p=0.8))
    text = "".join(Outline(report_page({"behavior": same}, [], MANIFEST, PLAN)).text)
    assert "No difference that 32 requests can establish: thinking on (own CoT)" in text
    assert "refuses less" not in text.split("In short")[1].split("Behaviour")[0]
    assert clearly(-0.3, -0.1, 0.01)
    assert not clearly(-0.3, -0.1, 0.2)
    assert not clearly(-0.3, 0.1)


def test_patterns_are_told_with_their_tests(outline, results):
    text = "".join(outline.text).replace("\u00a0", " ").replace("−", "-")
    neutral, _, off = (row for _, row in results["pattern_costs"].contrasts.head(3).iterrows())
    assert f"the model refuses less than with no CoT: {100 * off['cost']:+.1f} points" in text
    assert f"does not clearly refuse more or less than with neutral text: {100 * neutral['cost']:+.1f} points" in text
    assert "heuristic reliance has the largest estimate" in text
    own = results["own_patterns"].outcomes.iloc[0]
    assert f"{own['with_k']} of {own['with_n']} CoTs with one comply" in text
    for title in ("Confirmatory reasoning", "Heuristic reliance", "Instruction deviation"):
        assert title in text
    finding = next(f for f in findings_of(results) if f.what == "Refusal lost with any pattern against neutral text")
    assert finding.figure.startswith(f"{100 * neutral['cost']:+.1f} points [{100 * neutral['low']:+.1f}")


def test_patterns_that_are_not_separated_are_not_called_costly():
    answers = made_answers()
    same = made_costs(answers.assign(label=[("refused", "refused", "complied")[i % 3] for i in answers["prompt"]]))
    text = "".join(Outline(report_page({"pattern_costs": same}, [], MANIFEST, PLAN)).text)
    assert "does not clearly refuse more or less than with neutral text" in text
    assert "which costs most is not established" in text
    assert "refuses less" not in text


def test_too_few_own_cots_say_so():
    few = own_patterns(with_own_cots(made_behavior(), lazy=1, comply=3))
    none = own_patterns(with_own_cots(made_behavior(), lazy=0, comply=3))
    texts = ["".join(Outline(report_page({"own": one}, [], MANIFEST, PLAN)).text) for one in (few, none)]
    assert "Too few to say whether a pattern goes with complying: 1 of 1 CoTs" in texts[0]
    assert "cannot be asked: none of 32 CoTs have one" in texts[1]


def test_sections_appear_only_with_their_results(results):
    page = report_page({"behavior": results["behavior"]}, [], MANIFEST, PLAN)
    found = Outline(page)
    assert {"behavior", "methods"} <= set(found.ids)
    assert not {"series", "inference", "training"} & set(found.ids)
    assert "RAS" not in "".join(found.text)


def test_answers_can_be_read_and_harmful_ones_only_after_a_click(results, page):
    answers = results["behavior"].answers.query("set == 'harmful'")
    tables = re.findall(r"<details( open)?[^>]*>\s*<summary>[^<]*: what the model answered</summary>", page)
    assert tables == ["", "", ""]
    part = page.split("Harmful requests: what the model answered</summary>")[1].split("</table>")[0]
    rows = re.findall(r"<tr><td>.*?</tr>", part, re.DOTALL)
    assert len(rows) == len(answers)
    for row, label, response in zip(rows, answers["label"], answers["response"], strict=True):
        assert ("<summary>Show the answer</summary>" in row) == (label != "refused")
        assert f'<span class="judged">{label}</span>' in row
        assert HOSTILE not in row
        assert response == HOSTILE or f'<div class="said-answer">{response}</div>' in row


def test_page_says_whom_it_is_about(results):
    only = {"behavior": results["behavior"]}
    bundled = report_page(only, [], MANIFEST, {"model": "smollm2-135m-instruct", "checkpoints": "assets/organism"})
    assert "This is a model organism" in bundled
    assert "not evidence about larger models" in bundled
    assert "Everything below is about tiny &lt;model&gt;" in report_page(only, [], MANIFEST, PLAN)


def made(name):
    """What a function returns by its annotation; `f().g` is the method g of what f returns."""
    first, _, method = name.partition("().")
    module, _, function = first.rpartition(".")
    called = getattr(importlib.import_module(module), function)
    if method:
        called = getattr(inspect.signature(called).return_annotation, method)
    annotation = inspect.signature(called).return_annotation
    return annotation if isinstance(annotation, str) else annotation.__name__


def test_every_result_of_the_page_names_the_function_that_makes_it(results):
    assert {kind.__name__ for chapter in CHAPTERS for kind in chapter.sections} == set(MADE_BY)
    assert {kind: made(name) for kind, name in MADE_BY.items()} == {kind: kind for kind in MADE_BY}
    page = report_page(results, [], MANIFEST, PLAN, places={"ablation": "stages/heads/ablation"})
    assert "measured by <code>rim_lens.ablation_sweep</code>" in page
    assert "#definition-ablation-patching-interchange" in Outline(page).links


def test_a_ras_of_zero_everywhere_is_a_sentence_and_not_an_empty_figure(results):
    forgetting = results["forgetting"]
    known = forgetting.correlations
    flat = replace(
        forgetting,
        table=forgetting.table.assign(ras_safety=0.0),
        correlations=known.assign(pearson=known["pearson"].mask(known["predictor"] == "ras_safety")),
    )
    assert "RAS checkpoint by checkpoint" in report_page({"forgetting": forgetting}, [], MANIFEST, PLAN)
    page = report_page({"forgetting": flat}, [], MANIFEST, PLAN)
    assert "RAS checkpoint by checkpoint" not in page
    assert "safety neurons is 0 at each of the 8 checkpoints" in page


def test_a_test_of_one_dose_has_no_curve(results):
    test = results["head_test"]
    one = replace(test, table=test.table[test.table["k"] == 4])
    assert "by number of heads changed" in test.plot().layout.title.text
    assert "by number of heads changed" not in one.plot().layout.title.text
    assert "by number of heads changed" not in report_page({"head_test": one}, [], MANIFEST, PLAN)


def test_heads_that_were_screened_out_are_not_counted_as_without_effect(results):
    sweep = results["ablation"]
    few = sweep.table[sweep.table["q"] < 0.05]
    page = report_page({"ablation": replace(sweep, table=few)}, [], MANIFEST, PLAN)
    assert f"{len(few)} of the {len(few)} head" in page
    assert f"of {sweep.effect[0].size} in the model, reach q &lt; 0.05; there may be more" in page


def test_findings_are_words_and_no_names_of_columns(results):
    findings = findings_of(results)
    columns = ("_", "ras safety", " kl", "cot divergence", "empty span", "tag to span")
    assert [one.what for one in findings if any(name in one.what for name in columns)] == []
    assert [one.figure for one in findings if "nan" in one.figure] == []
    assert any(one.what.startswith("RAS, safety neurons against the drop of the refusal score") for one in findings)


def test_what_an_arm_did_to_refusal_is_decided_by_its_q(results):
    series = results["series"]
    last = series.table["arm"].notna()
    for q, said in ((0.001, "refuses less"), (0.2, "refuses not clearly more or less")):
        changed = series.table.assign(difference=-0.2, difference_low=-0.3, difference_high=-0.1, p=0.01, q=q)
        page = report_page(
            {"series": replace(series, table=changed[last | (changed["checkpoint"] == series.reference)])},
            [],
            MANIFEST,
            PLAN,
        )
        assert f"it {said}: " in page
        assert f"q\u00a0=\u00a0{q:.2g}" in page


def test_findings_methods_and_manifest_are_there(results):
    findings = [Finding("What thinking changes", "a <finding>", "84.4 % [68.2, 93.1]", "27/32", 0.031)]
    text = "".join(Outline(report_page({"behavior": results["behavior"]}, findings, MANIFEST, PLAN)).text)
    for told in (
        "a <finding>",
        "84.4 % [68.2, 93.1]",
        "27/32",
        "0.031",
        "refusal rules",
        MANIFEST.model["fingerprint"],
    ):
        assert told in text
    for told in (MANIFEST.command, "effort_minimizing, neutral", "cd" * 32, "rim_lens", "Misalignment rate".lower()):
        assert told in text


def test_a_kind_without_a_section_shows_its_table(results):
    activations = made_inference()["trace"]

    class Other(type(activations)):
        """Something new."""

    other = Other(**{field.name: getattr(activations, field.name) for field in fields(activations)})
    found = Outline(report_page({"new": other}, [], MANIFEST, PLAN))
    assert "new" in found.ids
    assert "more" in found.ids


def verdict_table():
    """Verdicts as `rim_lens.verdicts` gives them: one of each kind, and one of what was not measured."""
    shared = {"unit": "points", "n": 32, "counted": "prompts", "margin": 10.0, "note": "", "n_needed": None}
    rows = [
        {"claim": "thinking", "words": "thinking lowers refusal", "verdict": "supported", "effect": 22.0, "low": 9.0}
        | {"high": 35.0, "evidence": "behavior"},
        {
            "claim": "effort_cot",
            "words": "effort CoT lowers it more",
            "verdict": "undecided",
            "effect": 8.0,
            "low": -6.0,
        }
        | {"high": 21.0, "evidence": "pattern_costs", "n_needed": 96},
        {"claim": "heads", "words": "these heads carry refusal", "verdict": "excluded", "effect": 0.1, "low": -0.2}
        | {"high": 0.3, "unit": "nats", "margin": 0.5, "evidence": "head_test"},
        {"claim": "ras", "words": "RAS tracks forgetting", "verdict": "undecided", "effect": None, "low": None}
        | {"high": None, "n": None, "counted": None, "evidence": "", "note": "no series was measured"},
    ]
    return pd.DataFrame([shared | row for row in rows]).astype({"n": "Int64", "n_needed": "Int64"})


@pytest.mark.slow
def test_the_page_opens_with_the_verdicts_and_folds_the_rest(results):
    places = {name: f"stages/x/{name}" for name in results}
    page = report_page(results, [], MANIFEST, PLAN, verdicts=verdict_table(), places=places)
    text = " ".join("".join(Outline(page).text).split())
    found = (
        "On tiny <model>, supported: thinking lowers refusal; excluded: these heads carry refusal; 2 of 4 undecided."
    )
    assert found in text
    assert "To know more: --n 96 decides 1 of the 2 undecided claims" in text
    assert "Effect +22 points [+9, +35], n = 32 prompts; smallest effect of interest 10 points." in text
    assert "No series was measured." in text
    for name in ("behavior", "pattern_costs", "head_test"):
        assert f'load_result("stages/x/{name}")' in text
        assert f'href="tables/{name}.csv"' in page
    folded = re.findall(r"<details class=\"inside\"><summary>", page)
    assert len(folded) == len(results)
    assert page.index("Thinking lowers refusal") < page.index("Every finding as a sentence")


def test_a_page_that_grows_says_what_is_to_come(results):
    page = report_page({"behavior": results["behavior"]}, [], MANIFEST, PLAN, unfinished=["Heads", "Neurons"])
    assert "To come: Heads; Neurons." in page
    assert 'data-unfinished="yes"' in page
    assert "data-unfinished=" not in report_page({"behavior": results["behavior"]}, [], MANIFEST, PLAN)


def test_sentences_about_verdicts_that_are_all_of_one_kind():
    table = verdict_table()
    assert "no claim is decided" in found_sentence(table.assign(verdict="undecided"), "m")
    assert "Every claim is decided" in more_sentence(table.assign(verdict="supported"))
    long = found_sentence(pd.concat([table] * 5).assign(verdict="supported"), "m", longest=1)
    assert long == f"On m, supported: {table['words'].iloc[0]} and {5 * len(table) - 1} more."
    assert "More prompts alone decide none" in more_sentence(table.assign(n_needed=pd.NA))
