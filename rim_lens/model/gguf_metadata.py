"""What a GGUF file says of its model besides the weights, held against the config that transformers makes of it.

transformers maps some of the keys `<architecture>.*` and leaves the others out without a word. Those that change what
is computed are set here (RoPE scaling) or must agree with the config; any that is not known here is refused by name.
"""

import re
from pathlib import Path
from typing import Any

from rim_lens.errors import RimLensError

ROPE_FREQS = "rope_freqs.weight"  # factors by which llama.cpp divides the rotary frequencies (Llama 3.1 and later)
SCALING = "rope.scaling."
# keys that transformers leaves out for some architectures, and the config's field that must then have their value
SAME_AS = {
    "attention.key_length": ("head_dim",),
    "attention.value_length": ("v_head_dim", "head_dim"),
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps", "norm_eps", "layer_norm_epsilon"),
    "attention.layer_norm_epsilon": ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon"),
    "attention.head_count_kv": ("num_key_value_heads", "num_attention_heads"),
    "attention.sliding_window": ("sliding_window",),
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "final_logit_softcapping": ("final_logit_softcapping",),
    "logit_scale": ("logit_scale", "logits_scaling"),
    "embedding_scale": ("embedding_multiplier",),
    "residual_scale": ("residual_multiplier",),
    "attention.scale": ("attention_multiplier",),
    "expert_count": ("num_experts", "num_local_experts"),
    "expert_used_count": ("num_experts_per_tok",),
    "expert_feed_forward_length": ("moe_intermediate_size", "intermediate_size"),
    "expert_shared_feed_forward_length": ("shared_expert_intermediate_size",),
    "feed_forward_length": ("intermediate_size", "n_inner"),
    "rope.freq_base": ("rope_theta",),
    "vocab_size": ("vocab_size",),
}
WITHOUT_EFFECT = ("context_length", "tensor_data_layout", "attention.causal", "rope.scaling.finetuned")
NO_SCALING = (None, "none")


class GgufFile:
    """Keys and tensor names of one file.

    Raises:
        RimLensError: it cannot be read.

    """

    def __init__(self, path: Path) -> None:
        from gguf import GGUFReader

        self.path, self.reader = path, GGUFReader(str(path))
        self.architecture = str(self._value("general.architecture"))
        start = f"{self.architecture}."
        self.keys = {
            name.removeprefix(start): self._value(name) for name in self.reader.fields if name.startswith(start)
        }
        self.tensors = {tensor.name: tensor for tensor in self.reader.tensors}

    def _value(self, name: str) -> Any:
        return self.reader.fields[name].contents()

    def set_rope(self, config: Any) -> None:
        """Write the file's RoPE scaling into the config.

        Raises:
            RimLensError: a kind of scaling that is not known here.

        """
        rope, length = config.rope_parameters, int(self.keys.get("context_length", config.max_position_embeddings))
        scaling = {key.removeprefix(SCALING): value for key, value in self.keys.items() if key.startswith(SCALING)}
        scaling.pop("finetuned", None)
        kind = scaling.pop("type", None)
        factors = self.tensors.get(ROPE_FREQS)
        if (kind in NO_SCALING and factors is None) or self.architecture.replace("-", "_") == "gpt_oss":
            return  # of gpt-oss transformers reads these keys
        wanted = {"linear": {"factor"}, "yarn": {"factor", "original_context_length"}}.get(str(kind), set())
        if kind in NO_SCALING:
            values = [float(one) for one in factors.data.flatten()]  # type: ignore[union-attr]
            new = {
                "rope_type": "longrope",
                "short_factor": values,
                "long_factor": values,
                "attention_factor": 1.0,
                "factor": 1.0,
            }
            new["original_max_position_embeddings"] = length
        elif set(scaling) == wanted and wanted and factors is None:
            new = {"rope_type": kind, "factor": float(scaling["factor"])}
            if kind == "yarn":
                new["original_max_position_embeddings"] = int(scaling["original_context_length"])
        else:
            raise self.refused([f"{SCALING}{key}" for key in ("type", *scaling)])
        if not isinstance(rope, dict) or "rope_theta" not in rope:
            raise self.refused([f"{SCALING}type"])
        config.rope_parameters = {"rope_theta": rope["rope_theta"], **new}
        if "partial_rotary_factor" in rope:
            config.rope_parameters["partial_rotary_factor"] = rope["partial_rotary_factor"]

    def check(self, config: Any) -> None:
        """Raise a RimLensError for a key that changes the computation and did not reach the config."""
        mapped = self._mapped()
        for key, value in self.keys.items():
            if key.startswith(SCALING) or key in WITHOUT_EFFECT or mapped.get(key) is not None:
                continue
            if key == "rope.dimension_count":
                agrees = value == rotary_width(config)
            elif key in SAME_AS:
                agrees = any(same(value, field_of(config, name)) for name in SAME_AS[key])
            else:
                agrees = key in mapped  # transformers names it and leaves it out on purpose
            if not agrees:
                raise self.refused([key])

    def _mapped(self) -> dict[str, str | None]:
        """The keys that transformers reads for this architecture, with the config's fields they become."""
        from transformers.modeling_gguf_pytorch_utils import GGUF_TO_TRANSFORMERS_MAPPING

        by_letters = {letters(name): keys for name, keys in GGUF_TO_TRANSFORMERS_MAPPING["config"].items()}
        return dict(by_letters.get(letters(self.architecture), {}))

    def check_tensors(self, model: Any) -> None:
        """Raise a RimLensError for a tensor that transformers leaves out.

        Families whose tensors transformers splits or joins (mixtures and the like) have names of their own there; of
        them only missing weights are noticed.
        """
        from transformers import modeling_gguf_pytorch_utils as reading

        processor = reading.TENSOR_PROCESSORS.get(self.architecture, reading.TensorProcessor)
        if processor not in (reading.TensorProcessor, reading.LlamaTensorProcessor):
            return
        known = reading.get_gguf_hf_weights_map(model, processor(config={}))
        left_out = [name for name in self.tensors if name not in known and name != ROPE_FREQS]
        if left_out:
            raise self.refused(left_out)

    def refused(self, names: list[str]) -> RimLensError:
        """The sentence for what cannot be taken over."""
        return RimLensError(
            f"The GGUF file {self.path} has {', '.join(names[:3])} ({self.architecture}), which transformers' "
            "converter leaves out: the model would compute something else; use the safetensors folder that it was "
            "made from."
        )


def letters(name: str) -> str:
    """A name without the marks that differ between the two libraries."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def field_of(config: Any, name: str) -> Any:
    """A field of the text config; rope_theta stands among the RoPE parameters."""
    if name == "rope_theta":
        rope = config.rope_parameters
        return rope.get(name) if isinstance(rope, dict) else None
    try:
        return getattr(config, name, None)
    except Exception:  # a field that differs between layers
        return None


def same(one: Any, other: Any) -> bool:
    """Equal numbers, up to float32."""
    if isinstance(one, int | float) and isinstance(other, int | float):
        return abs(one - other) <= 1e-6 * abs(other)
    return bool(one == other)


def rotary_width(config: Any) -> int:
    """Channels of a head that are rotated."""
    rope = config.rope_parameters if isinstance(getattr(config, "rope_parameters", None), dict) else {}
    width = field_of(config, "head_dim") or config.hidden_size // config.num_attention_heads
    return int(width * float(rope.get("partial_rotary_factor", getattr(config, "partial_rotary_factor", 1.0)) or 1.0))
