"""The writer and the annotator behind an endpoint, against a real HTTP server.

Timeouts, resuming, replies that cannot be used.
"""

from __future__ import annotations

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from families import tiny_tokenizer

from rim_lens import RimLensError
from rim_lens.patterns import LLMAnnotator, LLMWriter, annotate_reasoning, make_cot_pairs, rewrite_cot
from rim_lens.patterns.drafts import RewriteTask

pytest.importorskip("httpx")
TOKENIZER = tiny_tokenizer()
ROWS = [
    {
        "problem": f"A box holds {k} pens. How many pens are in 6 boxes?",
        "cot": f"Each of the 6 boxes holds {k} pens. That makes 6 x {k} = {6 * k} pens.",
        "answer": str(6 * k),
    }
    for k in range(3, 9)
]


class Server(ThreadingHTTPServer):
    """Writes drafts that fit, or labels.

    `slow` names requests that are answered too late, `written` what is replied instead.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked, self.slow, self.written, self.forms = [], set(), {}, []
        self.lock, self.given_up = threading.Lock(), threading.Event()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        question = body["messages"][1]["content"]
        item = json.loads(question[question.index("{") :])
        with self.server.lock:
            self.server.asked.append(item["request"])
            self.server.forms.append(body.get("response_format"))
        if item["request"] in self.server.slow:
            self.server.given_up.wait(60)
        content = json.dumps(self.server.written.get(item["request"], labels(item) or draft(item)))
        data = json.dumps({"choices": [{"message": {"content": content}}]}).encode()
        try:
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client gave up waiting, which is what a timeout test is for


def labels(item):
    """The reply of an annotator that finds nothing, where sentences were sent."""
    return {"found": []} if "sentences" in item else None


def draft(item):
    """Target and control of equal length that keep the result."""
    return {
        "target": f"I trust my first idea here. It is {item['result']}.",
        "control": f"I look at it step by step. It is {item['result']}.",
    }


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RIM_LENS_CACHE", str(tmp_path / "package-cache"))


@pytest.fixture
def server():
    served = Server()
    threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield served
    served.given_up.set()
    served.shutdown()
    served.server_close()


def writer(server, **options):
    return LLMWriter(server.url, "m", **{"retries": 1, "backoff": 0.01, "timeout": 60, **options})


def pairs_of(server, rows=ROWS, **options):
    return make_cot_pairs(rows, tokenizer=TOKENIZER, writer=writer(server, **options))


def test_the_form_of_the_reply_goes_along_as_a_schema(server):
    """An independent validator takes the replies that are read, and refuses others."""
    jsonschema = pytest.importorskip("jsonschema")
    writer(server)([RewriteTask("p", "It is 3.", "3", ("heuristic",))], len)
    annotate_reasoning(["It is 3."], LLMAnnotator(server.url, "m", backoff=0.01), problems=["p"])
    for form, right, wrong in zip(
        server.forms,
        [{"target": "a", "control": "b"}, {"found": [{"sentence": 1, "pattern": "heuristic", "evidence": "It"}]}],
        [{"target": "a"}, {"found": [{"sentence": 1, "pattern": "lazy", "evidence": "It"}]}],
        strict=True,
    ):
        assert form["type"] == "json_schema"
        jsonschema.validate(right, form["json_schema"]["schema"])
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, form["json_schema"]["schema"])


def test_pairs_are_written_by_the_endpoint(server):
    pairs = pairs_of(server)
    assert len(pairs.pairs) == len(ROWS) == len(server.asked)
    assert pairs.writer == "LLM writer m"
    assert pairs.table.set_index("measure").loc["answer agreement", "control"] == 1


@pytest.mark.slow
def test_a_timeout_half_way_then_resuming_pays_for_no_draft_twice(server, tmp_path):
    cache, late = tmp_path / "drafts.jsonl", ROWS[3]["problem"]
    server.slow = {late}
    with pytest.raises(RimLensError, match=r"The writer at .* gave no draft .* in 2 attempts .*in the cache"):
        pairs_of(server, cache=cache, timeout=2, concurrency=1)
    answered = set(server.asked) - {late}
    assert {row["problem"] for row in ROWS[:3]} <= answered
    server.slow, server.asked = set(), []
    pairs = pairs_of(server, cache=cache)
    assert len(pairs.pairs) == len(ROWS)
    assert sorted(server.asked) == sorted({row["problem"] for row in ROWS} - answered)
    server.asked = []
    pairs_of(server, cache=cache)
    assert server.asked == []


@pytest.mark.slow
def test_labels_are_not_paid_for_twice_either(server, tmp_path):
    cache, cots, problems = tmp_path / "labels.jsonl", [f"It is {i}." for i in range(5)], [f"p{i}" for i in range(5)]
    server.slow = {"p3"}

    def annotator(**options):
        return LLMAnnotator(server.url, "m", cache=cache, retries=0, backoff=0.01, concurrency=1, **options)

    with pytest.raises(RimLensError, match=r"The annotator at .* gave no labels .*in the cache"):
        annotate_reasoning(cots, annotator(timeout=2), problems=problems)
    answered = set(server.asked) - {"p3"}
    assert {"p0", "p1", "p2"} <= answered
    server.slow, server.asked = set(), []
    annotate_reasoning(cots, annotator(timeout=60), problems=problems)
    assert sorted(server.asked) == sorted(set(problems) - answered)


def test_pairs_labelled_by_an_endpoint_ask_about_every_text_once(server):
    given = LLMAnnotator(server.url, "m", backoff=0.01)
    pairs = make_cot_pairs(ROWS, tokenizer=TOKENIZER, annotator=given)
    assert len(server.asked) == 2 * len(pairs.pairs) + int(pairs.dropped["count"].sum())


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ({"target": "", "control": ""}, "the writer returned nothing"),
        ({"target": "It is 18.", "control": "It is 18, " + "and so on, " * 9 + "18."}, "lengths differ too much"),
        ({"target": "It is 17.", "control": "It is 18."}, "the target reaches another answer"),
        ({"target": "I look, so it's 18.", "control": "I trust my gut: 18."}, "the control has a pattern"),
    ],
)
def test_drafts_outside_the_limits_are_dropped_and_counted(server, reply, reason):
    server.written[ROWS[0]["problem"]] = reply
    pairs = pairs_of(server)
    assert len(pairs.pairs) == len(ROWS) - 1
    assert pairs.dropped.to_numpy().tolist() == [[reason, 1]]
    if reason != "the control has a pattern":  # a single pair is not labelled
        with pytest.raises(RimLensError, match=reason):
            rewrite_cot(**ROWS[0], tokenizer=TOKENIZER, writer=writer(server))


@pytest.mark.parametrize("reply", [{"target": "It is 18."}, {"target": 18, "control": "a"}, ["It is 18."]])
def test_replies_of_another_form_end_in_an_error_that_names_the_problem(server, reply):
    server.written[ROWS[0]["problem"]] = reply
    with pytest.raises(RimLensError, match=re.escape(repr(ROWS[0]["problem"]))):
        pairs_of(server)


def test_a_writer_without_a_draft_for_every_cot_is_named():
    class Silent:
        """Returns no drafts at all."""

        name = "silent writer"

        def __call__(self, tasks, count):
            return self.drafts

    for drafts in ([], None):
        silent = Silent()
        silent.drafts = drafts
        with pytest.raises(RimLensError, match="silent writer returned 0 drafts for 6 CoTs"):
            make_cot_pairs(ROWS, tokenizer=TOKENIZER, writer=silent)
        with pytest.raises(RimLensError, match="returned 0 drafts for 1 CoTs"):
            rewrite_cot(**ROWS[0], tokenizer=TOKENIZER, writer=silent)


def test_rows_without_cot_or_with_another_answer_are_not_sent_to_the_writer(server):
    bad = [{**ROWS[0], "cot": None}, {**ROWS[1], "answer": "7"}]
    pairs = pairs_of(server, rows=[*bad, *ROWS[2:]])
    assert len(server.asked) == len(ROWS) - 2
    assert dict(pairs.dropped.to_numpy().tolist()) == {
        "it has no CoT": 1,
        "its CoT does not reach the answer": 1,
    }
    with pytest.raises(RimLensError, match=r"None of the 2 rows can be rewritten \(2 × it has no CoT\)"):
        make_cot_pairs([{**row, "cot": " "} for row in ROWS[:2]], tokenizer=TOKENIZER)
