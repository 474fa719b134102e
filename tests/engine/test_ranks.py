"""Two CPU ranks give the numbers of one: heads, neurons and their ablation are sharded."""

import json
import subprocess
import sys

import numpy as np
import pytest

SCRIPT = """
import json, sys
from rim_lens import load_model
from rim_lens.behavior.generate import generate
from rim_lens.behavior.refusal_score import RefusalTokens, refusal_score
from rim_lens.capture.activations import head_outputs, residuals
from rim_lens.capture.neurons import neuron_activations
from rim_lens.inference_time.span_attention import span_attention
from rim_lens.intervene.heads import ablate_heads
from rim_lens.intervene.neurons import ablate_neurons

if __name__ == "__main__":
    folder, ranks = sys.argv[1], int(sys.argv[2])
    model = load_model(folder, engine="vllm", tensor_parallel=ranks, engine_options={"max_model_len": 256})
    prompts, tokens = ["Name a fruit.", "Why is the sky blue?"], RefusalTokens((40, 41, 77), ("a", "b", "c"))
    found = {
        "attention": span_attention(model, prompts).mass.tolist(),
        "neurons": neuron_activations(model, prompts, "all", progress=False).mean.tolist(),
        "heads": head_outputs(model, prompts).tolist(),
        "residuals": residuals(model, prompts).tolist(),
    }
    with ablate_heads(model, [(0, 0), (1, 3)]), ablate_neurons(model, [(0, 5), (2, 40)]):
        found["score"] = refusal_score(model, prompts, tokens).tolist()
        found["answers"] = [list(one.response_ids) for one in generate(model, prompts, max_new_tokens=8)]
    print("FOUND" + json.dumps(found))
"""

KILLED = """
import os, signal, sys, threading, time
import psutil
from rim_lens import RimLensError, load_model
from rim_lens.behavior.generate import generate

if __name__ == "__main__":
    model = load_model(sys.argv[1], engine="vllm", tensor_parallel=2, engine_options={"max_model_len": 1024})
    workers = [one for one in psutil.Process().children(recursive=True) if "Worker" in one.name()]
    workers = workers or psutil.Process().children(recursive=True)[-1:]

    def kill():
        time.sleep(0.5)
        os.kill(workers[-1].pid, signal.SIGKILL)

    threading.Thread(target=kill).start()
    for what in ("SAID", "AGAIN"):
        try:
            while True:
                generate(model, ["Name a fruit."] * 8, max_new_tokens=900, progress=False)
        except RimLensError as error:
            print(what, error, flush=True)
    os._exit(0)
"""


def found(folder, ranks, script):
    done = subprocess.run([sys.executable, script, folder, str(ranks)], capture_output=True, text=True, timeout=280)
    lines = [line for line in done.stdout.splitlines() if "FOUND" in line]
    assert lines, done.stderr[-3000:]
    return json.loads(lines[0].split("FOUND")[1])


@pytest.mark.timeout(600)
def test_numbers_are_equal_at_one_and_two_ranks(tiny, tmp_path):
    script = tmp_path / "measure.py"
    script.write_text(SCRIPT)
    one, two = (found(tiny, ranks, str(script)) for ranks in (1, 2))
    assert one["answers"] == two["answers"]
    for name in ("attention", "neurons", "heads", "residuals", "score"):
        np.testing.assert_allclose(one[name], two[name], atol=1e-4, err_msg=name)


@pytest.mark.timeout(300)
def test_a_rank_that_is_killed_while_it_writes_is_one_sentence(tiny, tmp_path):
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    done = subprocess.run([sys.executable, str(script), tiny], capture_output=True, text=True, timeout=280)
    assert "SAID vLLM" in done.stdout, done.stderr[-3000:]
    assert "stopped while it wrote" in done.stdout
    assert "AGAIN vLLM" in done.stdout
    assert "has stopped; load the model anew" in done.stdout
