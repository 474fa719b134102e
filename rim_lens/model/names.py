"""The one name that stands for a model here, and what is near it; imports nothing heavy, so a typo is found at once."""

from difflib import get_close_matches

from rim_lens.errors import RimLensError

NAME = "smollm2-135m-instruct"
WHOLE_FAMILIES = (  # in which every part was compared with an independent computation (docs/families.md)
    "Llama, Qwen2, Qwen3, Qwen3-MoE, Qwen3-Next, Qwen3.5, Gemma-2, Gemma-3, Mistral, Mixtral, Phi-3, OLMo-2, OLMoE, "
    "GPT-OSS, SmolLM3, DeepSeek-V2, DeepSeek-V3, GPT-NeoX, GPT-2"
)


def check_spelling(source: str) -> str:
    """The source as it is.

    Raises:
        RimLensError: it is nearly the built-in name, and no path or hub id of an organisation.
    """
    near = get_close_matches(source.lower(), [NAME], n=1, cutoff=0.8)
    if near and source.lower() != NAME and "/" not in source:
        raise RimLensError(f"There is no model {source!r}; did you mean {NAME!r}?")
    return source
