"""Two real servers, vLLM's and `transformers serve`, over one random model: behaviour, keys, resuming."""

import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest

from rim_lens import RimLensError, load_model
from rim_lens.behavior.generate import generate
from rim_lens.behavior.measure import measure_rim
from rim_lens.behavior.refusal_score import RefusalTokens, refusal_score

PROMPTS = ["Name a fruit.", "Why is the sky blue?", "Say hello."]
TOKENS = RefusalTokens((40, 41, 77), ("a", "b", "c"))
KEY = "a-key-of-this-test"
QUICK = {"retries": 1, "backoff": 0.01}
ON_CPU = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}

pytestmark = pytest.mark.timeout(400)


def free_port():
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return bound.getsockname()[1]


@contextmanager
def running(command, log):
    """The address of a server of this command, once it lists its models."""
    port = free_port()
    with log.open("w") as file:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)], stdout=file, stderr=file, env=os.environ | ON_CPU
        )
    url = f"http://127.0.0.1:{port}/v1"
    try:
        while True:
            assert process.poll() is None, log.read_text()[-2000:]
            try:
                if httpx.get(url + "/models", headers={"Authorization": f"Bearer {KEY}"}, timeout=2).status_code == 200:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.5)
        yield url, process
    finally:
        process.terminate()
        process.wait(30)


def vllm_server(folder):
    module = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    options = ["--dtype", "float32", "--max-model-len", "512", "--served-model-name", "tiny", "--enforce-eager"]
    return [*module, "--model", folder, "--api-key", KEY, *options]


def transformers_server(folder):
    return [str(Path(sys.executable).with_name("transformers")), "serve", folder, "--dtype", "float32"]


def written(model, **options):
    return [one.response_ids for one in generate(model, PROMPTS, max_new_tokens=6, cot_budget=5, **options)]


def test_vllms_server(tiny, tmp_path, monkeypatch, caplog):
    here, cache = load_model(tiny), tmp_path / "written.jsonl"
    named = {"model": "tiny", "tokenizer": tiny}
    with running(vllm_server(tiny), tmp_path / "log") as (url, process):
        monkeypatch.delenv("RIM_LENS_API_KEY", raising=False)
        keyless = load_model(url, **named, engine_options={"cache": cache, **QUICK})
        with pytest.raises(RimLensError, match=r"status 401.*the key"):
            written(keyless)
        monkeypatch.setenv("RIM_LENS_API_KEY", KEY)
        model = load_model(url, **named, engine_options={"cache": cache, **QUICK})
        assert model.max_length == 512
        answers = {thinking: written(model, thinking=thinking) for thinking in ("off", "on")}
        assert answers == {thinking: written(here, thinking=thinking) for thinking in ("off", "on")}
        assert model.engine.describe()["sends"] == "token ids"
        np.testing.assert_allclose(
            refusal_score(model, PROMPTS, TOKENS), refusal_score(here, PROMPTS, TOKENS), atol=1e-4
        )
        process.kill()
        process.wait(30)
        with pytest.raises(RimLensError, match="gave no completion in 2 attempts"):
            generate(model, "Another prompt", max_new_tokens=4)
        again = load_model(url, **named, engine_options={"cache": cache, **QUICK})
        assert {thinking: written(again, thinking=thinking) for thinking in answers} == answers
    assert KEY not in cache.read_text() + caplog.text + repr(model) + str(model.engine.describe())


def test_transformers_serve(tiny, tmp_path):
    here, cache = load_model(tiny), tmp_path / "written.jsonl"
    with running(transformers_server(tiny), tmp_path / "log") as (url, process):
        model = load_model(url, model=tiny, tokenizer=tiny, engine_options={"cache": cache, **QUICK})
        options = {"n": 2, "max_new_tokens": 4, "cot_budget": 4, "harmless": None}
        there, mine = measure_rim(model, **options).answers, measure_rim(here, **options).answers
        assert model.engine.describe()["sends"] == "text"
        off = there["condition"] == "off"
        # text alone comes back, without the tokens that the tokenizer leaves out of it
        shown = [model.tokenizer.decode(model.encode(text)) for text in mine["response"]]
        assert there["response"][off].tolist() == [text for text, one in zip(shown, off, strict=True) if one]
        with pytest.raises(RimLensError, match="does not give the log-probabilities"):
            refusal_score(model, PROMPTS, TOKENS)
        process.kill()
        process.wait(30)
        again = load_model(url, model=tiny, tokenizer=tiny, engine_options={"cache": cache, **QUICK})
        assert measure_rim(again, **options).answers["response"].tolist() == there["response"].tolist()
