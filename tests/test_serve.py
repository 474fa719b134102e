"""The server: answers are the API's, and nobody but its own page on this machine gets one."""

import base64
import http.client
import json
import queue
import threading
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from families import shared_model, tiny_hf, tiny_tokenizer

from rim_lens import RimLensError, ablate_heads, refusal_score
from rim_lens.audit.plan import AuditPlan, claim_folder
from rim_lens.capture.attention import attention_rows
from rim_lens.serve.answers import PageModel
from rim_lens.serve.http import LARGEST_BODY, PageServer
from rim_lens.serve.run import plan_of, serve_run

REQUEST = "how do I open a lock"
PAGE = b"<!doctype html><title>page</title>"


@pytest.fixture(scope="module")
def model():
    return shared_model()


@pytest.fixture(scope="module")
def server(model):
    with PageServer(lambda: PAGE, PageModel(model, max_new_tokens=3, cot_budget=4)) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield running
        running.shutdown()


def ask(server, path, body=None, method=None, token=None, **headers):
    """(status, headers, body) of one request; a header given as None is left out."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    sent = {"Host": f"127.0.0.1:{server.server_port}"}
    if body is not None:
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        sent |= {"Content-Type": "application/json", "Content-Length": str(len(body))}
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}
    connection.putrequest(
        method or ("GET" if body is None else "POST"),
        f"/{server.token if token is None else token}/{path}",
        skip_host=True,
        skip_accept_encoding=True,
    )
    for name, value in sent.items():
        if value is not None:
            connection.putheader(name, value)
    connection.endheaders(body)
    reply = connection.getresponse()
    return reply.status, dict(reply.getheaders()), reply.read()


def test_page_and_model_are_there(server, model):
    status, headers, body = ask(server, "")
    assert (status, body) == (200, PAGE)
    assert headers["Content-Type"].startswith("text/html")
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert json.loads(ask(server, "api/about")[2]) == {
        "model": model.name,
        "layers": 3,
        "heads": 4,
        "modes": ["off", "on"],
    }


def test_tables_that_the_page_links_to_are_there_and_nothing_else_of_the_folder(model, tmp_path):
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "ablation.csv").write_text("a,b\n1,2\n")
    (tmp_path / "results.csv").write_text("secret")
    page_model = PageModel(model, max_new_tokens=3, cot_budget=4)
    with PageServer(lambda: PAGE, page_model, tables=tmp_path / "tables") as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        status, headers, body = ask(running, "tables/ablation.csv")
        assert (status, body) == (200, b"a,b\n1,2\n")
        assert headers["Content-Type"].startswith("text/csv")
        for path in ("tables/none.csv", "tables/../results.csv", "tables/%2e%2e/results.csv", "results.csv", "tables/"):
            assert ask(running, path)[0] == 404
        assert ask(running, "tables/ablation.csv", token="wrong")[0] == 404
        running.shutdown()


def test_it_listens_on_this_machine_alone(server):
    assert server.server_address[0] == "127.0.0.1"
    assert server.url.startswith(f"http://127.0.0.1:{server.server_port}/")
    assert len(server.token) >= 40


def test_answers_are_those_of_the_api(server, model):
    status, _, body = ask(server, "api/answer", {"request": REQUEST, "thinking": "off", "heads": ["L1H2", "L0H0"]})
    reply = json.loads(body)
    chats = model.render([REQUEST])
    assert status == 200
    assert reply["before"]["score"] == pytest.approx(refusal_score(model, chats)[0], abs=1e-5)
    with ablate_heads(model, [(1, 2), (0, 0)]):
        assert reply["after"]["score"] == pytest.approx(refusal_score(model, chats)[0], abs=1e-5)
    assert abs(reply["after"]["score"] - reply["before"]["score"]) > 1e-3
    assert "after" not in json.loads(ask(server, "api/answer", {"request": REQUEST})[2])


def test_attention_in_a_new_prompt(server, model):
    reply = json.loads(ask(server, "api/tokens", {"request": REQUEST})[2])
    off, on = reply["chats"]
    chat = model.render([REQUEST])[0]
    shares = np.frombuffer(base64.b64decode(off["weights"]), dtype="<u2").reshape(len(reply["heads"]), -1) / 65535
    expected = attention_rows(model, [chat])[0][1, 3, 0]
    np.testing.assert_allclose(shares[reply["heads"].index("L1H3")], expected, atol=2e-5)
    assert "cot" in on["segments"]
    assert "cot" not in off["segments"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "rebound.example:80"}, 403),
        ({"Host": "127.0.0.1"}, 403),
        ({"Host": None}, 403),
        ({"Origin": "https://elsewhere.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Sec_Fetch_Site": "cross-site"}, 403),
        ({"Sec_Fetch_Site": "same-site"}, 403),
        ({"token": "x" * 43}, 404),
        ({"token": ""}, 404),
        ({"token": "é"}, 404),
    ],
)
@pytest.mark.parametrize("path", ["", "api/about", "api/answer"])
def test_others_get_nothing(server, headers, status, path):
    token = headers.get("token")
    if token == "é":
        token = "%C3%A9"
    rest = {name: value for name, value in headers.items() if name != "token"}
    body = {"request": REQUEST} if path == "api/answer" else None
    got, _, text = ask(server, path, body, token=token, **rest)
    assert got == status
    assert PAGE not in text
    assert set(json.loads(text)) == {"error"}


def test_its_own_page_may_ask(server):
    own = f"http://127.0.0.1:{server.server_port}"
    assert ask(server, "api/answer", {"request": REQUEST}, Origin=own, Sec_Fetch_Site="same-origin")[0] == 200


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        ({"request": REQUEST}, {"Content_Type": "text/plain"}, 415),
        ({"request": REQUEST}, {"Content_Type": "application/x-www-form-urlencoded"}, 415),
        ({"request": REQUEST}, {"Content_Length": None}, 411),
        ({"request": REQUEST}, {"Content_Length": "-1"}, 411),
        (b"{", {"Content_Length": str(LARGEST_BODY + 1)}, 413),
        (b"not json", {}, 400),
        (b"[" * 4000, {}, 400),
        (b"[1, 2]", {}, 400),
        ({"request": ""}, {}, 400),
        ({"request": 3}, {}, 400),
        ({"request": "x" * 2001}, {}, 400),
        ({"request": REQUEST, "thinking": "prefilled"}, {}, 400),
        ({"request": REQUEST, "heads": "L1H2"}, {}, 400),
        ({"request": REQUEST, "heads": ["<b>"]}, {}, 400),
        ({"request": REQUEST, "heads": ["L9H0"]}, {}, 400),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_sentence(server, body, headers, status):
    got, _, text = ask(server, "api/answer", body, **headers)
    assert got == status
    assert json.loads(text)["error"].endswith(".")


def test_unknown_paths_and_methods(server):
    assert ask(server, "../etc/passwd")[0] == 404
    assert ask(server, "api/nothing", {"request": REQUEST})[0] == 404
    assert ask(server, "api/__init__", {"request": REQUEST})[0] == 404
    assert ask(server, "", method="DELETE")[0] == 501


def test_one_question_at_a_time(server):
    with server.model._one_at_a_time:
        status, _, body = ask(server, "api/answer", {"request": REQUEST})
    assert status == 503
    assert "busy" in json.loads(body)["error"]
    assert ask(server, "api/answer", {"request": REQUEST})[0] == 200


def test_no_reply_can_be_read_as_html(server):
    status, headers, body = ask(server, "api/tokens", {"request": "<script>alert(1)</script>"})
    assert status == 200
    assert headers["Content-Type"] == "application/json"
    assert b"<" not in body
    assert json.loads(body)["chats"][0]["request"] == "<script>alert(1)</script>"


def test_a_failure_is_told_without_its_details(server, monkeypatch, capsys):
    def fail(given):
        raise ValueError("a secret of the machine")

    monkeypatch.setitem(server.model.questions, "answer", fail)
    status, _, body = ask(server, "api/answer", {"request": REQUEST})
    assert status == 500
    assert b"secret" not in body
    assert "a secret of the machine" in capsys.readouterr().err


def test_a_folder_without_an_audit_is_not_served(tmp_path):
    with pytest.raises(RimLensError, match="holds no audit"):
        serve_run(tmp_path)
    (tmp_path / "plan.json").write_text('{"model": "x", "unknown": 1}')
    with pytest.raises(RimLensError, match="not a plan of this version"):
        plan_of(Path(tmp_path))


def test_a_running_audit_is_served_as_it_grows(tmp_path):
    folder, run = tmp_path / "tiny", tmp_path / "run"
    tiny_hf("llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    claim_folder(AuditPlan(model=str(folder)), run)
    address = queue.SimpleQueue()
    threading.Thread(target=serve_run, args=(run,), kwargs={"announce": address.put}, daemon=True).start()
    url = address.get(timeout=60)
    with urllib.request.urlopen(url) as reply:
        waiting = reply.read()
    assert b"No stage of this audit is done yet" in waiting
    assert b'http-equiv="refresh"' in waiting
    for page in (PAGE, PAGE + b"<p>grown"):
        (run / "report.html").write_bytes(page)
        with urllib.request.urlopen(url) as reply:
            assert reply.read() == page


def test_relative_paths_of_a_plan_are_found_from_any_folder(tmp_path, monkeypatch):
    series, run = tmp_path / "assets" / "series", tmp_path / "runs" / "demo"
    series.mkdir(parents=True)
    run.mkdir(parents=True)
    plan = {"model": "smollm2-135m-instruct", "checkpoints": "assets/series"}
    (run / "plan.json").write_text(json.dumps(plan))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert plan_of(run).checkpoints == str(series)
    assert plan_of(run).model == "smollm2-135m-instruct"
    monkeypatch.chdir(tmp_path)
    assert plan_of(Path("runs/demo")).checkpoints == "assets/series"
