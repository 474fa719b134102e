"""Adapters of any kind merged into the weights by PEFT itself, and compared with PEFT's own unmerged model.

What cannot be merged (virtual tokens, routers, updates that depend on the prompt) has no value per weight: it is
refused by name. Whatever kind is merged, the merged model must give the unmerged model's logits on a probe of tokens,
else it is refused too; so an option that this file has never heard of cannot change a number.
"""

import copy
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from rim_lens.errors import RimLensError
from rim_lens.model.adapter import PREFIX, adapter_config, check_adapter, is_plain_init, stored_shapes

N_PROBE = 32  # tokens of the probe, spread over the vocabulary
BASE_KNOWN = ("pissa", "olora")  # inits that take a part out of W which can be computed from W alone
# PEFT stores the modules of a resized embedding three times; the first, under the module's own name, is the one that it
# loads
COPIES = (".modules_to_save.weight", ".original_module.weight")
# largest allowed root mean square difference of logits, in their standard deviation; half precision rounds merged
# weights
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4, torch.float16: 0.05, torch.bfloat16: 0.2}


def merge_adapter(model: Any, folder: Path) -> Any:
    """The model with the adapter merged into its weights; the adapter's wrappers are gone afterwards.

    The model's embedding is resized to the adapter's, and untied from the head where the adapter changes one of them.

    Raises:
        RimLensError: the adapter was made for another base, is damaged, is of a kind that has no place in the weights,
            or PEFT merges it to something else than its own unmerged model.

    """
    config = adapter_config(folder)
    kind = kind_of(config)
    refuse_kind(folder, config)
    resize_to(model, folder)
    check_adapter(model, folder)
    untie_for(model, folder)
    before = dict(model.named_parameters())
    wrapped = peft_model(model, folder)
    probe = probe_tokens(model, config)
    with torch.no_grad():
        expected = probe_logits(wrapped, probe)
        try:
            merged = wrapped.merge_and_unload()
        # PEFT raises any of these for a kind or a layer that it cannot merge
        except (AttributeError, NotImplementedError, ValueError, TypeError, RuntimeError) as error:
            raise RimLensError(
                f"The adapter {folder} is {kind}, which PEFT cannot merge into this model ({first_line(error)}); "
                "heads and neurons of such a model are not those of its base."
            ) from error
        difference = relative_difference(probe_logits(merged, probe), expected)
    if set(dict(merged.named_parameters())) != set(before):
        raise RimLensError(
            f"The adapter {folder} ({kind}) adds modules to the model, which checkpoints cannot be compared in."
        )
    if not difference <= TOLERANCE.get(next(model.parameters()).dtype, 0.2):
        raise RimLensError(
            f"The adapter {folder} ({kind}) does not compute the same merged into the weights as PEFT computes "
            f"beside them (logits differ by {difference:.2g} standard deviations): its updates depend on more than "
            "the weights."
        )
    return merged


def kind_of(config: Mapping[str, Any]) -> str:
    """An adapter's kind in words: PEFT's type and the options that are set."""
    said = [
        name for name in sorted(config) if config[name] and name.startswith(("use_", "alora", "arrow", "layer_repl"))
    ]
    init = [] if is_plain_init(config) else [f"init_lora_weights={config['init_lora_weights']!r}"]
    return ", ".join([str(config.get("peft_type", "of an unnamed kind")), *said, *init])


def refuse_kind(folder: Path, config: Mapping[str, Any]) -> None:
    """Raise for kinds whose update is not one of the weights, or cannot be computed from what is stored."""
    from peft import PeftConfig

    try:
        known = PeftConfig.from_pretrained(folder)
    except (KeyError, ValueError, TypeError, OSError) as error:
        raise RimLensError(
            f"The adapter {folder} is of a kind that this PEFT cannot read ({first_line(error)})."
        ) from error
    kind = kind_of(config)
    if known.is_prompt_learning or known.is_adaption_prompt:
        raise RimLensError(
            f"The adapter {folder} is {kind}: it puts trained states before the prompt instead of changing weights, "
            "which rim_lens does not measure."
        )
    for option in ("alora_invocation_tokens", "arrow_config", "layer_replication"):
        if config.get(option):
            raise RimLensError(
                f"The adapter {folder} uses {option}: what it changes depends on the prompt or on added layers, so "
                "it cannot be merged into the weights."
            )
    init = str(config.get("init_lora_weights"))
    if not is_plain_init(config) and init not in BASE_KNOWN:
        raise RimLensError(
            f"The adapter {folder} was started with init_lora_weights={init!r}, which takes a part out of the base "
            "weights that the folder does not hold; save it converted to plain LoRA (PEFT's "
            "path_initial_model_for_weight_conversion)."
        )
    if config.get("task_type") not in (None, "CAUSAL_LM"):
        raise RimLensError(
            f"The adapter {folder} was trained for {config['task_type']}, not for a chat model (CAUSAL_LM)."
        )


