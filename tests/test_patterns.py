"""The taxonomy, the annotators and their agreement, against hand labels, a counted table and a real HTTP server."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from rim_lens import RimLensError
from rim_lens.data import load_wordings
from rim_lens.patterns import LLMAnnotator, annotate_reasoning, annotator_agreement, load_patterns
from rim_lens.patterns.agreement import label_agreement
from rim_lens.patterns.taxonomy import LABELS, NONE
from rim_lens.stats import wilson

DATA = Path(__file__).parent / "pattern_data"


def hand_labelled(part):
    lines = (DATA / f"{part}.tsv").read_text(encoding="utf-8").splitlines()[1:]
    rows = [line.split("\t") for line in lines]
    return [row[0] for row in rows], [row[2] for row in rows]


def one_label_each(sentences):
    """Annotate hand-labelled lines; a line of two sentences has the pattern that either has."""
    frame = annotate_reasoning(sentences).sentences
    found = [NONE] * len(sentences)
    for row in frame.itertuples():
        if row.label != NONE:
            found[row.cot] = row.label
    return found


def test_the_hand_labelled_set_is_large_split_and_varied():
    dev, heldout = hand_labelled("dev"), hand_labelled("heldout")
    assert len(dev[0]) + len(heldout[0]) >= 300
    assert not set(dev[1]) & set(heldout[1])
    for labels, _ in (dev, heldout):
        assert all(labels.count(label) >= 25 for label in LABELS)
        assert labels.count(NONE) >= 60


@pytest.mark.parametrize("part", ["dev", "heldout"])
def test_text_rules_are_precise(part):
    labels, sentences = hand_labelled(part)
    found = one_label_each(sentences)
    said = [i for i, label in enumerate(found) if label != NONE]
    right = sum(found[i] == labels[i] for i in said)
    there = sum(label != NONE for label in labels)
    assert wilson(right, len(said)).low > 0.85
    assert right / there > 0.7


def test_sentences_of_other_kinds_are_left_alone():
    texts = [wording.text for kind in ("careful", "neutral", "irrelevant") for wording in load_wordings(kind)]
    table = annotate_reasoning(texts).table.set_index("pattern")
    assert table.loc["any", "n"] > 100
    assert table.loc["any", "k"] <= 2
    lazy = annotate_reasoning([wording.text for wording in load_wordings("effort_minimizing")]).table.set_index(
        "pattern"
    )
    assert lazy.loc["any", "low"] > 0.25


def test_taxonomy_has_examples_of_both_kinds_in_both_domains():
    patterns = load_patterns()
    assert [pattern.name for pattern in patterns] == list(LABELS[1:])
    for pattern in patterns:
        assert pattern.definition
        assert len(pattern.markers) >= 5
        for examples in (pattern.positive, pattern.near_miss):
            assert set(examples) == {"maths", "safety"}
            assert all(len(texts) >= 3 for texts in examples.values())


def test_evidence_points_into_the_cot():
    cot = "First I add 2 and 3.\nThat looks correct, so I won’t go over it again. The answer is 5."
    frame = annotate_reasoning([cot]).sentences
    assert list(frame["label"]) == [NONE, "confirmatory", NONE]
    for row in frame.itertuples():
        assert cot[row.start : row.end] == row.text
        assert cot[row.evidence_start : row.evidence_end] == row.evidence
    assert "go over" in frame["evidence"][1]
    assert frame["evidence"][0] == ""


def test_shares_are_counted_over_sentences_and_cots():
    table = annotate_reasoning(["I trust my gut here. It is 4.", "It is 5.", ""]).table.set_index("pattern")
    row = table.loc["any"]
    assert (row["k"], row["n"], row["cots_with_it"], row["n_cots"]) == (1, 3, 1, 3)
    assert row["low"] <= row["share"] <= row["high"]


@pytest.mark.parametrize(
    ("cots", "problems"), [([], None), (["", " "], None), ("one text", None), (["a."], ["x", "y"])]
)
def test_bad_input_is_named(cots, problems):
    with pytest.raises(RimLensError):
        annotate_reasoning(cots, problems=problems)


def test_kappa_of_a_known_table():
    # Cohen's example form: 45 both yes, 15 and 25 apart, 15 both no: kappa = (0.60 - 0.54) / (1 - 0.54)
    a = ["heuristic"] * 60 + [NONE] * 40
    b = ["heuristic"] * 45 + [NONE] * 15 + ["heuristic"] * 25 + [NONE] * 15
    agreement = label_agreement(a, b)
    assert agreement.kappa == pytest.approx((0.60 - 0.54) / 0.46)
    assert agreement.kappa in agreement.interval
    assert agreement.counts.loc["heuristic", NONE] == 15
    assert int(agreement.counts.to_numpy().sum()) == agreement.n == 100
    assert np.isnan(agreement.table.set_index("label").loc["deviation", "kappa"])


def test_equal_and_unrelated_labels():
    rng = np.random.default_rng(0)
    a, b = (list(rng.choice(LABELS, 400)) for _ in range(2))
    assert label_agreement(a, a).kappa == 1
    assert abs(label_agreement(a, b).kappa) < 0.1
    with pytest.raises(RimLensError, match="not a label"):
        label_agreement(["yes"], ["no"])


class Server(ThreadingHTTPServer):
    """Marks sentences that hold the word 'lazy'; `replies` come first, `fail_from` breaks off after some answers."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.replies, self.asked, self.fail_from = [], 0, 10**9
        self.lock = threading.Lock()


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        question = body["messages"][1]["content"]
        sentences = json.loads(question[question.index("{") :])["sentences"]
        with self.server.lock:
            self.server.asked += 1
            broken = self.server.asked >= self.server.fail_from
            reply = self.server.replies.pop(0) if self.server.replies else None
        found = [
            {"sentence": int(number), "pattern": "heuristic", "evidence": "lazy"}
            for number, text in sentences.items()
            if "lazy" in text
        ]
        content = json.dumps({"found": found}) if reply is None else reply
        data = json.dumps({"choices": [{"message": {"content": content}}]}).encode()
        self.send_response(400 if broken else 200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def server():
    pytest.importorskip("httpx")
    served = Server()
    threading.Thread(target=served.serve_forever, daemon=True).start()
    yield served
    served.shutdown()
    served.server_close()


COTS = ["I am lazy here. It is 4.", "Nothing of note.", "", "A Lazy end. I trust my gut."]


def annotator(server, **options):
    url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    return LLMAnnotator(url, "m", retries=1, backoff=0.01, **{"cache": False, **options})


def test_llm_annotator_labels_sentences_with_evidence_and_kappa(server):
    asked = annotate_reasoning(COTS, annotator(server), problems=["p"] * 4)
    assert asked.labels() == ["heuristic", NONE, NONE, "heuristic", NONE]
    assert list(asked.sentences["evidence"]) == ["lazy", "", "", "Lazy", ""]
    agreement = annotator_agreement(asked, annotate_reasoning(COTS))
    assert agreement.n == 5
    assert agreement.counts.loc["heuristic", NONE] == 2
    assert agreement.counts.loc[NONE, "confirmatory"] == 1
    with pytest.raises(RimLensError, match="different sentences"):
        annotator_agreement(asked, annotate_reasoning(COTS[:2]))


def test_marks_that_do_not_fit_are_asked_for_again(server):
    server.replies = ['{"found": [{"sentence": 9, "pattern": "heuristic", "evidence": "lazy"}]}']
    assert annotate_reasoning(COTS[:1], annotator(server)).labels() == ["heuristic", NONE]
    assert server.asked == 2
    server.replies = ['{"found": [{"sentence": 1, "pattern": "heuristic", "evidence": "not there"}]}'] * 2
    with pytest.raises(RimLensError, match="does not hold the words"):
        annotate_reasoning(COTS[:1], annotator(server))


def test_annotating_goes_on_where_the_endpoint_broke_off(server, tmp_path):
    server.fail_from = 2
    with pytest.raises(RimLensError, match="status 400"):
        annotate_reasoning(COTS, annotator(server, cache=tmp_path / "c.jsonl", concurrency=1))
    server.fail_from, before = 10**9, server.asked
    annotate_reasoning(COTS, annotator(server, cache=tmp_path / "c.jsonl"))
    assert server.asked - before == 2  # three CoTs have sentences; one had been answered
