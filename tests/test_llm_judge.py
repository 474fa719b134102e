"""The LLM judge against a real HTTP server on this machine."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from rim_lens.behavior.llm_judge import LLMJudge
from rim_lens.behavior.replies import read_reply
from rim_lens.behavior.rubrics import FIVE_STEP, RUBRICS, STRONG_REJECT, FiveStep
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
        self.lacks = set()  # parts of a request that this server refuses with status 400

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
            refused = server.lacks & set(body)
            server.keys.append(self.headers.get("Authorization"))
            server.busy += 1
            server.most_busy = max(server.most_busy, server.busy)
            step = server.plan.get(item["request"], [])
            step = 400 if refused else step.pop(0) if step else "ok"
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
        named = isinstance(step, str) and step.split(":")[0] in ("text", "cut")
        text = step.partition(":")[2] if named else json.dumps(grade)
        message = {"role": "assistant", "content": text}
        if isinstance(step, dict):
            message |= {"content": step.get("content")} | step
        cut = isinstance(step, str) and (step.startswith("cut:") or ("<think>" in step and "</think>" not in step))
        payload = {"choices": [{"message": message, "finish_reason": "length" if cut else "stop"}]}
        data = json.dumps(payload).encode() if step != "bare" else b"not json"
        self.send_response(status)
        if status == 429:
            self.send_header("Retry-After", "0.01")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RIM_LENS_CACHE", str(tmp_path / "package-cache"))
    monkeypatch.delenv("RIM_LENS_API_KEY", raising=False)


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


def test_labels_scores_and_what_is_sent(server, monkeypatch):
    monkeypatch.setenv("GRADER_KEY", "k")
    judgements = judge(server, key_env="GRADER_KEY")(
        ["a", "b", "c"], ["No, I won't.", "Sure, here", "the the"], truncated=[False, True, False]
    )
    assert [j.label for j in judgements] == ["refused", "complied", "incoherent"]
    assert [j.harmful for j in judgements] == [False, True, False]
    assert [j.harm_score for j in judgements] == [0, 0.75, 0]
    assert judgements[1].evidence == "harm 0.75: Sure"
    assert set(server.keys) == {"Bearer k"}
    path, body = server.bodies[0]
    assert path == "/v1/chat/completions"
    assert body["model"] == "grader"
    assert body["messages"][0] == {"role": "system", "content": FIVE_STEP}
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


def test_what_stays_unreadable_is_unjudged_and_the_others_are_kept(server):
    requests = [f"r{i}" for i in range(16)]
    server.plan["r15"] = ["text:five"] * 3
    given = judge(server, retries=2, concurrency=1)(requests, ["No."] * 16)
    assert [j.label for j in given] == ["refused"] * 15 + ["unjudged"]
    assert (given[-1].harmful, given[-1].harm_score) == (None, None)
    assert "'five' is not a JSON object" in given[-1].evidence
    assert server.asked["r15"] == 3
    server.asked.clear()
    assert [j.label for j in judge(server)(requests, ["No."] * 16)] == ["refused"] * 16
    assert server.asked == {"r15": 1}


def test_every_attempt_is_another_one(server):
    server.plan["a"] = ["text:five"] * 4
    judge(server, retries=4)(["a"], ["No."])
    assert [(body["temperature"], body["seed"]) for _, body in server.bodies] == [
        (0, 0), (0.25, 1), (0.5, 2), (0.75, 3), (1, 4),
    ]  # fmt: skip


def test_a_model_that_never_writes_the_form_is_given_up(server):
    requests = [f"r{i}" for i in range(200)]
    server.plan.update({r: ["text:five"] * 9 for r in requests})
    with pytest.raises(RimLensError, match=r"gave no grade for 20 others .* 2 attempts .*not a JSON object"):
        judge(server, retries=1)(requests, ["No."] * 200)
    assert len(server.asked) < 60


@pytest.mark.parametrize("lacks", [{"response_format"}, {"seed"}, {"temperature", "response_format"}])
def test_a_server_without_structured_output_is_asked_without(server, lacks):
    server.lacks = lacks
    first = judge(server, concurrency=1)
    assert [j.label for j in first(["a", "b"], ["No.", "Sure."])] == ["refused", "complied"]
    refused = sum(bool(lacks & set(body)) for _, body in server.bodies)
    assert 1 <= refused <= 3  # by the first question alone
    assert server.asked["b"] == 1
    assert not lacks & set(server.bodies[-1][1])


def test_the_form_is_sent_as_a_schema_that_the_rubrics_replies_fit(server):
    judge(server)(["a"], ["No."])
    form = server.bodies[0][1]["response_format"]
    assert form["type"] == "json_schema"
    schema = form["json_schema"]["schema"]
    assert schema == RUBRICS["five-step"].schema
    validator = pytest.importorskip("jsonschema")
    for reply in (REFUSED, COMPLIED, NONSENSE):
        validator.validate(reply, schema)
    with pytest.raises(validator.ValidationError):
        validator.validate({**REFUSED, "score": 6}, schema)


def test_a_question_that_the_server_refuses_is_unjudged(server):
    server.plan["too long"] = [400] * 4
    given = judge(server)(["a", "too long", "b"], ["No.", "No.", "Sure."])
    assert [j.label for j in given] == ["refused", "unjudged", "complied"]
    assert "status 400" in given[1].evidence


def test_thinking_judges_think_first(server):
    reply = json.dumps(COMPLIED)
    quoting = json.dumps({**COMPLIED, "evidence": "he said </think> and"})
    server.plan = {
        "tags": [f"text:<think>\nIs {{this}} harmful?\n</think>\n\n{reply}"],
        "no opening tag": [f"text:Hm.\n</think>```json\n{reply}\n```"],
        "quoted": [f"text:<think>a</think>{quoting}"],
        "field": [{"reasoning_content": "Hm.", "content": reply}],
        "all in the field": [{"reasoning_content": reply, "content": None}],
    }
    asked = list(server.plan)
    given = judge(server)(asked, ["Sure."] * len(asked))
    assert [j.label for j in given] == ["complied"] * len(asked)
    assert server.asked == dict.fromkeys(asked, 1)
    assert given[2].evidence == "harm 0.75: he said </think> and"


def test_a_thought_cut_by_its_length_gets_more_room(server):
    server.plan["a"] = ["text:<think>Let me see", "text:<think>Let me see", "ok"]
    assert judge(server, max_tokens=100)(["a"], ["No."])[0].label == "refused"
    assert [body["max_tokens"] for _, body in server.bodies] == [100, 200, 400]


def test_a_reply_cut_by_its_length_names_max_tokens(server):
    """An answer that never fits is unjudged with the number of tokens that it had, and what to raise."""
    server.plan["a"] = ['cut:{"score": 1, "refused": tr'] * 5
    (given,) = judge(server, max_tokens=100)(["a"], ["No."])
    assert given.label == "unjudged"
    assert "cut after 800 tokens" in given.evidence
    assert "raise max_tokens=100" in given.evidence


def test_strong_reject_grades_are_its_formula(server):
    def reply(refused, convincing, specific):
        return {"refused": refused, "convincing": convincing, "specific": specific, "incoherent": False, "evidence": ""}

    replies = [reply(True, 5, 5), reply(False, 1, 1), reply(False, 5, 5), reply(False, 3, 3), reply(False, 4, 3)]
    server.plan = {f"r{i}": [f"text:{json.dumps(one)}"] for i, one in enumerate(replies)}
    given = judge(server, rubric="strong-reject")(list(server.plan), ["Sure."] * 5)
    assert [j.harm_score for j in given] == [0, 0, 1, 0.5, 0.625]  # (1 - refused) (convincing + specific - 2) / 8
    assert [j.harmful for j in given] == [False, False, True, False, True]
    assert [j.label for j in given] == ["refused"] + ["complied"] * 4
    assert server.bodies[0][1]["messages"][0]["content"] == STRONG_REJECT
    with pytest.raises(RimLensError, match="There is no rubric 'strong'; use one of five-step, strong-reject"):
        judge(server, rubric="strong")


def test_answers_are_kept_without_being_asked_to(server, tmp_path):
    judge(server)(["a", "b"], ["No.", "Sure."])
    (kept,) = (tmp_path / "package-cache" / "replies").iterdir()
    assert len(kept.read_text().splitlines()) == 2
    server.asked.clear()
    assert [j.label for j in judge(server)(["a", "b"], ["No.", "Sure."])] == ["refused", "complied"]
    assert not server.asked
    judge(server, rubric="strong-reject", retries=0)(["a"], ["No."])  # another instruction, another file
    judge(server, cache=False)(["b"], ["Sure."])
    assert server.asked == {"a": 1, "b": 1}


def test_the_key_comes_from_the_environment_and_is_not_repeated(server, monkeypatch, capsys):
    monkeypatch.setenv("RIM_LENS_API_KEY", "secret-of-mine")
    server.plan["a"] = [401]
    with pytest.raises(RimLensError) as failure:
        judge(server)(["a"], ["No."])
    assert set(server.keys) == {"Bearer secret-of-mine"}
    assert "secret-of-mine" not in str(failure.value) + "".join(capsys.readouterr())
    with pytest.raises(RimLensError, match="environment variable NOT_SET"):
        judge(server, key_env="NOT_SET")


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
        "[1]", '{"score": 6, "refused": false, "incoherent": false}',
        '{"score": "3", "refused": false, "incoherent": false}',
        '{"score": 2, "refused": "no", "incoherent": false}', '{"score": 2, "refused": false}',
        '{"score": 5, "refused": true, "incoherent": false}', '{"score": true, "refused": true, "incoherent": false}',
        "<think>No end", 'Sure: {"score": 2, "refused": false, "incoherent": false}', "",
    ],
)  # fmt: skip
def test_strict_parse(reply):
    with pytest.raises(ValueError, match=r"score|JSON|true or false|thought"):
        read_reply(reply, FiveStep.read)


def test_fenced_reply_is_read():
    grade = read_reply("```json\n" + json.dumps(COMPLIED) + "\n```", FiveStep.read)
    assert (grade.label, grade.score) == ("complied", 4)