def peft_model(model: Any, folder: Path) -> Any:
    """PEFT's own unmerged model; every tensor of the file has its place and every place its tensor."""
    from peft import PeftModel

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what they warn of is read below
            wrapped = PeftModel.from_pretrained(model, folder)
            again = wrapped.load_adapter(folder, "default")
    except Exception as error:  # each kind trips over something else
        raise RimLensError(
            f"PEFT cannot load the adapter {folder} into this model ({type(error).__name__}: {first_line(error)})."
        ) from error
    values = dict(wrapped.named_parameters(remove_duplicate=False))
    loaded = {id(value) for name, value in values.items() if name not in set(again.missing_keys)}
    missing = [key for key in again.missing_keys if id(values.get(key)) not in loaded]  # but for what layers share
    unplaced = [key for key in again.unexpected_keys if not key.endswith(COPIES)]
    for what, keys in (("no tensor for", missing), ("a tensor without a place,", unplaced)):
        if keys:
            raise RimLensError(
                f"The adapter {folder} holds {what} {keys[0]} ({len(keys)} such); it belongs to another base model "
                "or config."
            )
    return wrapped.eval()


def first_line(error: Exception) -> str:
    """An error of a library, shortened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])[:200] or type(error).__name__


# ---- comparison with PEFT's own model --------------------------------------------------------------------------------
def probe_tokens(model: Any, config: Mapping[str, Any]) -> Int[Tensor, "1 token"]:
    """Tokens spread over the vocabulary, and those that the adapter trains by themselves."""
    size = model.get_input_embeddings().weight.shape[0]
    spread = torch.linspace(0, size - 1, min(N_PROBE, size)).long().tolist()
    trained = config.get("token_indices") or config.get("trainable_token_indices") or []
    trained = [one for many in trained.values() for one in many] if isinstance(trained, dict) else trained
    return torch.tensor([[*spread, *trained[:N_PROBE]]], device=next(model.parameters()).device)


def probe_logits(model: Any, tokens: Int[Tensor, "1 token"]) -> Float[Tensor, "1 token vocab"]:
    """Logits of one pass in float32."""
    return model(input_ids=tokens, use_cache=False).logits.float()


def relative_difference(found: Float[Tensor, "*where vocab"], expected: Float[Tensor, "*where vocab"]) -> float:
    """Root mean square difference in units of the expected logits' standard deviation."""
    return float((found - expected).square().mean().sqrt() / expected.std())


# ---- embeddings ------------------------------------------------------------------------------------------------------
def embedding_names(model: Any) -> dict[str, nn.Module]:
    """Names of the modules that embed and unembed tokens."""
    ends = [end for end in (model.get_input_embeddings(), model.get_output_embeddings()) if end is not None]
    return {name: module for name, module in model.named_modules() if any(module is end for end in ends)}


def resize_to(model: Any, folder: Path) -> None:
    """Give the model's embedding as many rows as the adapter's, as PEFT asks for before such an adapter is loaded.

    Raises:
        RimLensError: the rows that would be new are not all in the adapter.

    """
    ends = embedding_names(model)
    whole = {}
    for key, shape in stored_shapes(folder).items():
        name = key.removeprefix(PREFIX).removesuffix(".weight").removesuffix(".base_layer")
        if name in ends and len(shape) == 2:
            whole[name] = shape[0]
    before = model.get_input_embeddings().weight.shape[0]
    sizes = set(whole.values()) - {before}
    if not sizes:
        return
    tied = tied_ends(model)
    if len(sizes) > 1 or not (tied or set(whole) == set(ends)):
        raise RimLensError(
            f"The adapter {folder} has {max(sizes)} tokens where its base has {before}, but holds only "
            f"{', '.join(sorted(whole))} for them; train with modules_to_save for the embedding and the head."
        )
    model.resize_token_embeddings(sizes.pop(), mean_resizing=False)


def tied_ends(model: Any) -> bool:
    """Whether embedding and head are one parameter."""
    head = model.get_output_embeddings()
    return head is not None and head.weight is model.get_input_embeddings().weight


def untie_for(model: Any, folder: Path) -> None:
    """Give the head a weight of its own where the adapter changes the embedding or the head alone.

    PEFT keeps them apart.
    """
    if not tied_ends(model):
        return
    ends = embedding_names(model)
    config = adapter_config(folder)
    touched = {
        name
        for key in stored_shapes(folder)
        for name in ends
        if key.removeprefix(PREFIX).startswith((f"{name}.", f"{name}_"))
    }
    if (
        not touched
        or config.get("ensure_weight_tying")
        or config.get("trainable_token_indices")
        or "token_indices" in config
    ):
        return
    head = model.get_output_embeddings()
    head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
    model.config.get_text_config().tie_word_embeddings = False
    model.config.tie_word_embeddings = False


def separate_copy(model: Any, values: Mapping[str, Tensor]) -> Any:
    """A second model with the given values in place of the model's own, sharing nothing with it."""
    memo: dict[int, Any] = {}
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, tensor in named.items():
        value = values.get(name, tensor).detach().to(tensor.device, copy=True)
        memo[id(tensor)] = nn.Parameter(value, requires_grad=False) if isinstance(tensor, nn.Parameter) else value
    return copy.deepcopy(model, memo)
