"""The LLM judge against a real HTTP server on this machine."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from rim_lens.behavior.llm_judge import RUBRIC, LLMJudge, parse_grade
from rim_lens.errors import RimLensError

REFUSED = {"score": 1, "refused": True, "incoherent": False, "evidence": "I can't"}
COMPLIED = {"score": 4, "refused": False, "incoherent": False, "evidence": "Sure"}
NONSENSE = {"score": 1, "refused": False, "incoherent": True, "evidence": "the the"}


class ChatServer(ThreadingHTTPServer):
    """Grades by the answer's first word; `plan` gives for a request what happens before, one entry an attempt."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked, self.plan, self.bodies, self.keys = Counter(), {}, [], []
        self.lock, self.busy, self.most_busy = threading.Lock(), 0, 0
        self.crowd, self.given_up = threading.Barrier(3), threading.Event()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        question = body["messages"][1]["content"]
        item = json.loads(question[question.index("{") :])
        with server.lock:
            server.asked[item["request"]] += 1
            server.bodies.append((self.path, body))
            server.keys.append(self.headers.get("Authorization"))
            server.busy += 1
            server.most_busy = max(server.most_busy, server.busy)
            step = server.plan.get(item["request"], [])
            step = step.pop(0) if step else "ok"
        self.delay(step)
        with server.lock:
            server.busy -= 1  # before the answer: once it is read, the client may ask again at any moment
        with suppress(BrokenPipeError, ConnectionResetError):  # the client gave up waiting: a timeout test
            self.answer(step, item["answer"])

    def delay(self, step):
        """Work on a request: `slow` until the client gave up, `crowd` until three are asked at once, and longer."""
        if step == "slow":
            self.server.given_up.wait(60)
        if step == "crowd":
            self.server.crowd.wait(60)
            time.sleep(0.1)  # where a fourth would come in

    def answer(self, step, answer):
        status = step if isinstance(step, int) else 200
        grade = {"no": REFUSED, "sure": COMPLIED}.get(answer.split()[0].lower().strip(".,") if answer else "", NONSENSE)
        text = step[5:] if isinstance(step, str) and step.startswith("text:") else json.dumps(grade)
        payload = {"choices": [{"message": {"role": "assistant", "content": text}}]}
        data = json.dumps(payload).encode() if step != "bare" else b"not json"
        self.send_response(status)
        if status == 429:
            self.send_header("Retry-After", "0.01")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def server():
    running = ChatServer()
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield running
    running.given_up.set()
    running.crowd.abort()
    running.shutdown()
    running.server_close()


def judge(server, **kwargs):
    return LLMJudge(server.url, "grader", **{"backoff": 0.01, "timeout": 60, **kwargs})


def test_labels_scores_and_what_is_sent(server):
    judgements = judge(server, api_key="k")(
        ["a", "b", "c"], ["No, I won't.", "Sure, here", "the the"], truncated=[False, True, False]
    )
    assert [j.label for j in judgements] == ["refused", "complied", "incoherent"]
    assert judgements[1].evidence == "score 4: Sure"
    assert set(server.keys) == {"Bearer k"}
    path, body = server.bodies[0]
    assert path == "/v1/chat/completions"
    assert body["model"] == "grader"
    assert body["messages"][0] == {"role": "system", "content": RUBRIC}
    assert sum("cut off" in b["messages"][1]["content"] for _, b in server.bodies) == 1
    assert judge(server).grade(["b"], ["Sure, here"])[0].score == 4


def test_busy_server_is_asked_again(server):
    server.plan["a"] = [429, 503, "ok"]
    server.plan["b"] = ["bare", "text:I think it is fine", "ok"]
    labels = [j.label for j in judge(server)(["a", "b"], ["No.", "Sure."])]
    assert labels == ["refused", "complied"]
    assert server.asked == {"a": 3, "b": 3}


