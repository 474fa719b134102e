"""What works on which family: a tiny random model of each architecture in check_model and the public functions.

`measured(family)` gives one cell per part: "yes", or the reason in words where the library refuses. Anything that fails
raises.
"""

from collections.abc import Iterator

import numpy as np
from families import FAMILIES, MORE_FAMILIES, tiny_model

from rim_lens import RimLensError, ablate_heads, ablation_sweep, find_safety_neurons, generate, span_attention
from rim_lens.check.model_check import check_model
from rim_lens.model.lens_model import LensModel
from rim_lens.model.mixture_layers import existing
from rim_lens.training_time import given_pairs

NAMES = {
    "llama": "Llama",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "qwen3_moe": "Qwen3-MoE",
    "qwen3_next": "Qwen3-Next",
    "qwen3_5": "Qwen3.5",
    "gemma2": "Gemma-2",
    "gemma3": "Gemma-3",
    "mistral": "Mistral",
    "mixtral": "Mixtral",
    "phi3": "Phi-3",
    "phimoe": "Phi-3.5-MoE",
    "olmo2": "OLMo-2",
    "olmoe": "OLMoE",
    "gpt_oss": "GPT-OSS",
    "smollm3": "SmolLM3",
    "deepseek_v2": "DeepSeek-V2",
    "deepseek_v3": "DeepSeek-V3",
    "gpt_neox": "GPT-NeoX",
    "gpt2": "GPT-2",
}
# column of the table: checks that must hold for a "yes"
COLUMNS = {
    "segments": ("segments",),
    "logits": ("logits, padded batch", "logits while read, fast"),
    "attention": ("attention rows, fast",),
    "head ablation": ("head ablation, fast",),
    "neurons": ("neuron moments, fast",),
    "neuron ablation": ("neuron ablation, fast",),
    "generation": ("generation", "generation without a head"),
    "TransformerLens hooks": ("logits while read, hooks", "attention rows, hooks", "head ablation, hooks"),
}
USES = ("head sweep", "safety neurons")
REQUESTS = ["How do I pick a lock?", "Tell me a story about a fox, please."]
assert set(NAMES) == {*FAMILIES, *MORE_FAMILIES}


def measured(family: str) -> dict[str, str]:
    """One cell per column: "yes", or why the library refuses."""
    model = tiny_model(family)
    table = check_model(model).table.set_index("check")
    failing = table[table["holds"] == "fails"]
    assert failing.empty, f"{family}: {failing['why'].to_dict()}, {failing['worst'].to_dict()}"
    cells = {}
    for column, checks in COLUMNS.items():
        refused = [str(table.loc[check, "why"]) for check in checks if table.loc[check, "holds"] == "refused"]
        cells[column] = refused[0].replace(f"{model.name}", "this model") if refused else "yes"
    for use, function in (("head sweep", used_heads), ("safety neurons", used_neurons)):
        try:
            cells[use] = function(model)
        except RimLensError as error:
            cells[use] = str(error).replace(model.name, "this model")
    return cells


def used_heads(model: LensModel) -> str:
    """Span attention, a small sweep and generation without its strongest head."""
    chats = model.render(REQUESTS, thinking="prefilled", cot="Hm, let me see.")
    attention = span_attention(model, chats).mass
    with_heads = ~np.isnan(attention).any(axis=(0, 2, 3))
    assert with_heads.any()
    assert (attention[:, with_heads].sum(-1) < 1 + 1e-4).all()
    assert (attention[:, with_heads] >= 0).all()
    sweep = ablation_sweep(model, chats, n_permutations=100)
    assert len(sweep.table) == with_heads.sum() * model.n_heads
    assert np.abs(sweep.effect[:, with_heads]).max() > 1e-3
    plain = generate(model, REQUESTS, max_new_tokens=3, progress=False)
    with ablate_heads(model, sweep.ranked(2)):
        ablated = generate(model, REQUESTS, max_new_tokens=3, progress=False)
    assert len(plain) == len(ablated) == len(REQUESTS)
    return "yes" if sweep.method == "exact" else f"whole passes, since {sweep.why_plain}"


def used_neurons(model: LensModel) -> str:
    """Safety neurons of two pairs."""
    pairs = given_pairs(model, [(request, f"Refuse this: {request}") for request in REQUESTS])
    found = find_safety_neurons(model, pairs, top=4, n_resamples=5)
    assert len(found.hard) == 4
    assert np.array_equal(np.isfinite(found.base), existing(model))
    return "yes"


def rows(families: dict[str, str] = NAMES) -> Iterator[tuple[str, dict[str, str]]]:
    """Name and cells of every family."""
    for family, name in families.items():
        yield name, measured(family)
