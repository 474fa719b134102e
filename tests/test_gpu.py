"""On a CUDA device: the same numbers as on the CPU, in bfloat16, through SDPA's kernels, spread over devices.

Skipped where there is none: `pytest -m gpu` says so.
"""

import numpy as np
import pytest
import torch
from families import tiny_hf, tiny_tokenizer
from torch.nn.attention import SDPBackend, sdpa_kernel

from rim_lens import load_model
from rim_lens.behavior.generate import generate
from rim_lens.behavior.refusal_score import RefusalTokens, refusal_score
from rim_lens.capture.activations import residuals
from rim_lens.capture.attention import segment_masses
from rim_lens.capture.neurons import neuron_activations
from rim_lens.inference_time.sweep import ablation_sweep
from rim_lens.intervene import ablate_heads, knock_out

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; torch sees none here"),
]
R = RefusalTokens((5, 6), ("a", "b"))
REQUESTS = ["Bake bread.", "Sing a song about bees, please, and a long one.", "Why?"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("tiny")
    tiny_hf("llama").save_pretrained(place)
    tiny_tokenizer().save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def cpu(folder):
    return load_model(folder, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def cuda(folder):
    torch.backends.cuda.matmul.allow_tf32 = False
    return load_model(folder, device="cuda", dtype="float32")


def chats_of(model):
    return model.render(REQUESTS, thinking="prefilled", cot="I weigh this.")


MEASURES = {
    "refusal score": lambda m: refusal_score(m, chats_of(m), R),
    "segment masses": lambda m: segment_masses(m, chats_of(m)).numpy(),
    "residual stream": lambda m: residuals(m, chats_of(m)).numpy(),
    "neurons": lambda m: neuron_activations(m, chats_of(m), "user").magnitude,
    "ablation sweep": lambda m: ablation_sweep(m, chats_of(m), R).effect,
    "suffix sweep": lambda m: ablation_sweep(m, chats_of(m), R, positions="suffix").effect,
}


@pytest.mark.parametrize("name", MEASURES)
def test_the_gpu_measures_what_the_cpu_measures(cpu, cuda, name):
    np.testing.assert_allclose(MEASURES[name](cuda), MEASURES[name](cpu), rtol=1e-3, atol=1e-3)


def test_defaults_are_the_gpu_and_bfloat16(folder):
    model = load_model(folder)
    assert (model.device.type, model.dtype) == ("cuda", torch.bfloat16)


def test_bfloat16_stays_near_float32_and_scores_are_float64(folder, cuda):
    half = load_model(folder, device="cuda", dtype="bfloat16")
    scores = MEASURES["refusal score"](half)
    assert scores.dtype == np.float64
    np.testing.assert_allclose(scores, MEASURES["refusal score"](cuda), atol=0.5)
    masses = MEASURES["segment masses"](half)
    np.testing.assert_allclose(masses, MEASURES["segment masses"](cuda), atol=0.05)
    np.testing.assert_allclose(masses.sum(axis=-1), 1, atol=1e-3)


@pytest.mark.parametrize("kernel", [SDPBackend.MATH, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.FLASH_ATTENTION])
def test_attention_rows_and_ablations_hold_under_every_sdpa_kernel(folder, kernel):
    model = load_model(folder, device="cuda", dtype="bfloat16")
    chats = chats_of(model)[:1]  # one prompt has no padding, so that no kernel is ruled out by a mask
    try:
        with sdpa_kernel(kernel):
            found = segment_masses(model, chats).numpy()
            with ablate_heads(model, [(1, 2)]):
                ablated = refusal_score(model, chats, R)
    except RuntimeError as error:
        # Which fused kernels there are is the device's business (flash attention from compute capability 8.0); MATH is
        # on all.
        if kernel is SDPBackend.MATH or "No available kernel" not in str(error):
            raise
        pytest.skip(f"this device has no {kernel.name} kernel for heads of 8")
    np.testing.assert_allclose(found, segment_masses(model, chats, backend="hooks").numpy(), atol=0.05)
    with ablate_heads(model, [(1, 2)], backend="hooks"):
        np.testing.assert_allclose(ablated, refusal_score(model, chats, R), atol=0.5)


def test_generation_and_knock_out_match_the_cpu(cpu, cuda):
    for model in (cpu, cuda):
        model.answers = [a.response_ids for a in generate(model, REQUESTS, max_new_tokens=6, progress=False)]
        with knock_out(model, [(0, 0), (1, 1)], "cot"):
            model.without = refusal_score(model, chats_of(model), R)
    assert cuda.answers == cpu.answers
    np.testing.assert_allclose(cuda.without, cpu.without, atol=1e-3)


@pytest.mark.parametrize("spread", ["auto", "first layer on the CPU"])
def test_models_spread_over_devices_measure_the_same(folder, cpu, spread):
    places: object = "auto"
    if spread != "auto":
        places = {"": 0, "model.layers.0": "cpu"}
        if torch.cuda.device_count() > 1:
            places = {"": 0, "model.layers.2": 1}
    model = load_model(folder, device_map=places, dtype="float32")
    for name in ("refusal score", "segment masses", "neurons"):
        np.testing.assert_allclose(MEASURES[name](model), MEASURES[name](cpu), rtol=1e-3, atol=1e-3)


def test_a_real_lack_of_memory_halves_the_batch(folder):
    model = load_model(folder, device="cuda", dtype="float32")
    chats = chats_of(model)
    few = refusal_score(model, chats, R, batch_size=1)

    def hungry(module, args, kwargs):
        if len(kwargs["input_ids"] if "input_ids" in kwargs else args[0]) > 1:
            torch.empty(1 << 45, device="cuda")

    handle = model.hf.model.register_forward_pre_hook(hungry, with_kwargs=True)
    try:
        with pytest.warns(UserWarning, match="batch_size=1"):
            scores = refusal_score(model, chats, R, batch_size=3)
    finally:
        handle.remove()
    np.testing.assert_allclose(scores, few, atol=1e-4)
