"""The Python blocks of README and of the documentation's pages run as printed, a page's blocks in one namespace.

Nothing in a block is changed but what PUT_INSTEAD names. What the blocks load lies in the folder that they run in,
under the printed names: a tiny model that refuses half of the built-in requests in words, adapters of it, a tiny guard,
prompts, training data, and the results of an audit. The bundled model is that tiny model too, by way of the cache.
"""

import json
import shutil

import pytest
import torch
from completions_server import CompletionsTestServer
from families import tiny_model
from made_guards import MADE, model_of, tokenizer_of
from made_heads import made_sweep
from peft import LoraConfig, get_peft_model
from test_docs import PAGES, ROOT, blocks_of
from tiny_refuser import refuser_tokenizer, save_refuser
from transformers import LlamaConfig, LlamaForSequenceClassification

from rim_lens import load_model, load_prompts

ELSEWHERE = {"architecture.md"}  # run by test_docs
PARSED_ONLY = {
    "heads.md",
    "neurons.md",
}  # by test_docs: the tiny models lack complied answers, and experts of like load
WITH_CODE = [page for page in PAGES if blocks_of(page) and page.name not in ELSEWHERE | PARSED_ONLY]
SERVER = "http://127.0.0.1:8000/v1"
PUT_INSTEAD = {
    'device="cuda"': 'device="cpu"',
    'load_prompts("gsm8k", n=100)': 'load_prompts("maths", n=8)',  # the one printed set that lies on the hub
    # sizes
    'load_prompts("harmful")': 'load_prompts("harmful", n=56)',
    'load_prompts("harmless")': 'load_prompts("harmless", n=56)',
    "n_controls=100": "n_controls=4",
    "n_generated_controls=5": "n_controls=4, n_generated_controls=1",
    "matched_controls(neurons, 50)": "matched_controls(neurons, 4)",
    "wordings_per_prompt=4": "wordings_per_prompt=1",
    '"harmful", wordings': '__import__("rim_lens").load_prompts("harmful", n=8), wordings',
    'measure_rim(model, "harmful"': 'measure_rim(model, __import__("rim_lens").load_prompts("harmful", n=8)',
    "resample=8": "resample=2",
    "n=100": "n=4",
    "n=64": "n=4",
    "n=32": "n=16",
    # a random model has no direction of refusal: any will do
    "refusal_direction(model, harmful, harmless)": (
        "refusal_direction(model, harmful, harmless, least_induced=-50.0, kl_limit=50.0, n_controls=4)"
    ),
    "top=0.001": "top=0.05",
}
NOT_HERE = 'engine="vllm"'  # needs vLLM: `make test-engine`
STAND_FOR_YOUR_OWN = {  # names that a page says are the reader's
    "neurons.md": lambda: {
        "mixture": tiny_model("mixtral", num_hidden_layers=4, num_local_experts=8),
        "requests": load_prompts("harmful").texts[:12],
        "labels": ["refused", "complied"] * 6,
    }
}


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """A folder with everything that the blocks name."""
    place = tmp_path_factory.mktemp("house") / "here"
    model = save_refuser(place / "cache" / "smollm2-135m-instruct")
    for name in ("Qwen/Qwen3-4B", "Qwen/Qwen3-0.6B", "Qwen/Qwen3-8B", "my-base", "my-model"):
        shutil.copytree(model, place / name)
    names = [one["name"] for one in json.loads((ROOT / "assets/organism/series.json").read_text())["checkpoints"]]
    for i, name in enumerate(names):
        save_adapter(
            place / "cache" / "smollm2-135m-instruct", place / "assets/organism" / name, "smollm2-135m-instruct", i
        )
    document = json.loads((ROOT / "assets/organism/series.json").read_text())
    for one in document["checkpoints"]:
        one.pop("sha256")
    shutil.copytree(ROOT / "assets/organism/training_sample", place / "assets/organism/training_sample")
    (place / "assets/organism/series.json").write_text(json.dumps(document))
    save_adapter(place / "my-base", place / "my-lora", "my-base", 1)
    for step in (0, 10):
        save_adapter(place / "my-base", place / "runs/sft" / f"checkpoint-{step}", "my-base", step)
    classifier = LlamaForSequenceClassification(
        LlamaConfig(
            vocab_size=len(refuser_tokenizer()),
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            pad_token_id=refuser_tokenizer().pad_token_id,
            id2label={0: "flagged", 1: "fine"},
            label2id={"flagged": 0, "fine": 1},
        )
    )
    classifier.save_pretrained(place / "my-guard")
    refuser_tokenizer().save_pretrained(place / "my-guard")
    for name, guard in (("wildguard", "wildguard"), ("Qwen/Qwen3Guard-Gen-0.6B", "qwen3guard")):
        tokenizer = tokenizer_of(MADE[guard])
        model_of(MADE[guard], len(tokenizer)).save_pretrained(place / name)
        tokenizer.save_pretrained(place / name)
    rows = [{"request": text} for text in load_prompts("harmful").texts]
    (place / "my-prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for arm in ("plain", "effort", "style"):
        shutil.copy(ROOT / "assets/organism/training_sample" / f"{arm}.jsonl", place)
    made_sweep().save(place / "runs/demo/stages/heads/ablation")
    (place / "arms.toml").write_text(
        "save_at = [1, 2]\nbatch_size = 2\nrank = 2\nseeds = [1, 2]\n"
        '[arms.plain]\ndata = "plain.jsonl"\n[arms.effort]\ndata = "effort.jsonl"\n'
    )
    return place


def save_adapter(base, folder, name, seed):
    """A LoRA adapter of the tiny model, whose base goes by `name`."""
    torch.manual_seed(seed)
    model = get_peft_model(load_model(base).hf, LoraConfig(r=2, target_modules="all-linear"))
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "lora_B" in key:
                parameter.normal_(0, 0.02 * seed)
    model.peft_config["default"].base_model_name_or_path = str(name)
    model.save_pretrained(folder)


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.stem)
def test_the_python_of_a_page_runs_as_printed(page, house, tmp_path, monkeypatch):
    shutil.copytree(house.parent, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("RIM_LENS_CACHE", str(tmp_path / "here" / "cache"))
    blocks = [block for block in blocks_of(page) if NOT_HERE not in block]
    namespace = STAND_FOR_YOUR_OWN[page.name]() if page.name in STAND_FOR_YOUR_OWN else {}
    put_instead = dict(PUT_INSTEAD)
    if any(SERVER in block for block in blocks):
        server = CompletionsTestServer(load_model("Qwen/Qwen3-8B"), name="Qwen/Qwen3-8B", context=8192)
        put_instead[SERVER] = server.url
    for block in blocks:
        for printed, instead in put_instead.items():
            block = block.replace(printed, instead)
        exec(compile(block, f"{page.name}", "exec"), namespace)