@pytest.mark.slow
def test_timeout_half_way_then_resume_asks_only_what_is_missing(server, tmp_path):
    cache = tmp_path / "deep" / "grades.jsonl"
    requests, responses = [f"r{i}" for i in range(6)], ["No."] * 3 + ["Sure."] * 3
    server.plan["r3"] = ["slow", "slow"]
    first = judge(server, cache=cache, timeout=2, retries=1, concurrency=1)
    with pytest.raises(RimLensError, match=r"'r3' in 2 attempts .*in the cache"):
        first(requests, responses)
    answered = {r for r in requests if server.asked[r]} - {"r3"}
    assert {"r0", "r1", "r2"} <= answered
    assert len(cache.read_text().splitlines()) == len(answered)
    server.asked.clear()
    labels = [j.label for j in judge(server, cache=cache)(requests, responses)]
    assert labels == ["refused"] * 3 + ["complied"] * 3
    assert set(server.asked) == set(requests) - answered
    server.asked.clear()
    judge(server, cache=cache)(requests, responses)
    assert not server.asked


def test_half_a_cache_line_is_asked_again(server, tmp_path):
    cache = tmp_path / "grades.jsonl"
    judge(server, cache=cache, concurrency=1)(["a", "b"], ["No.", "Sure."])
    text = cache.read_text()
    cache.write_text(text[: len(text) - 20])
    server.asked.clear()
    again = judge(server, cache=cache)(["a", "b"], ["No.", "Sure."])
    assert [j.label for j in again] == ["refused", "complied"]
    assert sum(server.asked.values()) == 1
    server.asked.clear()
    judge(server, cache=cache)(["a", "b"], ["No.", "Sure."])
    assert not server.asked


def test_cache_knows_the_judge_and_the_cut(server, tmp_path):
    cache = tmp_path / "grades.jsonl"
    judge(server, cache=cache)(["a"], ["No."])
    judge(server, cache=cache)(["a"], ["No."], truncated=[True])
    LLMJudge(server.url, "another", cache=cache)(["a"], ["No."])
    assert server.asked["a"] == 3


def test_equal_questions_are_asked_once(server):
    assert len(judge(server)(["a"] * 5, ["No."] * 5)) == 5
    assert server.asked["a"] == 1


def test_concurrency_is_bounded(server):
    requests = [f"r{i}" for i in range(12)]
    server.plan.update({r: ["crowd"] for r in requests})
    judge(server, concurrency=3, timeout=60)(requests, ["No."] * 12)
    assert server.most_busy == 3


def test_unreadable_replies_end_in_an_error_that_names_the_request(server):
    server.plan["tricky one"] = ["text:five"] * 3
    with pytest.raises(RimLensError, match=r"'tricky one' in 3 attempts .*no JSON object"):
        judge(server, retries=2)(["tricky one"], ["No."])
    assert server.asked["tricky one"] == 3


def test_a_wrong_key_is_not_tried_twice(server):
    server.plan["a"] = [401]
    with pytest.raises(RimLensError, match="status 401"):
        judge(server)(["a"], ["No."])
    assert server.asked["a"] == 1


def test_unreachable_server_and_bad_address():
    with pytest.raises(RimLensError, match=r"127\.0\.0\.1:9"):
        LLMJudge("http://127.0.0.1:9/v1", "grader", retries=1, backoff=0.01)(["a"], ["b"])
    with pytest.raises(RimLensError, match="must begin with http"):
        LLMJudge("localhost:8000", "grader")


@pytest.mark.parametrize(
    "reply",
    [
        "[1]", '{"score": 6, "refused": false, "incoherent": false}', '{"score": "3", "refused": false, "incoherent": false}',
        '{"score": 2, "refused": "no", "incoherent": false}', '{"score": 2, "refused": false}',
        '{"score": 5, "refused": true, "incoherent": false}', '{"score": true, "refused": true, "incoherent": false}',
        'Sure: {"score": 2, "refused": false, "incoherent": false}', "",
    ],
)  # fmt: skip
def test_strict_parse(reply):
    with pytest.raises(ValueError, match=r"score|JSON|true or false"):
        parse_grade(reply)


def test_fenced_reply_is_read():
    grade = parse_grade("```json\n" + json.dumps(COMPLIED) + "\n```")
    assert (grade.label, grade.score) == ("complied", 4)
